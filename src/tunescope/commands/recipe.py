"""A recipe: commands in a YAML file, each a stage that may use what earlier ones made.

    out: runs/tone                  # the folder that stages write to
    base: smollm2-135m              # a setting of every stage that has it
    stages:
      sft:
        command: train
        method: lora
        data: rows.jsonl
      dpo:
        command: train
        method: lora
        objective: dpo
        data: pairs.jsonl
        from: ${sft}                # what the stage sft wrote

A stage's keys are the flags of its command. A file without ``stages`` is one command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.commands import request
from tunescope.commands.command import Command
from tunescope.commands.yaml_file import mapping, read_yaml
from tunescope.errors import SettingError, TunescopeError, UnknownNameError

_NAME = re.compile(r"[A-Za-z][\w-]*")
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


class RecipeError(TunescopeError):
    """A recipe that cannot be run as it is written."""


@dataclass(frozen=True)
class Stage:
    """A command of a recipe.

    Attributes:
        name: of the stage.
        title: the command as it is typed.
        command: its settings, references replaced by the paths they stand for.
        uses: the earlier stages that it refers to.
        path: what it writes, or the entry that it works on; None where there is neither.
    """

    name: str
    title: str
    command: Command
    uses: tuple[str, ...]
    path: Path | None

    @property
    def writes(self) -> bool:
        """Whether ``path`` is what it writes."""
        return getattr(self.command, "out", None) is not None


@dataclass(frozen=True)
class Recipe:
    """Stages in their order.

    Attributes:
        file: where they are written down.
        out: the folder of their ledger, and of what they write unless they say otherwise; None for one command.
        stages: at least one.
    """

    file: Path
    out: Path | None
    stages: tuple[Stage, ...]


def read_recipe(file: Path) -> Recipe:
    """Read a recipe, and check all of it that can be checked before anything runs.

    Raises:
        RecipeError: no YAML, a key twice, no stages, a stage or a setting that is unknown, missing or bad, a reference
            to a stage that is not there or comes later, or two stages that write the same.
    """
    content = _mapping(read_yaml(file), str(file))
    if "stages" not in content:
        kind = _kind(str(file), content)
        command = _built(str(file), kind, {key: value for key, value in content.items() if key != "command"})
        return Recipe(file, None, (Stage(content["command"], content["command"], command, (), path_of(command)),))
    if not isinstance(content.get("out"), str):
        raise RecipeError(f"{file}: name the folder that its stages write to, as in out: runs/{file.stem}")
    return _Reader(file, content).recipe()


def path_of(command: Command) -> Path | None:
    """What a command writes, or else the entry that it works on."""
    return getattr(command, "out", None) or getattr(command, "entry", None)


class _Reader:
    """Makes the stages of a recipe, in their order.

    Args:
        file: where they are written down.
        content: of the file.
    """

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.out = file, Path(content["out"]).expanduser()
        self.shared = {key: value for key, value in content.items() if key not in ("stages", "out")}
        self.given = _mapping(content["stages"], f"{file}: stages")
        self.made: dict[str, Stage] = {}
        self.taken: set[str] = set()

    def recipe(self) -> Recipe:
        """All of it."""
        for name, given in self.given.items():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise RecipeError(f"{self.file}: {name!r} is no name of a stage: use letters, digits, - and _.")
            where = f"{self.file}, stage {name}"
            stage = self._stage(where, name, _mapping(given, where))
            self._check_out(where, stage)
            self.made[name] = stage
        if unknown := sorted(set(self.shared) - self.taken):
            raise RecipeError(f"{self.file}: {unknown[0]} is a setting of no stage. Known beside them: out, stages.")
        return Recipe(self.file, self.out, tuple(self.made.values()))

    def _stage(self, where: str, name: str, given: Mapping[str, Any]) -> Stage:
        kind, uses = _kind(where, given), dict[str, None]()

        def path(reference: re.Match[str]) -> str:
            uses[reference[1]] = None
            return self._path(where, reference[1])

        own = {key: _replaced(value, path) for key, value in given.items() if key != "command"}
        with _named(where):
            known = kind.known({**self.shared, **own})
        shared = {key: _replaced(value, path) for key, value in self.shared.items() if _key(key) in known}
        self.taken |= set(shared)
        if "out" in known:
            own.setdefault("out", str(self.out / f"{name}{kind.suffix}"))
        command = _built(where, kind, {**shared, **own})
        return Stage(name, given["command"], command, tuple(uses), path_of(command))

    def _path(self, where: str, name: str) -> str:
        """What a reference stands for."""
        if name not in self.made:
            if name in self.given:
                raise RecipeError(f"{where}: uses {name}, which does not come before it. Move it there.")
            raise RecipeError(f"{where}: {UnknownNameError('stage', name, self.made)}")
        if self.made[name].path is None:
            raise RecipeError(f"{where}: uses {name}, which leaves no entry, file or folder to use.")
        return str(self.made[name].path)

    def _check_out(self, where: str, stage: Stage) -> None:
        for other in self.made.values():
            if stage.writes and other.writes and stage.path == other.path:
                raise RecipeError(f"{where}: writes {stage.path}, as {other.name} does. Give it an out of its own.")


def _replaced(value: Any, path: Callable[[re.Match[str]], str]) -> Any:
    """The value with every reference replaced, those in a list too."""
    if isinstance(value, str):
        return _REFERENCE.sub(path, value)
    return [_replaced(each, path) for each in value] if isinstance(value, list) else value


def _kind(where: str, given: Mapping[str, Any]) -> type[Command]:
    """The class of the command that is named."""
    title = given.get("command")
    if not isinstance(title, str):
        raise RecipeError(f"{where}: name its command, as in command: train")
    if title == "run":
        raise RecipeError(f"{where}: a recipe runs no recipe. Write its stages here.")
    with _named(where):
        kind: type[Command] = request(title)
    return kind


def _built(where: str, kind: type[Command], settings: Mapping[str, Any]) -> Command:
    with _named(where):
        return kind.flat({_key(key): tuple(each) if isinstance(each, list) else each for key, each in settings.items()})


def _key(key: Any) -> str:
    """A key as settings have it: flags are often copied with their dashes."""
    return str(key).replace("-", "_")


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Have errors name the place in the recipe."""
    try:
        yield
    except SettingError as error:
        raise RecipeError(f"{where}: {error.named(error.field)}") from None
    except RecipeError:
        raise
    except TunescopeError as error:
        raise RecipeError(f"{where}: {error}") from None


def _mapping(value: Any, what: str) -> dict[Any, Any]:
    return mapping(value, what, "command: train")
