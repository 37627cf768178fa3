"""The one way settings are declared: frozen, strict, documented by the docstring under each field.

A typo in a setting is an error with a suggestion, never ignored; the command line makes its flags and their help from
these fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tunescope.errors import SettingError, TunescopeError, UnknownNameError

# A number of dimensions: far more than any layer has, and few enough to count with.
MOST = 1_000_000


@dataclass(frozen=True)
class Shown:
    """How a field looks on the command line, where it is no plain flag.

    Attributes:
        metavar: what stands for its value in the help.
        positional: it is an argument; one that is a list takes all that follow.
        repeated: a flag that may be given several times, for texts that may hold a comma.
        escapes: a typed ``\\n`` is meant as a line break: shells pass it on as two characters.
    """

    metavar: str | None = None
    positional: bool = False
    repeated: bool = False
    escapes: bool = False


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m`` or ``1h30m``.

    Raises:
        ValueError: anything else, and no time at all.
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not parts or not any(parts.groups()):
        raise ValueError("not a duration: write 90s, 10m or 1h30m")
    seconds = sum(float(value) * unit for value, unit in zip(parts.groups(), (3600, 60, 1), strict=True) if value)
    if not 0 < seconds < math.inf:
        raise ValueError("no stretch of time to work in: give at least a second, as in 90s or 10m")
    return seconds


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _any(values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        raise ValueError("names nothing: give at least one")
    return values


Names = Annotated[tuple[str, ...], BeforeValidator(_several), AfterValidator(_any), Shown("NAME", repeated=True)]
"""Names that may hold a comma: one, or a list; a flag that may be given several times."""


def _seconds(value: Any) -> Any:
    return duration(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0), Shown("DURATION")]
"""Seconds, or a text such as ``10m``."""


class Settings(BaseModel):
    """Base of every configuration object: immutable, unknown fields refused, docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _readable(type(self).__name__, type(self).model_fields, error) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Build from a plain mapping, for example one read from JSON.

        Raises:
            TunescopeError: naming the field that is unknown or has a bad value.
        """
        return cls(**values)


def _readable(settings_name: str, fields: Mapping[str, Any], error: ValidationError) -> TunescopeError:
    first = error.errors()[0]
    field, *place = [str(part) for part in first["loc"]] or [""]
    if first["type"] == "extra_forbidden":
        return UnknownNameError(f"setting of {settings_name}", field, fields)
    reason = first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")  # JSON has no tuples
    if not field:
        return TunescopeError(f"{settings_name}: {reason}.")
    if first["type"] == "missing":
        return SettingError(settings_name, field, "is missing")
    where = [f"item {int(part) + 1}" if part.isdigit() else part for part in place]
    within = f" ({', '.join(where)})" if where else ""
    return SettingError(settings_name, field, f"{reason}, got {first['input']!r}{within}")
