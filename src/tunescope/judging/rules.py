"""Judges that are a rule: a pattern that is searched, the known answer, a length to keep to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import regex

from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.errors import TunescopeError

EXACT = "exact"
# How each rule is written.
RULES = (EXACT, "regex:PATTERN", "tokens:N", "words:N")
# A pattern can take exponential time in the length of a text. A sane one takes microseconds.
_SECONDS = 1.0


def load_rule(name: str, base: Base) -> Exact | Regex | Length | None:
    """The rule of a name; None where it names none.

    Args:
        name: one of ``RULES``.
        base: whose tokens are counted.

    Raises:
        TunescopeError: a pattern that is none, or a length that is no whole number from 1.
    """
    kind, colon, argument = name.partition(":")
    if name == EXACT:
        return Exact()
    if colon and kind == "regex":
        return Regex(name, argument)
    if colon and kind in ("tokens", "words"):
        if not (argument.isascii() and argument.isdigit() and int(argument)):
            raise TunescopeError(
                f"The judge {name}: {argument!r} is no length. Write {kind}:40 for texts of 40 {kind}."
            )
        return Length(name, int(argument), _words if kind == "words" else _tokens_of(base))
    return None


class Exact:
    """1 where a completion is the row's known answer, but for white space around both; 0 elsewhere."""

    name, needs_answers = EXACT, True

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """Ones and zeros."""
        known = [(row.completion or "").strip() for row in rows]
        return [float(text.strip() == answer) for text, answer in zip(completions, known, strict=True)]


class Regex:
    """1 where a regular expression is found anywhere in a completion, 0 elsewhere.

    Args:
        name: as the user wrote it.
        pattern: Python's syntax, and what the package ``regex`` adds.

    Raises:
        TunescopeError: it is none.
    """

    needs_answers = False

    def __init__(self, name: str, pattern: str) -> None:
        self.name = name
        if not pattern:
            raise TunescopeError("The judge regex: has no pattern. Write regex:PATTERN, as in regex:\\bTHE END\\b.")
        try:
            self._pattern = regex.compile(pattern)
        except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise TunescopeError(f"The judge {name}: its pattern does not compile: {error}.") from error

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """Ones and zeros; a search that is not over within a second has failed."""
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> float | str:
        try:
            return float(self._pattern.search(text, timeout=_SECONDS) is not None)
        except TimeoutError:
            return f"the pattern was searched for {_SECONDS:g} s without an end"


class Length:
    """How far from a length a completion is: -|n - N| / N. So N scores 0, nothing at all -1, and twice N -1.

    Args:
        name: as the user wrote it.
        target: N.
        count: n of a text.
    """

    needs_answers = False

    def __init__(self, name: str, target: int, count: Callable[[str], int]) -> None:
        self.name, self._target, self._count = name, target, count

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        """0 and below."""
        return [-abs(self._count(text) - self._target) / self._target for text in completions]


def _words(text: str) -> int:
    return len(text.split())


def _tokens_of(base: Base) -> Callable[[str], int]:
    return lambda text: len(base.tokenizer(text, add_special_tokens=False)["input_ids"])
