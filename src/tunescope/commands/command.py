"""What a command is: settings that say what it takes, and a method that does it.

The command line, a recipe, Python and a server use the same objects. A command's settings may hold other settings: a
method's, an objective's, the loop's. Where they are written side by side, as flags or as keys of a recipe, each stands
under its own name; ``Command.flat`` puts them where they belong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict
from pydantic.fields import FieldInfo

from tunescope.commands.report import Report
from tunescope.errors import SettingError, UnknownNameError
from tunescope.registry import Registry
from tunescope.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Result:
    """What a command leaves.

    Attributes:
        values: all of it, as JSON has it.
        path: what was written, if anything: a bank entry, a file or a folder. Later stages of a recipe take it up.
        facts: what a reader is shown, by name; ``values`` by default.
    """

    values: Any
    path: Path | None = None
    facts: Mapping[str, Any] | None = None

    def show(self, console: Console) -> None:
        """Print it for people."""
        from tunescope.commands.show import print_facts

        print_facts(console, self.values if self.facts is None else self.facts)


@dataclass(frozen=True)
class Part:
    """Settings that are written beside a command's own.

    Attributes:
        settings: their class.
        leave_out: fields that are not to be given.
    """

    settings: type[Settings]
    leave_out: frozenset[str] = field(default_factory=frozenset)

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """Those that may be given, by name."""
        return {name: info for name, info in self.settings.model_fields.items() if name not in self.leave_out}


class Command(Settings):
    """Base class of what a command takes. Its docstring is the command's help, its fields are the flags."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    choices: ClassVar[Mapping[str, Registry]] = {}
    """Fields that name a class of settings, which is then a part: ``method``."""
    suffix: ClassVar[str] = ""
    """How the name of what it writes ends, where it writes a file."""

    def run(self, report: Report | None = None) -> Result:
        """Do it.

        Args:
            report: hears of notes and progress; by default notes are logged as warnings.

        Raises:
            TunescopeError: what cannot be done, and what to do about it.
        """
        raise NotImplementedError

    @classmethod
    def parts(cls, chosen: Mapping[str, Any]) -> dict[str, Part]:
        """The settings beside the command's own, by field; ``chosen`` has the names of ``choices`` that were given.

        Raises:
            UnknownNameError: a name that is none, with the nearest ones.
        """
        return {}

    @classmethod
    def own_fields(cls) -> dict[str, FieldInfo]:
        """Fields that are not parts, by the name they are given under (an alias where there is one)."""
        return {
            info.alias or name: info
            for name, info in cls.model_fields.items()
            if name in cls.choices or not _is_settings(info.annotation)
        }

    @classmethod
    def known(cls, values: Mapping[str, Any]) -> set[str]:
        """The names that may be given beside these choices, its parts' among them."""
        parts = cls.parts(cls._chosen(values)).values()
        return {*cls.own_fields(), *(name for part in parts for name in part.fields)}

    @classmethod
    def flat(cls, values: Mapping[str, Any]) -> Self:
        """The command of settings that stand side by side, its own and its parts'.

        Raises:
            UnknownNameError: a name of none of them.
            SettingError: a value that is none, one that is missing, or a setting of another choice than was made.
        """
        chosen = cls._chosen(values)
        parts, own = cls.parts(chosen), cls.own_fields()
        missing = [name for name, info in own.items() if info.is_required() and name not in values]
        if missing:
            raise SettingError(cls.__name__, missing[0], "is missing")
        given: dict[str, Any] = {}
        inner: dict[str, dict[str, Any]] = {name: {} for name in parts}
        for name, value in values.items():
            if name in own:
                given[name] = value
            elif holder := next((part for part in parts if name in parts[part].fields), None):
                inner[holder][name] = value
            else:
                cls._refuse(name, chosen, [*own, *(each for part in parts.values() for each in part.fields)])
        built = {name: part.settings.parse(inner[name]) for name, part in parts.items()}
        return cls.parse(given | built)

    @classmethod
    def _chosen(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """The choices that are made.

        Raises:
            SettingError: one that is no name.
        """
        found = {name: values[name] for name in cls.choices if values.get(name) is not None}
        for name, value in found.items():
            if not isinstance(value, str):
                raise SettingError(cls.__name__, name, f"expected a name, got {value!r}")
        return found

    @classmethod
    def _refuse(cls, name: str, chosen: Mapping[str, Any], known: Iterable[str]) -> None:
        for choice, registry in cls.choices.items():
            for other in registry.names():
                if any(name in part.fields for part in cls.parts({**chosen, choice: other}).values()):
                    now = chosen.get(choice) or cls.model_fields[choice].get_default(call_default_factory=True).name
                    raise SettingError(
                        cls.__name__, name, f"belongs to {choice} {other}, and this is {now}: leave one of them out"
                    )
        raise UnknownNameError(f"setting of {cls.__name__}", name, known)


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Settings)
