"""Judges, which score completions: a measure, a rule, a function of the user's, a reward model of a bank, or a weighted
sum of such.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from tunescope import bank
from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.errors import BankError, DataError, TunescopeError, UnknownNameError
from tunescope.inference.rewards import outputs_that_fit, rewards_that_fit
from tunescope.judging.functions import load_function
from tunescope.judging.rules import RULES, load_rule
from tunescope.methods import Customized
from tunescope.objectives import Attributes, Reward
from tunescope.objectives.attributes import HEAD

SENTIMENT = "sentiment"
_NAMED = 10  # lines in one message
# Below this an attribute model's error on held-out rows is taken for luck, in the attribute's own units.
_LEAST_ERROR = 0.1


class Judge(Protocol):
    """Gives completions their scores; higher is better.

    Attributes:
        name: what the user called it.
        needs_answers: whether every row must have a known answer, its completion.
    """

    name: str
    needs_answers: bool

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """A finite score for each completion, or in words why it has none.

        Args:
            rows: of each completion the row whose prompt it answers.
            completions: in any order; scores come in the same one.
        """


def load_judge(names: str | Sequence[str], base: Base) -> Judge:
    """The judge of a name, or the weighted sum of several.

    Args:
        names: each ``sentiment``; a rule (``exact``, ``regex:PATTERN``, ``tokens:N``, ``words:N``);
            ``module:function`` (see ``Function``); or ``BANK/NAME`` for a reward model, or for an attribute model's
            log-likelihood of what rows ask for. ``0.5*NAME`` weighs it by 0.5.
        base: what a reward model is loaded on, and whose tokens are counted.

    Raises:
        UnknownNameError: none of these.
        TunescopeError: a weight that is zero or not finite, a name given twice, none at all, a pattern that is none, or
            a function that cannot be imported or called.
        BankError: an entry that is damaged, of another base, or no reward model.
    """
    names = [names] if isinstance(names, str) else names
    if not names:
        raise TunescopeError("No judge is named: give at least one.")
    parts = [(*_weighted(name), name.strip()) for name in names]
    loaded = [(weight, _load(name, base)) for weight, name, _ in parts]
    if len(loaded) == 1 and loaded[0][0] == 1:
        return loaded[0][1]
    return Sum(" + ".join(written for _, _, written in parts), loaded)


def check_answers(judge: Judge, rows: Iterable[Row]) -> None:
    """Refuse rows that a judge cannot compare anything with.

    Raises:
        DataError: it needs known answers, and rows have none; by their lines.
    """
    missing = [str(row.number) for row in rows if not row.completion] if judge.needs_answers else []
    if missing:
        shown = ", ".join(missing[:_NAMED]) + (" …" if len(missing) > _NAMED else "")
        raise DataError(
            f"The judge {judge.name} compares completions with each row's known answer, and {len(missing)} rows have "
            f"none (lines {shown}). Give it in the column completion, in a last turn of the assistant, or in the last "
            "field of --template."
        )


def scores_by_part(judge: Judge, rows: Sequence[Row], completions: Sequence[str]) -> dict[str, list[float | str]]:
    """A judge's scores as ``reward``; of a sum also those of each part, before weighting, as ``reward/PART``."""
    if not isinstance(judge, Sum):
        return {"reward": judge(rows, completions)}
    found = judge.each(rows, completions)
    parts = {f"reward/{part.name}": scores for (_, part), scores in zip(judge.parts, found, strict=True)}
    return {"reward": judge.total(found), **parts}


def reward_model_in(judge: Judge) -> tuple[float, RewardModel] | None:
    """The one reward model that a judge is or has among its parts, and its weight; None where there is none, or
    several.
    """
    parts = judge.parts if isinstance(judge, Sum) else [(1.0, judge)]
    models = [(weight, part) for weight, part in parts if isinstance(part, RewardModel)]
    return models[0] if len(models) == 1 else None


class Sentiment:
    """How positive a completion sounds, from -1 to 1: VADER's compound score (Hutto and Gilbert 2014), a lexicon with
    rules. Whoever optimizes against it learns to sound positive and nothing else, which makes it a good exercise.
    """

    name, needs_answers = SENTIMENT, False

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """The compound scores."""
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in completions]


class RewardModel:
    """A reward model of a bank, on the same base object as what it judges where their precision is the same.

    Args:
        name: folder of the entry.
        base: it must be made for this one.

    Raises:
        BankError: it is damaged, of another base, or no reward model.
    """

    needs_answers = False

    def __init__(self, name: str, base: Base) -> None:
        record = bank.read_record(Path(name))
        if record.objective != Reward.name:
            raise BankError(
                f"{name} was trained for {record.objective or 'nothing'} and gives no rewards. As a judge name an "
                "entry that was trained with --objective reward."
            )
        self.name = name
        self._model: Customized = bank.load(Path(name), base)
        self._max_length = (record.train_settings or {}).get("max_length")

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """The rewards, of all completions in as few passes as they need."""
        prompts = [row.messages for row in rows]
        found = rewards_that_fit(self._model, prompts, completions, max_length=self._max_length)
        return [_reward(each) for each in found]


