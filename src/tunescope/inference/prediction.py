"""Answers to rows through a customization's own template: a label with its probability, or a text.

    ts.predict("bank/kinds", ts.read("new.csv"))

Nobody retypes a template's pattern, and what was trained is what is asked: rows are rendered, tokenized and cut as in
training, and labels are compared as whole completions.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tunescope import bank
from tunescope.bank import Record
from tunescope.data.encoding import Encoder
from tunescope.data.messages import Message
from tunescope.data.reading import BadRow, Table, check_bad, table_of
from tunescope.data.rows import Row, answer_columns, to_rows
from tunescope.errors import BankError, DataError
from tunescope.inference.engine import Engine
from tunescope.inference.requests import Generated
from tunescope.inference.sampling import Sampling, for_prompt
from tunescope.inference.scoring import Item, Score, score
from tunescope.methods import Customized

# Rows whose labels are scored together, and kept together when the work is stopped.
_TOGETHER = 128
# Tokens that a label may take in its prompt beyond what it takes alone, and a text for the characters of the prompt
# that it has to begin with.
_LABEL_SLACK, _TEXT_SLACK = 4, 16
_MAX_NEW_TOKENS = 128
_NAME = "customization"

Answers = Mapping[int, "Prediction"]  # by the row's index


class Recorded(Protocol):
    """A customization in memory with its certificate, as ``train`` returns it."""

    customized: Customized
    record: Record


@dataclass(frozen=True)
class Prediction:
    """The answer to one row.

    Attributes:
        text: the label, or the generated text; empty where there is an error.
        label: the likeliest of the labels; None where the customization has none.
        probabilities: of each label as a whole completion, together 1; None without labels.
        finished: whether a generated text ended of itself and not by the limit of tokens.
        error: why there is no answer, where there is none.
    """

    text: str
    label: str | None = None
    probabilities: dict[str, float] | None = None
    finished: bool = True
    error: str | None = None

    @property
    def probability(self) -> float | None:
        """Of the label."""
        return self.probabilities[self.label] if self.probabilities and self.label is not None else None


@dataclass(frozen=True)
class Question:
    """A row that can be answered.

    Attributes:
        index: of the row.
        messages: the prompt, cut to fit.
        tools: functions that may be called, for the chat template.
        tokens: of prompt and longest label together; of the prompt where texts are generated.
    """

    index: int
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    tokens: int


@dataclass
class Questions:
    """The rows of a table, also those that reading left out, in the order of their lines.

    Attributes:
        path: where they come from, for messages.
        rows: the columns of each; none where it could not be read.
        lines: of each in its file.
        asked: those that can be answered.
        bad: why the others cannot, by index.
        truth: the completions of the rows that have one, by index.
        notes: what is worth knowing of how they were read.
        cut: how many prompts lost a part of their text to fit.
    """

    path: str
    rows: list[dict[str, Any]]
    lines: list[int]
    asked: list[Question] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    truth: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    cut: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def check(self, skip_bad: int, errors: Mapping[int, str] | None = None) -> None:
        """Stop when there are more rows without an answer than allowed.

        Args:
            skip_bad: how many.
            errors: reasons by index, beside those of ``bad``.

        Raises:
            DataError: with their lines and reasons.
        """
        reasons = sorted((self.bad | dict(errors or {})).items())
        check_bad(self.path, [BadRow(self.lines[index], reason) for index, reason in reasons], skip_bad)

    def predictions(self, answers: Answers, skip_bad: int) -> list[Prediction]:
        """The answers in the order of the rows.

        Raises:
            DataError: more rows than allowed have no answer.
        """
        self.check(skip_bad, {index: found.error for index, found in answers.items() if found.error is not None})
        return [
            Prediction("", error=self.bad[index]) if index in self.bad else answers[index] for index in range(len(self))
        ]


class Predictor:
    """Answers rows.

    Args:
        customized: what is asked.
        labels: to choose from; none for generated texts.
        max_new_tokens: most tokens of a generated text; 128 by default.
        max_length: most tokens of a row, as in training; by default what the base's context has room for.
        steer: what answers are to be like; see ``Request``.
        temperature: generated texts are sampled from the model at 1; at 0 they are its likeliest.
        seed: of the sampling; each row has its own draw.

    Raises:
        DataError: ``max_new_tokens`` or ``temperature`` where labels are chosen from, no room for a prompt, or
            attributes that are not the customization's.
    """

    def __init__(
        self,
        customized: Customized,
        labels: Sequence[str] | None = None,
        *,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        steer: Mapping[str, int] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> None:
        for name, given in (("max_new_tokens", max_new_tokens is not None), ("temperature", temperature != 0)):
            if labels and given:
                raise DataError(f"{name} has no meaning where the answer is one of the labels: leave it out.")
        if steer and customized.template.steering is None:
            raise DataError("The entry was not trained on attributes, so nothing steers it: leave steer out.")
        self.steer = customized.template.steering.asked(steer) if customized.template.steering and steer else {}
        self.temperature, self.seed = temperature, seed
        self.customized, self.labels, self.max_length = customized, tuple(labels or ()), max_length
        self.max_new_tokens = max_new_tokens or _MAX_NEW_TOKENS
        context = customized.base.context_length
        self._room = context - (_LABEL_SLACK if labels else self.max_new_tokens + _TEXT_SLACK)
        if self._room < 1:
            raise DataError(f"max_new_tokens {self.max_new_tokens} leaves no room in the base's context of {context}.")

    @classmethod
    def recorded(
        cls, customized: Customized, record: Record, *, max_length: int | None = None, **settings: Any
    ) -> Predictor:
        """With the labels and the length that a record says; ``settings`` are a ``Predictor``'s.

        Raises:
            BankError: a reward or attribute model, which gives no answers.
            DataError: as for a ``Predictor``.
        """
        if record.objective in ("reward", "attributes"):
            kind, other = (
                ("A reward", "measure it with tunescope eval")
                if record.objective == "reward"
                else ("An attribute", "label rows with tunescope annotate")
            )
            raise BankError(f"{kind} model gives texts numbers and no answer: {other}.")
        if max_length is None and record.train_settings is not None:
            max_length = record.train_settings.get("max_length")
        return cls(customized, record.labels, max_length=max_length, **settings)

    @property
    def optional(self) -> tuple[str, ...]:
        """The columns that rows may lack: those with the answer."""
        return answer_columns(self.customized.template.pattern)

    def questions(self, table: Table, skip_bad: int = 0) -> Questions:
        """Render and cut the rows of a table, all of them before the first is answered.

        Args:
            table: with the columns that the template names; without a pattern, by convention.
            skip_bad: how many rows may stay without an answer.

        Raises:
            DataError: columns that do not fit, or more rows that cannot be answered than allowed.
        """
        found = _in_order(table)
        good = [index for index in range(len(found)) if index not in found.bad]
        # Lines are not unique (a JSON array may stand on one), so rows are numbered by index until they are reported.
        numbered = replace(table, lines=good, skipped=[])
        try:
            rows = to_rows(
                numbered, self.customized.template.pattern, skip_bad=len(table), need_completion=False,
                on_note=found.notes.append, on_bad=lambda bad: found.bad.update({bad.line: bad.reason}),
            )  # fmt: skip
        except DataError:
            found.check(skip_bad)
            raise
        if self.steer:
            rows = [row.with_attributes(self.steer) for row in rows]
        found.truth = {row.number: row.completion for row in rows if row.completion is not None}
        self._fit(rows, found)
        found.check(skip_bad)
        return found

    def answer(
        self, asked: Sequence[Question], on_answers: Callable[[Answers], None], done: Collection[int] = ()
    ) -> None:
        """Answer questions.

        Args:
            asked: all of them, so that those which are computed together do not depend on ``done``.
            on_answers: callback for each part of the answers, as it is there.
            done: indices of rows that have their answer.
        """
        if self.labels:
            self._choose(asked, on_answers, done)
        else:
            self._write([question for question in asked if question.index not in done], on_answers)

    def _encoder(self, path: str, skip_bad: int) -> Encoder:
        base, template = self.customized.base, self.customized.template
        return Encoder(base.tokenizer, template, self._room, self.max_length, source=path, skip_bad=skip_bad)

    def _fit(self, rows: Sequence[Row], found: Questions) -> None:
        """Cut the rows as in training, the longest label behind each."""
        encoder = self._encoder(found.path, len(rows))
        longest = max(self.labels, key=lambda label: len(encoder.tokenizer(label)["input_ids"]), default=None)
        asked = encoder.fitting([replace(row, completion=longest, tool_calls=()) for row in rows])
        found.asked = [Question(rows[i].number, encoded.messages, rows[i].tools, len(encoded)) for i, encoded in asked]
        found.cut = sum(encoded.dropped > 0 for _, encoded in asked)
        found.bad |= {bad.line: bad.reason for bad in encoder.bad}
        room = min(self._room, self.max_length or self._room)
        too_long = f"is too long: nothing of its text fits beside its template and answer in {room} tokens"
        found.bad |= dict.fromkeys(encoder.dropped_rows, too_long)

    def _choose(self, asked: Sequence[Question], on_answers: Callable[[Answers], None], done: Collection[int]) -> None:
        encoder = self._encoder("rows", 0)
        for part in _parts(sorted(asked, key=lambda question: (-question.tokens, question.index))):
            if all(question.index in done for question in part):
                continue
            items = [Item(*encoder.candidates(q.messages, self.labels, q.tools)) for q in part]
            scored = score(self.customized, items)
            on_answers({q.index: self._chosen(scores) for q, scores in zip(part, scored, strict=True)})

    def _chosen(self, scores: Sequence[Score]) -> Prediction:
        logprobs = dict(zip(self.labels, (each.logprob for each in scores), strict=True))
        calibrated = self.customized.template.calibrated(logprobs)
        probabilities = probabilities_of(dict(zip(self.labels, calibrated, strict=True)))
        if probabilities is None:
            return Prediction("", error="the model's probabilities are not finite")
        label = max(self.labels, key=lambda name: probabilities[name])
        return Prediction(label, label, probabilities)

    def _write(self, asked: Sequence[Question], on_answers: Callable[[Answers], None]) -> None:
        encoder = self._encoder("rows", 0)
        engine = Engine(self.customized.base)
        engine.load(_NAME, self.customized)

        def done(place: int, answer: Generated) -> None:
            found = Prediction(answer.text, finished=answer.finished, error=answer.error)
            on_answers({asked[place].index: found})

        prompts = [encoder.prompt(question.messages, question.tools) for question in asked]
        sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=self.temperature, seed=self.seed)
        engine.generate_ids(prompts, _NAME, [for_prompt(sampling, question.index) for question in asked], on_done=done)


def predict(
    entry: str | Path | Customized | Recorded,
    data: Table | Sequence[Mapping[str, Any]],
    *,
    labels: Sequence[str] | None = None,
    max_new_tokens: int | None = None,
    max_length: int | None = None,
    skip_bad: int = 0,
    on_row: Callable[[int], None] = lambda count: None,
) -> list[Prediction]:
    """Answer rows through a customization's own template.

    Args:
        entry: an entry of a bank, or what ``train`` returned; a customization alone has no record of labels.
        data: a table, or mappings from column to value. The column that would hold the answer may be missing or empty.
        labels: to choose from. By default those that the entry records; ``()`` generates texts instead.
        max_new_tokens: most tokens of a generated text; 128 by default.
        max_length: most tokens of a row; by default as it was trained.
        skip_bad: how many rows may stay without an answer, with an ``error``.
        on_row: callback with the number of rows answered, part by part.

    Returns:
        One for each row, in order.

    Raises:
        BankError: an entry that cannot be used.
        DataError: rows that the template does not fit, each with its line and why.
    """
    if isinstance(entry, str | Path):
        customized, record = bank.load(Path(entry)), bank.read_record(Path(entry))
    elif isinstance(entry, Customized):
        customized, record = entry, None
    else:
        customized, record = entry.customized, entry.record
    if record is not None:
        record = record if labels is None else record.model_copy(update={"labels": tuple(labels) or None})
        predictor = Predictor.recorded(customized, record, max_new_tokens=max_new_tokens, max_length=max_length)
    else:
        predictor = Predictor(customized, labels, max_new_tokens=max_new_tokens, max_length=max_length)
    if not isinstance(data, Table):
        data = table_of(data, skip_bad=skip_bad, optional=predictor.optional)
    questions = predictor.questions(data, skip_bad)
    answers: dict[int, Prediction] = {}

    def keep(part: Answers) -> None:
        answers.update(part)
        on_row(len(part))

    predictor.answer(questions.asked, keep)
    return questions.predictions(answers, skip_bad)


def prompt_of_columns(columns: Mapping[str, Any], pattern: str | None) -> tuple[Message, ...]:
    """The messages that a template's pattern, or where it has none a convention, makes of one row's columns.

    Raises:
        DataError: columns that do not fit.
    """
    bad: list[BadRow] = []
    try:
        row = to_rows(table_of([columns]), pattern, need_completion=False, on_bad=bad.append)[0]
    except DataError as error:
        raise DataError(f"{bad[0].reason}." if bad else str(error).removeprefix("rows: ")) from None
    if row.tools:
        raise DataError("tools cannot be given with a row: leave the column out.")
    return row.messages


def probabilities_of(logprobs: Mapping[str, float]) -> dict[str, float] | None:
    """The softmax of whole texts' log-probabilities, in nats; None where one is not finite."""
    if not all(map(math.isfinite, logprobs.values())):
        return None
    highest = max(logprobs.values())
    shares = {text: math.exp(value - highest) for text, value in logprobs.items()}
    total = sum(shares.values())
    return {text: share / total for text, share in shares.items()}


def _in_order(table: Table) -> Questions:
    """The rows of a table and those that reading left out, in the order of their lines."""
    rows = table.rows if table.unmended is None else table.unmended
    read = ((line, row, "") for line, row in zip(table.lines, rows, strict=True))
    skipped: Iterator[tuple[int, dict[str, Any], str]] = ((bad.line, {}, bad.reason) for bad in table.skipped)
    found = Questions(table.path, [], [])
    for line, row, reason in heapq.merge(read, skipped, key=lambda each: each[0]):
        if reason:
            found.bad[len(found)] = reason
        found.rows.append(row)
        found.lines.append(line)
    return found


def _parts(asked: Sequence[Question]) -> Iterator[Sequence[Question]]:
    for start in range(0, len(asked), _TOGETHER):
        yield asked[start : start + _TOGETHER]
