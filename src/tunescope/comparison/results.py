"""The results of a comparison: the object that ``comparison.json`` holds and ``compare --json`` prints.

Every number is as measured; what does not apply or could not be measured is ``None``, never NaN or infinity, so the
file is JSON that any reader accepts. Reading back what was written gives an equal object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tunescope.comparison.candidate import Candidate
from tunescope.comparison.part import Part
from tunescope.errors import TunescopeError

PROMPTING = frozenset({"zero-shot", "few-shot", "system"})
"""Methods that train nothing."""


class BaseInfo(Part):
    """The frozen model all methods started from."""

    name: str
    fingerprint: str
    parameters: int


class DataInfo(Part):
    """The rows all methods were trained and tested on."""

    name: str
    sha256: str
    train_rows: int
    test_rows: int
    validation_rows: int = 0
    """Held out of the training rows to choose settings by."""
    template: str
    """The template as written, or the name of the chat template used."""
    task: Literal["classification", "text", "preferences", "judged"]
    """Right labels; texts near the given ones; the better of two completions preferred; texts that a judge likes."""
    objective: str = "sft"
    """What trained methods are trained for."""
    judge: str | None = None
    """Who reads the texts."""
    labels: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What a reader must know: rows truncated or dropped, test rows that also stand in train."""


class MachineInfo(Part):
    """Where it ran; times and memory mean nothing without it."""

    device_name: str
    cores: int
    torch: str
    dtype: str


class Probe(Part):
    """Accuracy on one general-knowledge set, with the customization on and of the base, on the same rows."""

    accuracy: float
    base_accuracy: float
    rows: int


class Size(Part):
    """The chosen settings trained on fewer rows, in as many steps."""

    rows: int
    """To learn from."""
    score: float
    """On the test rows."""
    low: float
    high: float
    """95% confidence interval of `score`."""


