"""What a customization costs in what the base knew: loss on general text, accuracy on general knowledge.

Measured with the customization on (what its users meet) and off. Effects act and virtual tokens stand before the text;
a prompting method adds only text that other requests need not carry, so it forgets nothing by construction.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunescope.base import Base
from tunescope.data.reading import Table, read
from tunescope.data.template import Template
from tunescope.data.tokenizing import common_prefix, lead_ids
from tunescope.errors import DataError
from tunescope.inference import Item, score
from tunescope.methods import Customization, Customized, ZeroShot

_log = logging.getLogger(__name__)
_GENERAL_TEXT = "grimm"
_KNOWLEDGE = ("openbookqa", "piqa", "commonsenseqa")
# Tokens a chunk of general text has, and how many chunks the sample takes: the rise of a loss over the same
# chunks is far more exact than either loss.
_CHUNK, _CHUNKS = 256, 16
_QUESTIONS = 60


@dataclass(frozen=True)
class Question:
    """A multiple-choice question; ``answer`` indexes ``choices``."""

    text: str
    choices: tuple[str, ...]
    answer: int


@dataclass
class Probes:
    """What forgetting is measured on.

    Attributes:
        texts: general texts.
        questions: by name of their set.
        all: take everything instead of the fixed sample.
    """

    texts: list[str]
    questions: dict[str, list[Question]]
    all: bool = False
    _of_base: dict[str, General] = field(default_factory=dict)

    def sha256(self) -> str:
        """Over all that is asked, as 64 hexadecimal digits: two measurements compare only under the same."""
        questions = {name: [asdict(each) for each in found] for name, found in self.questions.items()}
        return hashlib.sha256(json.dumps([self.texts, questions, self.all], sort_keys=True).encode()).hexdigest()

    def of_base(self, origin: Base) -> General:
        """The untouched base's values, measured once."""
        key = f"{origin.fingerprint.short}-{origin.dtype}"
        if key not in self._of_base:
            self._of_base[key] = measure_general(untouched(origin), self)
        return self._of_base[key]


@dataclass(frozen=True)
class General:
    """Loss in nats a token on general text, and accuracy by set of questions with the number of questions."""

    loss: float | None
    tokens: int
    accuracy: dict[str, float]
    questions: dict[str, int]


@dataclass(frozen=True)
class Forgetting:
    """Rise of the loss on general text in nats a token, with the customization on and off, and what it is made of."""

    forgetting_on: float | None
    forgetting_off: float | None
    general: General
    general_base: General


def default_probes(*, everything: bool = False) -> Probes:
    """Grimm's tales, OpenBookQA (test), PIQA (validation) and CommonsenseQA (validation).

    Args:
        everything: all texts and questions instead of a fixed stratified sample.
    """
    texts = [row["text"] for row in read(_GENERAL_TEXT).rows]
    return Probes(texts, {name: _questions(read(name)) for name in _KNOWLEDGE}, everything)


def user_probes(path: str | Path) -> Probes:
    """A user's own probe file in place of the default: rows with ``text``, or with ``question, choices, answer``.

    Raises:
        DataError: neither kind of row, or an answer that is not among the choices.
    """
    table = read(path)
    for note in table.notes:
        _log.info("%s: %s.", table.path, note)
    if "text" in table.columns:
        for row, line in zip(table.rows, table.lines, strict=True):
            if not isinstance(row["text"], str) or len(row["text"].split()) < 2:
                raise DataError(f"{table.path}, line {line}: text must be a text of some words, got {row['text']!r}.")
        return Probes([row["text"] for row in table.rows], {}, True)
    if {"question", "choices", "answer"} <= set(table.columns):
        return Probes([], {table.name: _questions(table)}, True)
    raise DataError(
        f"{path}: a probe file needs the column text, or question, choices and answer; it has "
        f"{', '.join(sorted(table.columns))}."
    )


