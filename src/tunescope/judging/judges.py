"""Judges, which score completions: a built-in measure, a function of the user's, or a reward model of a bank."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tunescope import bank
from tunescope.base import Base
from tunescope.data.rows import Message
from tunescope.errors import BankError, TunescopeError, UnknownNameError
from tunescope.inference import reward_scores
from tunescope.methods import Customized
from tunescope.objectives import Reward

SENTIMENT = "sentiment"


class Judge(Protocol):
    """Gives completions of one prompt their scores; higher is better.

    Attributes:
        name: what the user called it.
    """

    name: str

    def __call__(self, messages: Sequence[Message], completions: Sequence[str]) -> list[float | str]:
        """A finite score for each completion, or in words why it has none."""


def load_judge(name: str, base: Base) -> Judge:
    """The judge of a name.

    Args:
        name: ``sentiment``; ``module:function`` for ``function(prompt, completion) -> float``, where the prompt is a
            text, or a list of messages where there are several, and the module may lie in the current folder; or
            ``BANK/NAME`` for a reward model.
        base: what a reward model is loaded on.

    Raises:
        UnknownNameError: none of these.
        TunescopeError: a function that cannot be imported or called.
        BankError: an entry that is damaged, of another base, or no reward model.
    """
    if name == SENTIMENT:
        return Sentiment()
    folder = os.path.expanduser(name)  # noqa: PTH111 (pathlib's raises for an unknown user)
    if (Path(folder) / bank.RECORD).is_file():
        return RewardModel(folder, base)
    module, colon, attribute = name.partition(":")
    if colon and module and attribute:
        return Function(name, _function(name, module, attribute))
    raise UnknownNameError("judge (neither module:function, nor an entry of a bank, nor built in)", name, [SENTIMENT])


class Sentiment:
    """How positive a completion sounds, from -1 to 1: VADER's compound score (Hutto and Gilbert 2014), a lexicon with
    rules. Whoever optimizes against it learns to sound positive and nothing else, which makes it a good exercise.
    """

    name = SENTIMENT

    def __init__(self) -> None:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

        self._analyzer = SentimentIntensityAnalyzer()

    def __call__(self, messages: Sequence[Message], completions: Sequence[str]) -> list[float | str]:
        """The compound scores."""
        return [float(self._analyzer.polarity_scores(text)["compound"]) for text in completions]


class Function:
    """A function of the user's, asked for one completion at a time, so that its failures can be told apart.

    Args:
        name: ``module:function``.
        function: takes prompt and completion, returns a number.
    """

    def __init__(self, name: str, function: Callable[[Any, str], Any]) -> None:
        self.name, self._function = name, function

    def __call__(self, messages: Sequence[Message], completions: Sequence[str]) -> list[float | str]:
        """What the function returns, where that is a finite number."""
        prompt = prompt_of(messages)
        return [self._score(prompt, text) for text in completions]

    def _score(self, prompt: Any, completion: str) -> float | str:
        try:
            value = self._function(prompt, completion)
        except (Exception, SystemExit) as error:
            return f"the judge raised {type(error).__name__}: {error}"
        try:
            score = float(value)
        except Exception:  # also a number that is too large, and whatever the object's own conversion raises
            return f"the judge returned {type(value).__name__}, expected a number"
        return score if math.isfinite(score) else f"the judge returned {score}"


class RewardModel:
    """A reward model of a bank, on the same base object as what it judges where their precision is the same.

    Args:
        name: folder of the entry.
        base: it must be made for this one.
    """

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

    def __call__(self, messages: Sequence[Message], completions: Sequence[str]) -> list[float | str]:
        """The rewards."""
        found = reward_scores(self._model, [messages] * len(completions), completions, max_length=self._max_length)
        return [reward if math.isfinite(reward) else f"the reward is {reward}" for reward in found]


def prompt_of(messages: Sequence[Message]) -> str | list[Message]:
    """A prompt as people write it: its text, or its messages where there is more than one."""
    return messages[0]["content"] if len(messages) == 1 else list(messages)


def _function(name: str, module: str, attribute: str) -> Callable[[Any, str], Any]:
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look there, and that is where the user's file lies
        sys.path.append(here)  # last, so that no file lying there stands for an installed module
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # also what the module itself raises
        raise TunescopeError(f"The judge {name} cannot be imported: {type(error).__name__}: {error}.") from error
    if not callable(found):
        raise TunescopeError(
            f"The judge {name} is {type(found).__name__}, expected a function of prompt and completion that returns a "
            "number."
        )
    return found
