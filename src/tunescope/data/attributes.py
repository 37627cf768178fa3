"""Attributes: named numbers that say what a completion is like, such as quality or verbosity, and the line of text that
asks a model for them (SteerLM: Dong et al. 2023, arXiv:2310.05344).

    quality:4,verbosity:1

A line names attributes in a fixed order, without spaces, as NeMo-Aligner writes it. In training it says what the
completion behind it is like; in service what it is to be like. The line belongs to the prompt and is never learned.

Wherever a row or request goes, its values go with it: in its last message, under ``attributes``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from tunescope.data.messages import Message, describe
from tunescope.data.reading import Table
from tunescope.errors import DataError, UnknownNameError
from tunescope.settings import Settings

KEY = "attributes"
"""Of a message, and of a column that holds an object of values."""
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""The attributes of HelpSteer (Wang et al. 2023, arXiv:2311.09528), each from 0 to 4."""


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, where all of them can name attributes.

    Raises:
        DataError: one that the line could not be read back with, or that is there twice.
    """
    try:
        return _names(names)
    except ValueError as error:
        raise DataError(f"{error}.") from None


def _names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not name or name != name.strip() or any(mark in name for mark in ":,=\n"):
            raise ValueError(
                f"{name!r} cannot name an attribute: a name has no : , = or line break and no space around it"
            )
    if len(set(names)) < len(names):
        raise ValueError("an attribute is named twice")
    return names


AttributeNames = Annotated[tuple[str, ...], AfterValidator(_names)]
"""Names of attributes, in the order of the line."""


class Attribute(Settings):
    """One attribute of a line."""

    name: str
    """As the line writes it."""
    default: int | None = None
    """What is asked for where a request says nothing; the line leaves the attribute out where there is none."""


class Steering(Settings):
    """How a customization is asked for attributes: part of its template."""

    attributes: tuple[Attribute, ...]
    """In the order of the line."""
    low: int = 0
    """The least value."""
    high: int = 4
    """The greatest value."""
    place: Literal["answer", "system"] = "answer"
    """Where the line stands: right before the answer, or at the end of the system text."""

    @model_validator(mode="after")
    def _check_names(self) -> Steering:
        _names(self.names)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of the attributes."""
        return tuple(each.name for each in self.attributes)

    @property
    def defaults(self) -> dict[str, int]:
        """What is asked for where nothing is said."""
        return {each.name: each.default for each in self.attributes if each.default is not None}

    def line(self, message: Message) -> str:
        """The line for the message that is answered: the values under its ``attributes`` and no others, or the defaults
        where it has none; empty where there is nothing to ask for.
        """
        values = message.get(KEY, self.defaults)
        return ",".join(f"{name}:{round(values[name])}" for name in self.names if name in values)

    def asked(self, values: Mapping[str, Any]) -> dict[str, int]:
        """What a request asks for, with the defaults beside it.

        Raises:
            DataError: an unknown attribute, or a value that is no whole number of the range.
        """
        for name, value in values.items():
            if name not in self.names:
                raise DataError(str(UnknownNameError("attribute", str(name), self.names)))
            if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
                raise DataError(f"{name} is {value!r}, expected a whole number from {self.low} to {self.high}.")
        return {**self.defaults, **values}

    def steered(self, messages: Sequence[Message], values: Mapping[str, Any]) -> list[Message]:
        """The messages, their last one with what is asked for.

        Raises:
            DataError: as ``asked``.
        """
        return [*messages[:-1], {**messages[-1], KEY: self.asked(values)}]


def parse_steer(text: str) -> dict[str, int]:
    """Values of a text such as ``quality=4,verbosity=1``.

    Raises:
        DataError: anything else.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        try:
            number = int(value)
        except ValueError:
            equals = ""
        if not equals or not name or name in found:
            raise DataError(f"{text!r} does not say which attributes are asked for: write quality=4,verbosity=1.")
        found[name] = number
    return found


@dataclass(frozen=True)
class Columns:
    """The columns of a table that hold attributes; so do the keys of objects in a column ``attributes``.

    Attributes:
        names: of the attributes.
        low: the least value.
        high: the greatest value.
        scale_from: the range that the table's values have; they are mapped on ``low`` to ``high``. None takes them as
            they are.
    """

    names: tuple[str, ...]
    low: int = 0
    high: int = 4
    scale_from: tuple[float, float] | None = None

    def check(self, table: Table) -> None:
        """Refuse a table that lacks an attribute.

        Raises:
            DataError: naming it and the columns there are.
        """
        held: set[str] = set()
        for row in table.rows:
            held |= set(row)
            if isinstance(own := row.get(KEY), Mapping):
                held |= set(own)
        if missing := [name for name in self.names if name not in held]:
            raise DataError(
                f"{table.path} has no values for {', '.join(missing)}: each is a column, or a key of an object in a "
                f"column attributes. The columns are {', '.join(sorted(table.columns))}."
            )

    def rest(self, table: Table) -> Table:
        """The table without them, for whoever says which columns were not read."""
        own = {*self.names, KEY}
        rows = [{name: value for name, value in row.items() if name not in own} for row in table.rows]
        return replace(table, rows=rows)

    def values(self, fields: Mapping[str, Any]) -> dict[str, float] | str:
        """The attributes that a row has a value for, or why the row is bad."""
        own = fields.get(KEY)
        inner: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
        found: dict[str, float] = {}
        for name in self.names:
            value = _number(fields.get(name))
            value = _number(inner.get(name)) if value is None else value
            if isinstance(value, str):
                return f"{name} is {value}, expected a number"
            if value is None:
                continue
            low, high = self.scale_from or (self.low, self.high)
            if not low <= value <= high:
                remedy = "" if self.scale_from else "; say another range, or scale from one"
                return f"{name} is {value:g}, out of the range {low:g} to {high:g}{remedy}"
            found[name] = self.low + (value - low) * (self.high - self.low) / (high - low)
        return found or f"has no value for any of {', '.join(self.names)}"


def check_vary(names: Iterable[str], values: Sequence[Mapping[str, float]], source: str) -> None:
    """Refuse attributes that nothing can be learned of.

    Raises:
        DataError: one that no row has, or that is the same in all.
    """
    for name in names:
        found = {own[name] for own in values if name in own}
        if len(found) < 2:
            what = f"is {next(iter(found)):g} in every row" if found else "has no value in any row"
            raise DataError(f"{source}: {name} {what}, so there is nothing to learn of it: leave it out.")


def usual(name: str, values: Sequence[Mapping[str, float]]) -> int:
    """What rows have on average, rounded: what to ask for where nothing is said."""
    return round(mean(own[name] for own in values if name in own))


def _number(value: Any) -> float | str | None:
    """A cell as a number, None where it is empty, or what it is instead."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool):
        return describe(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return describe(value)
    if math.isnan(number):
        return None
    return number if math.isfinite(number) else describe(value)