class MethodResult(Part):
    """One method as measured. A row that was skipped or failed has no `score` and says why in `note`."""

    method: str
    """Spelling of the command line, for example ``"lora"``."""
    name: str
    """What people see; unique within the comparison."""
    score: float | None = None
    """The main metric on the rows that the comparison's `split` names, over `seeds` trainings; higher is better."""
    score_low: float | None = None
    score_high: float | None = None
    """95% confidence interval of `score`, over the rows."""
    validation_score: float | None = None
    """The same metric on the validation rows, by which its settings were chosen."""
    scores: list[float] = Field(default_factory=list)
    """`score` of each training, the first one's first."""
    seeds: int | None = None
    """How many trainings `score` is the mean of; they differ by the seed alone."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What was chosen: of the method's settings those that are not its defaults, and ``lr``."""
    sizes: list[Size] = Field(default_factory=list)
    """The same settings trained on fewer rows, fewest first, and at last on all."""
    candidates: int | None = None
    """How many settings were tried."""
    search: list[Candidate] = Field(default_factory=list)
    """Every setting that was tried, and how it did on the validation rows."""
    accuracy: float | None = None
    """Share of test rows whose most likely label is the right one."""
    macro_f1: float | None = None
    confusion: dict[str, dict[str, int]] = Field(default_factory=dict)
    """How often each label (outer key) was answered by each (inner key), on the test rows; zeros are left out."""
    exact_match: float | None = None
    """Share of test rows whose freely generated text equals the target."""
    exact_match_low: float | None = None
    exact_match_high: float | None = None
    """95% confidence interval of `exact_match`."""
    chrf: float | None = None
    """Corpus chrF, 0 to 100."""
    nll_per_token: float | None = None
    """Nats per completion token on the test rows."""
    tokens: int | None = None
    """Completion tokens that `nll_per_token` is the mean of."""
    forgetting_on: float | None = None
    """Rise of the loss on general text with the customization on, nats per token."""
    forgetting_off: float | None = None
    """The same with it switched off: zero for all methods but full."""
    general_loss: float | None = None
    general_loss_base: float | None = None
    """Loss on general text, nats per token, with the customization on and of the base."""
    kl_task: float | None = None
    """KL divergence to the base on the task's own rows, nats per completion token: how far it moved to learn this."""
    kl: float | None = None
    """KL divergence to the base over its own samples, nats per completion, where a judge reads them."""
    probes: dict[str, Probe] = Field(default_factory=dict)
    """General-knowledge accuracies by name of the set."""
    trainable_parameters: int | None = None
    seconds: float | None = None
    """Time in the training loop; 0 for prompting."""
    steps: int | None = None
    """Optimizer steps."""
    trained_tokens: int | None = None
    """Tokens that it learned from."""
    rows_per_s: float | None = None
    tokens_per_s: float | None = None
    """Real tokens trained on per second, padding not counted."""
    pad_fraction: float | None = None
    """Share of the batches that was padding."""
    loss: float | None = None
    """Last training loss, nats per trained token."""
    ttft_ms: float | None = None
    """Milliseconds to the first token."""
    ms_per_token: float | None = None
    """Milliseconds for each further token."""
    peak_memory_mb: float | None = None
    artifact_mb: float | None = None
    """Size at rest."""
    extra_prompt_tokens: int | None = None
    """Tokens, real or virtual, put before every user text."""
    path: str | None = None
    """Where the customization was saved."""
    per_row: list[float] = Field(default_factory=list)
    """Score of each test row that was measured, in the order of the test set."""
    row_keys: list[str] = Field(default_factory=list)
    """Which row each of `per_row` is of, by ``data.identity``: what paired comparisons pair by."""
    answers: dict[str, str] = Field(default_factory=dict)
    """What its first training answered to each row of `row_keys`: the label, or the text."""
    recipe: str | None = None
    """A file for ``tunescope run`` that trains it again, to the same tensors; None where the rows had no name, where it
    was stopped before its end, or where a prompt was made of pairs."""
    curve: list[tuple[int, float | None, float]] = Field(default_factory=list)
    """Training loss as (step, loss in nats per trained token, seconds since the start)."""
    note: str | None = None
    """Why the row was skipped or failed, or what to know about it."""

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, values: Any) -> Any:
        """Numbers that are not finite become None and are named in the note; a row without a score says why."""
        if not isinstance(values, Mapping):
            return values
        cleaned, lost = dict(values), []
        for key, value in values.items():
            if _not_finite(value):
                cleaned[key] = None
                lost.append(key)
        if any(_not_finite(value) for value in values.get("per_row") or ()):
            cleaned["per_row"] = cleaned["row_keys"] = []
            lost.append("per_row")
        cleaned["curve"] = [
            (step, None if _not_finite(loss) else loss, seconds) for step, loss, seconds in values.get("curve") or ()
        ]
        if lost:
            cleaned["note"] = "; ".join(filter(None, [cleaned.get("note"), f"not finite: {', '.join(lost)}"]))
        if cleaned.get("score") is None and not cleaned.get("note"):
            cleaned["note"] = "not measured"
        return cleaned

    @model_validator(mode="after")
    def _keyed(self) -> Self:
        if self.row_keys and len(self.row_keys) != len(self.per_row):
            raise ValueError(f"{len(self.per_row)} scores of rows, but {len(self.row_keys)} keys of rows")
        return self

    @property
    def trains(self) -> bool:
        """Whether the method trains anything."""
        return self.method not in PROMPTING


class RowText(Part):
    """A test row, to be read."""

    key: str
    """As in `row_keys`."""
    prompt: str
    """Its text; the middle of a long one is left out."""
    expected: str
    """The right answer."""


class Repeat(Part):
    """A further training of the chosen settings, by another seed."""

    seed: int
    score: float
    per_row: list[float]
    row_keys: list[str]


class Measured(Part):
    """What the test rows were opened for: one method at its chosen settings."""

    candidate: str
    """Which one, and after how many steps."""
    row: MethodResult
    repeats: list[Repeat] = Field(default_factory=list)
    """Further trainings of it."""
    sizes: list[Size] = Field(default_factory=list)
    """Trainings of it on fewer rows."""


