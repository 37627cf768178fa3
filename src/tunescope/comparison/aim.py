"""What a comparison's candidates are trained for, and how well they do it, on rows that they have not seen.

Three aims: to answer as the rows do (``AnswerAim``), to prefer the better of two completions (``PairAim``), and to
write what a judge likes (``JudgeAim``). Each says what a method learns from, what is measured to choose settings by,
and what is measured once, on the test rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope import peak_memory
from tunescope.data.encoding import Encoder
from tunescope.data.identity import row_keys
from tunescope.data.rankings import Preference
from tunescope.data.rows import Row, label_set
from tunescope.errors import DataError, SettingError
from tunescope.evaluation import Card, Probes, evaluate
from tunescope.evaluation.card import measure_costs
from tunescope.evaluation.judged import divergence, sampled, scores_of
from tunescope.evaluation.preferred import PreferenceMeter, Scores
from tunescope.evaluation.statistics import interval_of, without_width
from tunescope.evaluation.task import measure_task
from tunescope.inference import Item, score
from tunescope.judging import Judge, Judged, Samples, Unjudged
from tunescope.methods import Customized, Method
from tunescope.objectives import DPO, SFT, Objective, PreferenceObjective, Reward
from tunescope.objectives.reference import untouched

AnyRow = Row | Preference
# Completions of a prompt that a judge reads: one where settings are chosen, more where the choice is measured.
_CHOOSING, _TESTING = 1, 2


@dataclass(frozen=True)
class Limits:
    """How much is measured.

    Attributes:
        max_length: most tokens of a row, as in training.
        max_new_tokens: most tokens of a text that is written freely.
        validation_texts: of the validation rows so many are answered freely, where there are no labels.
        test_texts: the same of the test rows.
        unjudged: samples that a judge may fail on in one measurement.
    """

    max_length: int | None
    max_new_tokens: int
    validation_texts: int
    test_texts: int
    unjudged: int = 0


class Aim(ABC):
    """What candidates are trained for, and how that is measured.

    Args:
        objective: of what is trained.
        limits: of measuring.
    """

    metric: str
    """Name of the score."""
    task: str
    """Kind of it: classification, text, preferences, judged."""
    labels: tuple[str, ...] | None = None
    """Of a classification task."""

    def __init__(self, objective: Objective, limits: Limits) -> None:
        self.objective, self.limits = objective, limits

    def learned(self, kind: type[Method], rows: Sequence[Any]) -> tuple[Objective, list[Any]]:
        """What a method is trained for, and the rows it takes for that: prompting takes the best completions."""
        return (SFT(), [best(row) for row in rows]) if kind.trains == "nothing" else (self.objective, list(rows))

    def takes(self, kind: type[Method]) -> bool:
        """Whether a method can be measured by this aim."""
        return True

    @abstractmethod
    def measure(self, customized: Customized, rows: Sequence[Any], *, test: bool = False) -> Scores:
        """The score on validation rows, or on test rows."""

    @abstractmethod
    def card(
        self,
        customized: Customized,
        rows: Sequence[Any],
        probes: Probes | None,
        on_stage: Callable[[str], None],
    ) -> Card:
        """All that is measured on test rows: the score, what it costs and what was forgotten, as ``evaluate`` gives."""

    def look(self, plain: Customized, rows: Sequence[Any]) -> None:
        """As much work as measuring validation rows is: what the budget is planned by."""
        self.measure(plain, rows)

    def test_work(self, rows: int) -> float:
        """How many validation rows make as much work as so many test rows."""
        return float(rows)

    def validation_work(self, rows: int) -> int:
        """How many of so many validation rows are measured."""
        return rows


class AnswerAim(Aim):
    """To answer as the rows do: right labels, or texts that are near."""

    def __init__(self, objective: Objective, limits: Limits, labels: tuple[str, ...] | None) -> None:
        super().__init__(objective, limits)
        self.labels = labels
        self.metric = "accuracy" if labels else "chrf"
        self.task = "classification" if labels else "text"

    def measure(self, customized: Customized, rows: Sequence[Row], *, test: bool = False) -> Scores:
        """Whether the likeliest label is right, or chrF of what is written."""
        texts = self.limits.test_texts if test else self.limits.validation_texts
        found = measure_task(
            customized, rows, self.labels, generate_rows=0 if self.labels else texts,
            max_new_tokens=self.limits.max_new_tokens, max_length=self.limits.max_length,
        )  # fmt: skip
        return Scores(found.per_row, found.row_keys, found.nll_per_token, found.notes)

    def card(
        self, customized: Customized, rows: Sequence[Row], probes: Probes | None, on_stage: Callable[[str], None]
    ) -> Card:
        """What ``evaluate`` measures."""
        return evaluate(
            customized, rows, labels=self.labels, probes=probes, generate_rows=self.limits.test_texts,
            max_new_tokens=self.limits.max_new_tokens, max_length=self.limits.max_length, on_stage=on_stage,
        )  # fmt: skip


class PairAim(Aim):
    """To prefer the better of two completions: ``evaluation.preferred``."""

    metric = "preference_accuracy"
    task = "preferences"

    def __init__(self, objective: PreferenceObjective, limits: Limits) -> None:
        super().__init__(objective, limits)
        self._kept: dict[tuple[str, ...], PreferenceMeter] = {}

    def takes(self, kind: type[Method]) -> bool:
        """A reward model is trained; what is never trained gives no rewards."""
        return kind.trains != "nothing" or not isinstance(self.objective, Reward)

    def measure(self, customized: Customized, rows: Sequence[Preference], *, test: bool = False) -> Scores:
        """How often the better completion is preferred."""
        keys = tuple(row_keys(rows))
        if keys not in self._kept:
            assert isinstance(self.objective, PreferenceObjective)
            self._kept[keys] = PreferenceMeter(self.objective, rows, self.limits.max_length)
        return self._kept[keys].measure(customized)

    def card(
        self, customized: Customized, rows: Sequence[Preference], probes: Probes | None, on_stage: Callable[[str], None]
    ) -> Card:
        """How often the better completion is preferred, and what the customization costs."""
        peak_memory.reset_peak(customized.base.device)
        on_stage("preferences")
        found = self.measure(customized, rows, test=True)
        scored = _card(self.metric, found.per_row, found.row_keys, found.notes)
        if isinstance(self.objective, Reward):  # it writes nothing, so that latency and forgetting say nothing
            peak = round(peak_memory.peak_mb(customized.base.device), 1)
            return scored | {"trainable_parameters": customized.trainable_parameters, "peak_memory_mb": peak}
        return scored | _costs(customized, rows, probes, self.limits, on_stage)

    def look(self, plain: Customized, rows: Sequence[Preference]) -> None:
        """Score the completions, as the base."""
        encoder = Encoder(plain.base.tokenizer, plain.template, plain.base.context_length, self.limits.max_length)
        score(plain, [Item(each.prompt, each.completions) for each in encoder.encode_pairs(rows)])


class JudgeAim(Aim):
    """To write what a judge likes."""

    metric = "judge"
    task = "judged"

    def __init__(self, objective: Objective, limits: Limits, judge: Judge, seed: int) -> None:
        super().__init__(objective, limits)
        self._judge, self._seed = judge, seed

    def measure(self, customized: Customized, rows: Sequence[AnyRow], *, test: bool = False) -> Scores:
        """The judge's mean score of a prompt's samples."""
        rows = rows[: self.limits.test_texts if test else self.limits.validation_texts]
        samples, failed = self._sampled(customized, rows, _TESTING if test else _CHOOSING)
        return Scores(*self._scores(rows, samples, failed), None, failed.notes())

    def test_work(self, rows: int) -> float:
        """Test rows have more samples, and not all are asked."""
        return float(min(rows, self.limits.test_texts) * _TESTING / _CHOOSING)

    def validation_work(self, rows: int) -> int:
        """Not all are asked."""
        return min(rows, self.limits.validation_texts)

    def card(
        self, customized: Customized, rows: Sequence[AnyRow], probes: Probes | None, on_stage: Callable[[str], None]
    ) -> Card:
        """The judge's score, how far the samples are from the base's, and what the customization costs."""
        peak_memory.reset_peak(customized.base.device)
        on_stage("sampling")
        rows = rows[: self.limits.test_texts]
        samples, failed = self._sampled(customized, rows, _TESTING)
        moved = divergence(customized, untouched(customized), [best(row) for row in rows], samples)
        per_row, keys = self._scores(rows, samples, failed)
        firsts = {key: judged[0].text for key, judged in zip(row_keys(rows), samples, strict=True)}
        return (
            _card(self.metric, per_row, keys, failed.notes())
            | {"kl": float(moved.mean()), "answers": [firsts[key] for key in keys]}
            | _costs(customized, rows, probes, self.limits, on_stage)
        )

    def _sampled(
        self, customized: Customized, rows: Sequence[AnyRow], count: int
    ) -> tuple[list[list[Judged]], Unjudged]:
        failed = Unjudged(self.limits.unjudged)
        sampling = Samples(n=count, max_new_tokens=self.limits.max_new_tokens, seed=self._seed)
        return sampled(customized, [best(row) for row in rows], self._judge, sampling, failed), failed

    @staticmethod
    def _scores(
        rows: Sequence[AnyRow], samples: Sequence[Sequence[Judged]], failed: Unjudged
    ) -> tuple[list[float], list[str]]:
        """The mean score of each prompt that has any, and which prompts those are."""
        scores = [scores_of(judged) for judged in samples]
        keys = [key for key, own in zip(row_keys(rows), scores, strict=True) if own.size]
        if not keys:
            raise DataError("\n".join(["The judge has no score for any sample.", *failed.notes()]))
        return [float(own.mean()) for own in scores if own.size], keys


def aim_of(objective: Objective, rows: Sequence[AnyRow], limits: Limits, judge: Judge | None, seed: int) -> Aim:
    """The aim of an objective on these rows.

    Args:
        objective: of what is trained.
        rows: to learn from.
        limits: of measuring.
        judge: reads what is written; None for an aim without one.
        seed: of the samples.

    Raises:
        SettingError: an objective that methods are not compared for, or a judge that has nothing to read.
    """
    check_objective(objective, judged=judge is not None)
    if judge is not None:
        return JudgeAim(objective, limits, judge, seed)
    if isinstance(objective, PreferenceObjective):
        return PairAim(objective, limits)
    return AnswerAim(objective, limits, label_set([row for row in rows if isinstance(row, Row)]))


def check_objective(objective: Objective, *, judged: bool) -> None:
    """Refuse what methods are not compared for.

    Raises:
        SettingError: an objective that methods are not compared for, or a judge that has nothing to read.
    """
    if not isinstance(objective, SFT | DPO | Reward):
        raise SettingError("compare", "objective", f"{objective.name} is not compared yet: take sft, dpo or reward")
    if isinstance(objective, SFT) and objective.steer_columns:
        raise SettingError("compare", "steer_columns", "methods are not compared for steering yet: leave it out")
    if judged and isinstance(objective, Reward):
        raise SettingError("compare", "judge", "a reward model writes nothing that could be judged: leave it out")


def best(row: AnyRow) -> Row:
    """The row with the completion to learn from: the better one of a pair, the first one of a ranking."""
    return row if isinstance(row, Row) else row.best


def _card(metric: str, per_row: list[float], keys: list[str], notes: list[str]) -> Card:
    interval = interval_of(per_row, metric)
    return {
        "metric": metric,
        "rows": len(per_row),
        "score": sum(per_row) / len(per_row),
        "score_low": interval.low,
        "score_high": interval.high,
        "per_row": per_row,
        "answers": [],
        "row_keys": keys,
        "notes": [*notes, *without_width({"score": interval})],
    }


def _costs(
    customized: Customized,
    rows: Sequence[AnyRow],
    probes: Probes | None,
    limits: Limits,
    on_stage: Callable[[str], None],
) -> Card:
    """What ``measure_costs`` gives, and the tokens that the customization puts before every user text."""
    plain = [best(row) for row in rows]
    encoder = Encoder(customized.base.tokenizer, customized.template, customized.base.context_length, limits.max_length)
    extra = [encoded.extra for encoded in encoder.encode_all(plain)]
    costs = measure_costs(customized, plain, probes=probes, max_length=limits.max_length, on_stage=on_stage)
    return costs | {"extra_prompt_tokens": round(sum(extra) / max(len(extra), 1), 1)}
