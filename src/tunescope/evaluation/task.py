"""How well a customization does its task on rows it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunescope.data.encoding import Encoder
from tunescope.data.identity import row_keys
from tunescope.data.rows import Row
from tunescope.data.template import Template
from tunescope.errors import DataError
from tunescope.inference import Item, Sampling, Score, generate_ids, score
from tunescope.methods import Customized

# Tokens beyond the longest label that a freely generated label may take before it is cut.
_LABEL_SLACK = 4


@dataclass(frozen=True)
class TaskScores:
    """What was measured of the task.

    Attributes:
        nll_per_token: mean negative log-likelihood of the true completions' tokens, stop token included, in nats.
        tokens: how many tokens that mean is over.
        accuracy: share of rows whose true label is the likeliest of all labels; None without labels.
        macro_f1: unweighted mean of each label's F1; None without labels.
        confusion: how often each label (outer key) was answered by each (inner key); empty without labels.
        exact_match: share of freely generated texts that equal the completion, spaces at the ends aside.
        chrf: sacrebleu's chrF (0-100) of the generated texts; None with labels.
        generated_rows: how many rows exact_match and chrf are over.
        per_row: for each row, 1 or 0 for a right or wrong label, or the sentence's chrF: what intervals need.
        answers: what was answered to each of these rows: the label, or the generated text.
        row_keys: which row each of ``per_row`` is of, by ``data.identity``: what differences are paired by.
        extra_prompt_tokens: mean number of prompt tokens that the customization adds to a row's own.
        notes: rows cut or dropped.
    """

    nll_per_token: float
    tokens: int
    accuracy: float | None
    macro_f1: float | None
    confusion: dict[str, dict[str, int]]
    exact_match: float | None
    chrf: float | None
    generated_rows: int
    per_row: list[float]
    answers: list[str]
    row_keys: list[str]
    extra_prompt_tokens: float
    notes: list[str]

    @property
    def score(self) -> float:
        """The mean of ``per_row``."""
        return sum(self.per_row) / len(self.per_row)


def measure_task(
    customized: Customized,
    rows: Sequence[Row],
    labels: Sequence[str] | None,
    *,
    generate_rows: int | None = None,
    max_new_tokens: int = 128,
    max_length: int | None = None,
    on_row: Callable[[int], None] = lambda count: None,
) -> TaskScores:
    """Score the true completions, choose among the labels, and generate freely.

    Args:
        customized: what to measure.
        rows: unseen rows with completions.
        labels: of a classification task; None for free text.
        generate_rows: generate for this many rows from the first on (by default all): generating is the slow part.
        max_new_tokens: limit of a generated text; a label is cut a few tokens after the longest one.
        max_length: the most tokens of prompt and completion, as in training.
        on_row: callback with the number of rows scored.

    Raises:
        DataError: a row whose label is not among ``labels``, or no row that fits.
    """
    if labels is not None:
        check_labels(rows, labels)
    base = customized.base
    limit = _label_limit(customized, rows, labels) if labels else max_new_tokens
    room = base.context_length - limit
    encoder = Encoder(base.tokenizer, customized.template, room, max_length)
    fitting = encoder.fitting(rows)
    if not fitting:
        raise DataError(
            "No row fits: every one was dropped. Shorten the rows, raise --max-length or lower --max-new-tokens."
        )
    all_keys = row_keys(rows)
    kept, keys = [rows[i] for i, _ in fitting], [all_keys[i] for i, _ in fitting]
    items = [
        Item(*encoder.candidates(e.messages, labels, rows[i].tools)) if labels else Item(e.prompt, [e.completion])
        for i, e in fitting
    ]
    scored = score(customized, items, on_item=on_row)
    truth = [labels.index(row.completion or "") if labels else 0 for row in kept]
    logprob = sum(scores[i].logprob for scores, i in zip(scored, truth, strict=True))
    tokens = sum(scores[i].tokens for scores, i in zip(scored, truth, strict=True))
    texts = [row.completion or "" for row in kept[:generate_rows]]
    prompts = [encoder.prompt(e.messages, rows[i].tools) for i, e in fitting[:generate_rows]]
    written = [g.text for g in generate_ids(customized, prompts, Sampling(max_new_tokens=limit))]
    matches = [a.strip() == b.strip() for a, b in zip(written, texts, strict=True)]
    chosen = [_likeliest(customized.template, labels or ("",), scores) for scores in scored]
    right = [float(a == b) for a, b in zip(chosen, truth, strict=True)]
    return TaskScores(
        nll_per_token=-logprob / tokens,
        tokens=tokens,
        accuracy=sum(right) / len(right) if labels else None,
        macro_f1=_macro_f1(truth, chosen) if labels else None,
        confusion=_confusion(truth, chosen, labels or ()),
        exact_match=sum(matches) / len(matches) if matches else None,
        chrf=None if labels or not texts else _chrf(written, texts),
        generated_rows=len(texts),
        per_row=right if labels else [_sentence_chrf(a, b) for a, b in zip(written, texts, strict=True)],
        answers=[labels[i] for i in chosen] if labels else written,
        row_keys=list(keys if labels else keys[: len(texts)]),
        extra_prompt_tokens=sum(e.extra for _, e in fitting) / len(fitting),
        notes=encoder.notes(),
    )


def _likeliest(template: Template, labels: Sequence[str], scores: Sequence[Score]) -> int:
    logprobs = template.calibrated({label: each.logprob for label, each in zip(labels, scores, strict=True)})
    return max(range(len(logprobs)), key=logprobs.__getitem__)


def check_labels(rows: Sequence[Row], labels: Sequence[str]) -> None:
    """Refuse rows whose label is not among ``labels``.

    Raises:
        DataError: naming such labels and their lines.
    """
    unseen = {row.completion: row.number for row in reversed(rows) if row.completion not in labels}
    if unseen:
        shown = ", ".join(f"{label!r} (line {line})" for label, line in sorted(unseen.items(), key=lambda e: e[1])[:5])
        raise DataError(
            f"The rows have labels that training did not: {shown}. Known labels: {', '.join(labels)}. Correct the rows "
            "or train on rows that have these labels too."
        )


def _label_limit(customized: Customized, rows: Sequence[Row], labels: Sequence[str]) -> int:
    encoder = Encoder(customized.base.tokenizer, customized.template, customized.base.context_length)
    return max(map(len, encoder.candidates(rows[0].messages, labels, rows[0].tools)[1])) + _LABEL_SLACK


def _macro_f1(truth: Sequence[int], chosen: Sequence[int]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, chosen, average="macro", zero_division=0))


def _confusion(truth: Sequence[int], chosen: Sequence[int], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts by true label and answer; what never happened is left out."""
    found: dict[str, dict[str, int]] = {}
    for true, answer in sorted(zip(truth, chosen, strict=True)) if labels else ():
        row = found.setdefault(labels[true], {})
        row[labels[answer]] = row.get(labels[answer], 0) + 1
    return found


def _chrf(written: Sequence[str], texts: Sequence[str]) -> float:
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(list(written), [list(texts)]).score)


def _sentence_chrf(written: str, text: str) -> float:
    from sacrebleu.metrics import CHRF

    return float(CHRF().sentence_score(written, [text]).score)