def measure_forgetting(customized: Customized, probes: Probes) -> Forgetting:
    """Measure with the customization on, then off.

    Off is measured anew on the base that the customization rode on, not assumed; full fine-tuning has no off.
    """
    before = probes.of_base(customized.origin)
    if not customized.customization.acts and not customized.moves_base:
        return Forgetting(0.0, 0.0, before, before)
    on = measure_general(customized, probes)
    if before.loss is None or on.loss is None:
        return Forgetting(None, None, on, before)
    off = on.loss
    if not customized.moves_base:
        off = _general_loss(untouched(customized.origin), probes)[0]
    return Forgetting(on.loss - before.loss, off - before.loss, on, before)


def measure_general(customized: Customized, probes: Probes) -> General:
    """Loss on the texts and accuracy on the questions."""
    loss, tokens = _general_loss(customized, probes) if probes.texts else (None, 0)
    chosen = {name: _sample(found, probes.all) for name, found in probes.questions.items()}
    accuracy = {name: _accuracy(customized, found) for name, found in chosen.items()}
    return General(loss, tokens, accuracy, {name: len(found) for name, found in chosen.items()})


def untouched(base: Base) -> Customized:
    """The base under its own name: row effect 0."""
    return Customized(base, Customization(ZeroShot(), Template(style="plain"), {}), base)


def _questions(table: Table) -> list[Question]:
    found = []
    for row, line in zip(table.rows, table.lines, strict=True):
        if not isinstance(row["choices"], list | tuple):
            raise DataError(f"{table.path}, line {line}: choices must be a list of texts, got {row['choices']!r}.")
        choices, answer = tuple(map(str, row["choices"])), row["answer"]
        index = choices.index(answer) if answer in choices else answer
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(choices):
            raise DataError(f"{table.path}, line {line}: answer {answer!r} is not among the choices.")
        found.append(Question(str(row["question"]), choices, index))
    return found


def _sample(questions: Sequence[Question], everything: bool) -> list[Question]:
    """A fixed sample, stratified by the answer's position, so that always choosing one position gains nothing."""
    if everything or len(questions) <= _QUESTIONS:
        return list(questions)
    by_answer: dict[int, list[Question]] = {}
    for question in random.Random(0).sample(list(questions), len(questions)):
        by_answer.setdefault(question.answer, []).append(question)
    chosen: list[Question] = []
    rank = 0
    while len(chosen) < _QUESTIONS:
        chosen += [found[rank] for _, found in sorted(by_answer.items()) if rank < len(found)]
        rank += 1
    return chosen[:_QUESTIONS]


def _general_loss(customized: Customized, probes: Probes) -> tuple[float, int]:
    tokenizer, prefix = customized.base.tokenizer, customized.template.virtual_ids + lead_ids(customized.base.tokenizer)
    chunks: list[list[int]] = []
    for text in probes.texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        chunks += [ids[i : i + _CHUNK] for i in range(0, len(ids), _CHUNK) if len(ids[i : i + _CHUNK]) > 1]
    if not probes.all and len(chunks) > _CHUNKS:
        whole = [chunk for chunk in chunks if len(chunk) == _CHUNK] or chunks
        chunks = random.Random(0).sample(whole, min(_CHUNKS, len(whole)))
    # The first token of a chunk may have nothing before it to be predicted from: it is the prompt.
    scores = score(customized, [Item(prefix + chunk[:1], [chunk[1:]]) for chunk in chunks])
    tokens = sum(found[0].tokens for found in scores)
    return -sum(found[0].logprob for found in scores) / tokens, tokens


def _accuracy(customized: Customized, questions: Sequence[Question]) -> float:
    """By length-normalized log-likelihood of each choice's text after the question."""
    tokenizer, prefix = customized.base.tokenizer, customized.template.virtual_ids + lead_ids(customized.base.tokenizer)
    items = []
    for question in questions:
        asked = f"Question: {question.text.strip()}\nAnswer:"
        texts = [f"{asked} {choice.strip()}" for choice in question.choices]
        prompt, *wholes = tokenizer([asked, *texts], add_special_tokens=False)["input_ids"]
        shared = min(common_prefix(prompt, whole) for whole in wholes)
        items.append(Item(prefix + prompt[:shared], [whole[shared:] for whole in wholes]))
    right = 0
    for question, scores in zip(questions, score(customized, items), strict=True):
        means = [found.logprob / found.tokens if found.tokens else -math.inf for found in scores]
        right += means.index(max(means)) == question.answer
    return right / len(questions)