class Alternative(Part):
    """One method set against the recommended one. Differences are alternative minus recommended."""

    name: str
    method: str
    difference: float
    """Of the score, with its 95% interval."""
    low: float | None
    high: float | None
    comparable: bool
    """Whether the data shows no difference to the method with the highest score."""
    forgetting: float | None
    """Difference of `forgetting_on`, nats per token."""
    ttft_ms: float | None
    ms_per_token: float | None
    trainable_parameters: int | None
    seconds: float | None
    text: str
    """What one gives up and gains by taking it, in words."""


class Advice(Part):
    """Which method to take and why, worked out from the rows alone."""

    recommended: str | None
    """Name of a row; None when no method has a score."""
    headline: str
    """The recommendation in one sentence."""
    reasons: list[str]
    alternatives: list[Alternative] = Field(default_factory=list)
    """All other methods with a score, highest score first."""
    fronts: dict[str, list[str]] = Field(default_factory=dict)
    """Pareto fronts: cost field of a row to the names of the rows no other beats on both score and that cost."""
    text: str
    """Headline, reasons and the alternatives worth a thought, as plain text."""


class Comparison(Part):
    """Every method on the same base, data, machine and budget."""

    tunescope: str
    """Version that wrote it."""
    base: BaseInfo
    data: DataInfo
    machine: MachineInfo
    budget_seconds: float | None
    """Time allowed for the whole comparison; None where tokens were."""
    budget_tokens: int | None = None
    """Tokens that each method might learn from, or for prompting read, in its search."""
    seed: int
    split: Literal["test", "validation"] = "test"
    """What the scores were measured on: validation rows until the search is over and the test rows are opened."""
    test_seen: bool = False
    """Whether settings were chosen after the test rows had been opened, so that their score may flatter."""
    metric: str
    """Name of the main score: ``accuracy``, ``chrf``, ``preference_accuracy`` (how often the better of two completions
    is preferred, by reward or against the base), ``judge`` (the mean score of sampled texts)."""
    rows: list[MethodResult] = Field(min_length=1)
    tested: list[RowText] = Field(default_factory=list)
    """The test rows, once they are open."""
    advice: Advice
    report: str | None = None
    """Path of the HTML report."""
    seconds: float
    """Time the whole comparison took."""
    first_table_seconds: float | None = None
    """When every method had its first score."""
    search_seconds: float = 0.0
    """Time in training and scoring candidates."""
    evaluation_seconds: float = 0.0
    """Time in measuring the chosen ones on the test rows, their forgetting and latency."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [row.name for row in self.rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"row names must be unique, twice: {', '.join(twice)}")
        if self.advice.recommended is not None and self.advice.recommended not in names:
            raise ValueError(f"the advice recommends {self.advice.recommended!r}, which is no row")
        return self

    def row(self, name: str) -> MethodResult:
        """The row of that name; `KeyError` if there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_json(self, indent: int | None = 2) -> str:
        """Strict JSON text; `from_json` gives back an equal object."""
        return json.dumps(self.model_dump(mode="json"), indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = "comparison") -> Comparison:
        """Read what `to_json` wrote.

        Args:
            text: the JSON text.
            source: file name for the error message.

        Raises:
            TunescopeError: not JSON, or not a comparison; names the first field that is wrong.
        """
        try:
            return cls.model_validate(json.loads(text))
        except json.JSONDecodeError as error:
            raise TunescopeError(f"{source} is not JSON: {error.msg} (line {error.lineno}).") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise TunescopeError(
                f"{source} is no comparison this version of tunescope can read: {where}: {first['msg']}."
            ) from None


def read_comparison(path: Path | str) -> Comparison:
    """Read ``comparison.json``, given the file or the folder of the run.

    Raises:
        TunescopeError: the file is missing, unreadable or no comparison.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "comparison.json"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise TunescopeError(f"{file}: {reason}. `tunescope compare ... --out RUN` writes it.") from None
    return Comparison.from_json(text, str(file))


def _not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
