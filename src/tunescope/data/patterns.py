"""Patterns such as ``"{sentence} sentiment: {label}"``: how the columns of a row become a prompt and a completion."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from tunescope.errors import DataError

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|([{}])")


@dataclass(frozen=True)
class Pattern:
    """A pattern, understood. Every ``{name}`` is a column, whatever its characters; ``{{`` and ``}}`` are braces.

    Attributes:
        text: as written.
        fields: the columns that make the prompt, each once, in order.
        target: the column that is the completion: the pattern's last field.
        head: what stands before ``target``, as (text, column or None) in order: the text, then the column's value.
    """

    text: str
    fields: tuple[str, ...]
    target: str
    head: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Understand a pattern.

        Raises:
            DataError: a brace without its partner, fewer than two fields, or text after the last one.
        """
        pieces: list[tuple[str, str | None]] = []
        literal, done = "", 0
        for match in _PIECE.finditer(text):
            name, lone = match.groups()
            if lone:
                raise DataError(
                    f"Template {text!r} has a {lone} without its partner (character {match.start() + 1}). Write {{{{ "
                    "and }} for braces that are text."
                )
            literal += text[done : match.start()]
            done = match.end()
            if name is None:
                literal += match.group()[0]
                continue
            pieces.append((literal, name))
            literal = ""
        if len(pieces) < 2 or (literal + text[done:]).strip() or not all(name and name.strip() for _, name in pieces):
            raise DataError(
                f"Template {text!r} must name at least one input field and end in the field to learn, as in "
                '"{sentence} sentiment: {label}".'
            )
        before, target = pieces.pop()
        assert target is not None  # a piece is a field and the text before it
        fields = dict.fromkeys(name for _, name in pieces if name is not None)
        return cls(text, tuple(fields), target, (*pieces, (before, None)))

    def render(self, row: Mapping[str, Any]) -> str:
        """The prompt of a row: the pattern up to the completion, with the row's values in it."""
        return "".join(literal + ("" if name is None else str(row[name])) for literal, name in self.head)

    def check(self, columns: Collection[str], *, target: bool) -> None:
        """Refuse a pattern that names a column which is not there.

        Args:
            columns: those there are.
            target: whether the completion's column must be there too.

        Raises:
            DataError: with the nearest columns.
        """
        needed = {*self.fields, self.target} if target else set(self.fields)
        missing = sorted(needed - set(columns))
        if not missing:
            return
        close = {near for name in missing for near in get_close_matches(name, columns, n=1, cutoff=0.5)}
        hint = f" Did you mean {' and '.join('{' + name + '}' for name in sorted(close))}?" if close else ""
        raise DataError(
            f"the template names {', '.join(missing)}, but the columns are {', '.join(sorted(columns))}.{hint} Write "
            "{{ and }} for braces that are text."
        )
