"""Flags from settings: each field of a command's settings is an option, its docstring the help."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from tunescope.cli.output import Output
from tunescope.commands.command import Command, Part
from tunescope.errors import SettingError, TunescopeError
from tunescope.settings import Shown

_GIVEN = "tunescope.given"
_METAVARS = {int: "INTEGER", float: "FLOAT", Path: "PATH", dict: "NAME=VALUE,…", tuple: "LIST"}
_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


class SettingsCommand(click.Command):
    """A command of the command line, made from a class of settings.

    Whatever may have a meaning is parsed, the settings of every objective among it. Which of them have one is known
    when all is read: ``--help`` shows these, and others are refused with the reason.

    Args:
        name: as it is typed.
        request: the class.
        fixed: choices that are made already: ``{"method": "lora"}`` of ``train lora``.
        text: the help; the docstring of ``request`` by default.
    """

    def __init__(
        self, name: str, request: type[Command], fixed: Mapping[str, str] | None = None, text: str | None = None
    ) -> None:
        self.request, self.fixed = request, dict(fixed or {})
        self.own = {key: info for key, info in request.own_fields().items() if key not in self.fixed}
        fields = {**self._possible(), **self.own}
        self.fields = {**self.own, **fields}  # the command's own come first
        params: list[click.Parameter] = [
            _parameter(key, info, required=key in self.own and info.is_required(), pair=key not in self.own)
            for key, info in self.fields.items()
        ]
        said = "Print one JSON object for machines; progress goes to stderr."
        params.append(click.Option(["--json", "as_json"], is_flag=True, help=said))
        super().__init__(name, params=params, help=text or request.__doc__, callback=self._run)

    def _possible(self) -> dict[str, FieldInfo]:
        """The fields of the parts that there are by any choice that is still open."""
        chosen: list[dict[str, str]] = [self.fixed]
        for choice, registry in self.request.choices.items():
            if choice not in self.fixed:
                chosen = [{**each, choice: name} for each in chosen for name in registry.names()]
        parts = [part for each in chosen for part in self.request.parts(each).values()]
        return {key: info for part in reversed(parts) for key, info in part.settings.model_fields.items()}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; what was given is kept for the help, which may be asked for before a choice."""
        ctx.meta[_GIVEN] = self.make_parser(ctx).parse_args(list(args))[0]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then those of each of its parts under a heading."""
        given = ctx.meta.get(_GIVEN, {})
        chosen = {name: given[name] for name in self.request.choices if given.get(name) is not None}
        params = [param for param in self.get_params(ctx) if param.name in self.own or param.name not in self.fields]
        _write(formatter, "Arguments", [_argument_help(param) for param in params if isinstance(param, click.Argument)])
        _write(formatter, "Options", [p.get_help_record(ctx) for p in params if isinstance(p, click.Option)])
        for part in self.request.parts(self.fixed | chosen).values():
            options = [_parameter(key, info, pair=True) for key, info in part.fields.items()]
            _write(formatter, _title(part), [option.get_help_record(ctx) for option in options])

    def _run(self, as_json: bool, **values: Any) -> None:
        output = Output(as_json)
        source = click.get_current_context().get_parameter_source
        given = {
            name: _value(name, self.fields[name], value, output.note)
            for name, value in values.items()
            if source(name) is click.core.ParameterSource.COMMANDLINE and value != ()
        }
        try:
            result = self.request.flat(self.fixed | given).run(output)
        except SettingError as error:
            raise error.named(flag(error.field)) from None
        if result.values is not None:
            output.part(result)


def flag(name: str) -> str:
    """How a setting is typed."""
    return "--" + name.replace("_", "-")


def _title(part: Part) -> str:
    return f"{part.settings.__name__.removesuffix('Settings')} settings"


def _write(formatter: click.HelpFormatter, title: str, records: list[tuple[str, str] | None]) -> None:
    if found := [record for record in records if record is not None]:
        with formatter.section(title):
            formatter.write_dl(found)


def _parameter(name: str, info: FieldInfo, *, required: bool = False, pair: bool) -> click.Parameter:
    """An option, or an argument where the field says so. ``pair``: a switch has a ``--no-`` form too."""
    kind, shown = _plain(info.annotation), _shown(info)
    metavar = shown.metavar or (f"[{'|'.join(kind)}]" if isinstance(kind, tuple) else _METAVARS.get(kind, "TEXT"))
    if shown.positional:
        many = -1 if kind is tuple else 1
        made = click.Argument([name], metavar=metavar, nargs=many, required=info.is_required())
        made.help_text = info.description  # type: ignore[attr-defined]
        return made
    help_text = (info.description or "") + ("" if required else _default(info))
    if kind is bool:
        both = f"{flag(name)}/--no-{flag(name)[2:]}" if pair else flag(name)
        return click.Option([both, name], is_flag=True, help=help_text)
    return click.Option([flag(name), name], metavar=metavar, required=required, multiple=shown.repeated, help=help_text)


def _argument_help(argument: click.Argument) -> tuple[str, str]:
    return argument.make_metavar(click.get_current_context()), getattr(argument, "help_text", None) or ""


def _default(info: FieldInfo) -> str:
    """What holds where nothing is given, in brackets."""
    if info.is_required():
        return "  [required]"
    default = info.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    elif isinstance(default, dict):
        default = ",".join(f"{key}={value}" for key, value in default.items())
    elif hasattr(default, "name"):  # a method or an objective
        default = default.name
    return "" if default is None or default is False or default == "" else f"  [default: {default}]"


def _shown(info: FieldInfo) -> Shown:
    return next((each for each in info.metadata if isinstance(each, Shown)), Shown())


def _plain(annotation: Any) -> Any:
    """The type of a flag's value: the one under ``| None``, ``tuple`` or ``dict``, or the texts of a ``Literal``."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        annotation = get_args(annotation)[0]
    return get_origin(annotation) or annotation


def _value(name: str, info: FieldInfo, value: Any, note: Callable[[str], None]) -> Any:
    """What was typed, as settings take it: lists are separated by commas, maps are key=value."""
    kind = _plain(info.annotation)
    if _shown(info).escapes:
        several = isinstance(value, tuple | list)
        return tuple(_typed(name, each, note) for each in value) if several else _typed(name, value, note)
    if kind is tuple and isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if kind is dict:
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if bad := [key for key, sign, _ in pairs if not sign]:
            raise TunescopeError(f"{flag(name)}: {bad[0]!r} is not key=value.")
        return {key.strip(): text.strip() for key, _, text in pairs}
    return value


def _typed(name: str, value: str, note: Callable[[str], None]) -> str:
    """A text as it was meant: shells pass a typed ``\\n`` on as two characters. Says so where it changes."""
    meant = re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], value)
    if meant != value:
        note(f"In {flag(name)} \\n is read as a line break, \\t as a tab and \\\\ as a backslash.")
    return meant