class AttributeLikelihood:
    """How likely an attribute model finds what was asked for: log P(a | x, y), in nats, with a Gaussian about each of
    its values, as wide as its root mean square error on held-out rows.

        Σ_i  -(â_i(x, y) - a_i)² / 2σ_i²  -  log(σ_i √2π)

    over the attributes i that the row asks for (``Row.attributes``).

    Args:
        name: folder of the entry.
        base: it must be made for this one.

    Raises:
        BankError: it is damaged, of another base, no attribute model, or was never measured on held-out rows.
    """

    needs_answers = False

    def __init__(self, name: str, base: Base) -> None:
        record = bank.read_record(Path(name))
        measured = (record.card or {}).get("attributes")
        if not measured:
            raise BankError(
                f"How far {name} is from held-out labels was never measured, so its likelihood has no width: run "
                f"tunescope eval {name} --data HELD_OUT once."
            )
        if (record.card or {}).get("trained_on"):
            raise BankError(
                f"{name} was measured on the rows it was trained on, which says nothing about its width: run tunescope "
                f"eval {name} --data HELD_OUT."
            )
        objective = Attributes.parse(record.objective_settings)
        self.name, self.names, self.low, self.high = name, objective.columns, objective.low, objective.high
        self._sigma = {key: max(float(own["rmse"]), _LEAST_ERROR) for key, own in measured.items()}
        self._model: Customized = bank.load(Path(name), base)
        self._max_length = (record.train_settings or {}).get("max_length")

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """The log-likelihoods."""
        written = [replace(row, completion=text) for row, text in zip(rows, completions, strict=True)]
        found = outputs_that_fit(self._model, written, HEAD, self._max_length)
        return [self._likelihood(row, outputs) for row, outputs in zip(rows, found, strict=True)]

    def _likelihood(self, row: Row, outputs: list[float] | None) -> float | str:
        if outputs is None:
            return "it leaves no room for its prompt in the attribute model's tokens"
        if unknown := [name for name in row.attributes if name not in self._sigma]:
            return f"{self.name} does not know {unknown[0]}, which is asked for"
        if not row.attributes:
            return "its prompt asks for no attributes"
        said = dict(zip(self.names, outputs, strict=True))
        return sum(
            -0.5 * ((said[name] - asked) / self._sigma[name]) ** 2 - math.log(self._sigma[name] * math.sqrt(math.tau))
            for name, asked in row.attributes.items()
        )


class Sum:
    """Several judges, weighted. What one of its parts cannot score has no score.

    Args:
        name: as the user wrote it.
        parts: weights, and whose scores they multiply.

    Raises:
        TunescopeError: a part that is named twice.
    """

    def __init__(self, name: str, parts: Sequence[tuple[float, Judge]]) -> None:
        self.name, self.parts = name, list(parts)
        self.needs_answers = any(part.needs_answers for _, part in parts)
        seen = [part.name for _, part in parts]
        if twice := [each for each in seen if seen.count(each) > 1]:
            raise TunescopeError(f"The judge {twice[0]} is named twice: name it once, with the sum of its weights.")

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """The sums."""
        return self.total(self.each(rows, completions))

    def each(self, rows: Sequence[Row], completions: Sequence[str]) -> list[list[float | str]]:
        """The scores of each part, before weighting."""
        return [part(rows, completions) for _, part in self.parts]

    def total(self, scores: Sequence[Sequence[float | str]]) -> list[float | str]:
        """The sums over the scores of the parts."""
        return [self._total(of_one) for of_one in zip(*scores, strict=True)]

    def _total(self, scores: Sequence[float | str]) -> float | str:
        total = 0.0
        for (weight, part), score in zip(self.parts, scores, strict=True):
            if isinstance(score, str):
                return f"{part.name}: {score}"
            total += weight * score
        return total if math.isfinite(total) else f"the sum is {total}"


def _weighted(name: str) -> tuple[float, str]:
    """The weight in front of a name, and the name."""
    text, star, rest = name.partition("*")
    try:
        weight = float(text)
    except ValueError:  # no weight; a star is the name's own
        return 1.0, name.strip()
    if not star:
        return 1.0, name.strip()
    if not math.isfinite(weight) or weight == 0:
        raise TunescopeError(f"The judge {name.strip()}: {text.strip()} is no weight. Give a number other than 0.")
    return weight, rest.strip()


def _load(name: str, base: Base) -> Judge:
    if name == SENTIMENT:
        return Sentiment()
    if rule := load_rule(name, base):
        return rule
    folder = str(bank.entry_folder(os.path.expanduser(name)))  # noqa: PTH111 (pathlib's raises for an unknown user)
    if (Path(folder) / bank.RECORD).is_file():
        attributes = bank.read_record(folder).objective == Attributes.name
        return AttributeLikelihood(folder, base) if attributes else RewardModel(folder, base)
    module, _, attribute = name.partition(":")
    if attribute.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return load_function(name, module, attribute)
    raise UnknownNameError(
        "judge (neither module:function, nor an entry of a bank, nor built in)", name, [SENTIMENT, *RULES]
    )


def _reward(reward: float | None) -> float | str:
    if reward is None:
        return "it leaves no room for its prompt in the reward model's tokens"
    return reward if math.isfinite(reward) else f"the reward is {reward}"
