"""Judges that are a function of the user's, asked for one completion at a time or for all at once."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunescope.data.rows import Message, Row
from tunescope.errors import TunescopeError

_FORMS = "(prompt, completion), (prompt, completion, answer), (prompts, completions) or (prompts, completions, answers)"


def load_function(name: str, module: str, attribute: str) -> Function:
    """The function of a module, which may lie in the current folder.

    Raises:
        TunescopeError: it cannot be imported, is no function, or takes other parameters.
    """
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
    return Function(name, found)


class Function:
    """A function of the user's. The names of its parameters say how it is asked.

    ``prompts, completions`` (and ``answers``): once, with lists, for a list of numbers. Where such a call raises or
    returns another number of numbers, it is made again for one completion at a time, so that those it fails on are
    known. Any other two parameters (and a third, ``answer``): for one completion at a time, for a number.

    A prompt is a text, or a list of messages where there are several. An answer is the row's known one.

    Args:
        name: ``module:function``.
        function: takes prompts and completions.

    Attributes:
        needs_answers: whether it takes answers.

    Raises:
        TunescopeError: parameters that it cannot be called with.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self._function = name, function
        parameters = _parameters(function)
        self._batched = bool({"prompts", "completions"} & parameters.keys())
        self.needs_answers = ("answers" if self._batched else "answer") in parameters
        asked = self._many([], []) if self._batched else self._one(None, "", None)
        try:
            inspect.signature(function).bind(*asked[0], **asked[1])
        except ValueError:  # what is built in has no signature to look at
            return
        except TypeError as error:
            raise TunescopeError(
                f"The judge {name} cannot be called: {error}. A function of {_FORMS} is one; what else it takes needs "
                "a default."
            ) from error

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """What the function returns, where that is finite numbers."""
        if not self._batched:
            return [self._alone(row, text) for row, text in zip(rows, completions, strict=True)]
        found = self._together(rows, completions)
        if isinstance(found, list):
            return found
        if len(completions) > 1:
            alone = [self._together([row], [text]) for row, text in zip(rows, completions, strict=True)]
            if any(isinstance(each, str) for each in alone):
                return [each if isinstance(each, str) else each[0] for each in alone]
        return [found] * len(completions)  # no single one is at fault

    def _alone(self, row: Row, completion: str) -> float | str:
        positions, names = self._one(prompt_of(row.messages), completion, row.completion)
        try:
            value = self._function(*positions, **names)
        except (Exception, SystemExit) as error:
            return _raised(error)
        return _number(value)

    def _together(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str] | str:
        """The scores, or why there are none."""
        positions, names = self._many(rows, completions)
        try:
            value = self._function(*positions, **names)
            if not isinstance(value, Iterable) or isinstance(value, str | bytes | Mapping):
                return f"the judge returned {type(value).__name__}, expected a list of numbers"
            values = list(value)
        except (Exception, SystemExit) as error:
            return _raised(error)
        if len(values) != len(completions):
            return f"the judge was given {_count(completions, 'completion')} and returned {_count(values, 'number')}"
        return [_number(each) for each in values]

    def _one(self, prompt: Any, completion: str, answer: str | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (prompt, completion), ({"answer": answer} if self.needs_answers else {})

    def _many(self, rows: Sequence[Row], completions: Sequence[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = {"prompts": [prompt_of(row.messages) for row in rows], "completions": list(completions)}
        return (), given | ({"answers": [row.completion for row in rows]} if self.needs_answers else {})


def prompt_of(messages: Sequence[Message]) -> str | list[Message]:
    """A prompt as people write it: its text, or its messages where there is more than one."""
    return messages[0]["content"] if len(messages) == 1 else list(messages)


def _parameters(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(function).parameters
    except (ValueError, TypeError):
        return {}


def _number(value: Any) -> float | str:
    try:
        score = float(value)
    except Exception:  # also a number that is too large, and whatever the object's own conversion raises
        return f"the judge returned {type(value).__name__}, expected a number"
    return score if math.isfinite(score) else f"the judge returned {score}"


def _raised(error: BaseException) -> str:
    return f"the judge raised {type(error).__name__}: {error}"


def _count(items: Sequence[Any], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"
