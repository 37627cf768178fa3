"""The one way settings are declared: frozen, strict, documented by the docstring under each field.

A typo in a setting is an error with a suggestion, never ignored; the command line makes its flags and their help from
these fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tunescope.errors import TunescopeError, UnknownNameError

# A number of dimensions: far more than any layer has, and few enough to count with.
MOST = 1_000_000


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
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UnknownNameError(f"setting of {settings_name}", where, fields)
    reason = first["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")  # JSON has no tuples
    what = f"{settings_name}.{where}" if where else settings_name
    return TunescopeError(f"{what}: {reason}, got {first['input']!r}." if where else f"{what}: {reason}.")
