"""Flags from settings: each field of a settings class is an option, its docstring the help."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from tunescope.errors import TunescopeError
from tunescope.settings import Settings


def with_settings(
    function: Callable[..., None], classes: Mapping[str, type[Settings]], leave_out: Iterable[str] = ()
) -> Callable[..., None]:
    """A command whose parameters are ``function``'s own and a flag for each field of ``classes``.

    Args:
        function: called with its own parameters, and for each key of ``classes`` a settings object of that class.
        classes: parameter of ``function`` -> settings class.
        leave_out: fields that are no flags.
    """
    own = inspect.signature(function, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.name not in classes]
    field_of: dict[str, tuple[str, FieldInfo]] = {}
    for key, settings in classes.items():
        for name, field in settings.model_fields.items():
            if name not in leave_out:
                field_of[name] = (key, field)
                parameters.append(_parameter(name, field, panel=f"{settings.__name__} settings"))

    def command(**given: Any) -> None:
        values: dict[str, dict[str, Any]] = {key: {} for key in classes}
        for name, (key, field) in field_of.items():
            value = given.pop(name)
            if value is not None:
                values[key][name] = _parse(name, field, value)
        function(**given, **{key: _settings(classes[key], found) for key, found in values.items()})

    command.__signature__ = own.replace(parameters=_ordered(parameters))  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    return command


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m`` or ``1h30m``.

    Raises:
        TunescopeError: anything else, and no time at all.
    """
    parts = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not parts or not any(parts.groups()):
        raise TunescopeError(f"{text!r} is not a duration: write 90s, 10m or 1h30m.")
    seconds = sum(float(value) * unit for value, unit in zip(parts.groups(), (3600, 60, 1), strict=True) if value)
    if not 0 < seconds < math.inf:
        raise TunescopeError(f"{text!r} is no stretch of time to work in: give at least a second, as in 90s or 10m.")
    return seconds


def _settings(kind: type[Settings], found: Mapping[str, Any]) -> Settings:
    """The settings object; an error names the flag that was typed and not the field behind it."""
    try:
        return kind.parse(found)
    except TunescopeError as error:
        field = rf"^{kind.__name__}\.(\w+)(?:\.\d+)?"  # the number is an index into a list
        message = re.sub(field, lambda match: "--" + match[1].replace("_", "-"), str(error))
        raise TunescopeError(message) from None


def _ordered(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    """All by keyword, so that required ones may follow those with defaults."""
    return [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    kind, default = _plain(field.annotation), field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        shown = ",".join(map(str, default)) or None
    elif isinstance(default, dict):
        shown = ",".join(f"{key}={value}" for key, value in default.items()) or None
    else:
        shown = default
    option = typer.Option(help=field.description, rich_help_panel=panel, show_default=shown is not None)
    annotation: Any = Annotated[kind if shown is not None else kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=annotation)


def _plain(annotation: Any) -> Any:
    """The type a flag has: the one under ``| None``; text for lists (comma-separated) and maps (key=value)."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    return str if get_origin(annotation) in (tuple, dict) else annotation


def _parse(name: str, field: FieldInfo, value: Any) -> Any:
    kinds = {get_origin(a) for a in (field.annotation, *get_args(field.annotation))}
    if tuple in kinds and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if dict in kinds and isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if bad := [key for key, sign, _ in pairs if not sign]:
            raise TunescopeError(f"--{name.replace('_', '-')}: {bad[0]!r} is not key=value.")
        return {key.strip(): text.strip() for key, _, text in pairs}
    return value
