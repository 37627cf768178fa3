"""``run``: the stages of a recipe, each once."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tunescope import storage
from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.recipe import Recipe, Stage, read_recipe
from tunescope.commands.report import Report
from tunescope.commands.show import finite
from tunescope.commands.yaml_file import read_mixture
from tunescope.errors import TunescopeError, UnknownNameError
from tunescope.locks import writing
from tunescope.settings import Settings, Shown
from tunescope.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

LEDGER = "run.json"
# Settings that change how a stage runs, and not what comes out.
_NOT_COMPARED = {"restart", "overwrite", "device"}
# A function as judges and rewards are named.
_FUNCTION = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_]\w*$")


@dataclass(frozen=True)
class Ran(Result):
    """What the stages of a recipe left."""

    def show(self, console: Console) -> None:
        """A line a stage."""
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("stage", "command", "state", "seconds", "path"):
            table.add_column(name)
        for stage in self.values["stages"]:
            seconds = stage.get("seconds")
            shown = "" if seconds is None else f"{seconds:.1f}"
            table.add_row(stage["name"], stage["command"], stage["state"], shown, stage["path"] or "")
        console.print(table)


class RunRequest(Command):
    """Run what a recipe says: one command, or stages of which each uses what earlier ones made.

    All is checked before anything runs. A stage that is finished is not run again; one that was killed goes on where it
    was when the same call is made again.
    """

    file: Annotated[fields.HomePath, Shown("FILE", positional=True)]
    """The recipe, a .yaml file."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""
    restart: Annotated[tuple[str, ...], Shown("STAGES")] = ()
    """Stages to run again, comma-separated, and with them those that use what they made; all for every stage."""

    def run(self, report: Report | None = None) -> Result:
        """Run the stages that are not finished, in their order."""
        report, recipe = report or Report(), read_recipe(self.file)
        if recipe.out is None:
            return self._run_alone(recipe.stages[0], report)
        if self.dry_run:
            ledger = _Ledger(recipe, self._again(recipe))
            return Ran(self._values(recipe, [ledger.planned(stage) for stage in recipe.stages]))
        with writing(recipe.out):
            ledger = _Ledger(recipe, self._again(recipe))
            for stage in recipe.stages:
                ledger.check(stage)
            done = []
            for number, stage in enumerate(recipe.stages, start=1):
                report.stage(f"{stage.name}: {stage.title}", number, len(recipe.stages))
                done.append(ledger.finished(stage) or self._run_stage(ledger, stage, report))
                if done[-1]["state"] == "ran":
                    ledger.renew(stage)
        return Ran(self._values(recipe, done), recipe.out)

    def _run_alone(self, stage: Stage, report: Report) -> Result:
        if self.restart:
            raise TunescopeError(f"{self.file} is one command, without stages: --restart has no meaning. Leave it out.")
        if not self.dry_run:
            return stage.command.run(report)
        path = str(stage.path) if stage.path else None
        values = {"name": stage.name, "command": stage.title, "path": path, "state": "to run"}
        return Ran({"recipe": str(self.file), "stages": [values | {"settings": described(stage.command)}]})

    def _values(self, recipe: Recipe, stages: list[dict[str, Any]]) -> dict[str, Any]:
        return {"recipe": str(recipe.file), "out": str(recipe.out), "stages": stages}

    def _again(self, recipe: Recipe) -> set[str]:
        """The stages to run again: those that were named, and those that use them."""
        names = [stage.name for stage in recipe.stages]
        again = set(names) if self.restart == ("all",) else set(self.restart)
        for name in self.restart:
            if name not in (*names, "all"):
                raise UnknownNameError("stage", name, names)
        for stage in recipe.stages:
            if again & set(stage.uses):
                again.add(stage.name)
        return again

    def _run_stage(self, ledger: _Ledger, stage: Stage, report: Report) -> dict[str, Any]:
        command, started = ledger.begin(stage), time.monotonic()
        try:
            result = command.run(report)
        except TunescopeError as error:
            error.args = (f"Stage {stage.name}: {error}",)
            raise
        if report.pieces:
            report.part(result)
        return ledger.keep(stage, result, time.monotonic() - started)


class _Ledger:
    """What of a recipe is done, kept in a file in its folder.

    Args:
        recipe: the stages.
        again: names of stages that are to run again.

    Raises:
        TunescopeError: the file is damaged, or none of ours.
    """

    def __init__(self, recipe: Recipe, again: set[str]) -> None:
        assert recipe.out is not None  # a recipe of one command has no ledger
        self._file = recipe.out / LEDGER
        self._stages: dict[str, dict[str, Any]] = {}
        if self._file.exists():
            remedy = "Choose another out in the recipe, or remove the file to run every stage."
            self._stages = storage.read_state(self._file, lambda text: dict(json.loads(text)["stages"]), remedy)
        self._recipe, self._again = recipe, again
        self._asked = {stage.name: _asked(stage, recipe) for stage in recipe.stages}

    def check(self, stage: Stage) -> None:
        """See that what was finished is what is asked for now.

        Raises:
            TunescopeError: naming what differs, and the remedy.
        """
        if differing := self._differing(stage):
            raise TunescopeError(
                f"{self._recipe.file}, stage {stage.name}: it was finished with other settings "
                f"({', '.join(differing)}). Run it again with --restart {stage.name}, or give it another name."
            )

    def finished(self, stage: Stage) -> dict[str, Any] | None:
        """What a finished stage left; None for one that is to run."""
        kept = self._stages.get(stage.name, {})
        gone = stage.path is not None and not _is_there(stage.path)
        if stage.name in self._again or "values" not in kept or gone or self._differing(stage):
            return None
        return self._shown(stage, "finished")

    def renew(self, stage: Stage) -> None:
        """Have those stages run again that used what a stage made before it was made anew."""
        for other in self._recipe.stages:
            if stage.name in other.uses and "values" in self._stages.get(other.name, {}):
                self._again.add(other.name)

    def planned(self, stage: Stage) -> dict[str, Any]:
        """What would be done with a stage."""
        if found := self.finished(stage):
            return found | {"settings": described(stage.command)}
        kept = self._stages.get(stage.name, {})
        state = "to run again" if stage.name in self._again else "to run"
        if "values" not in kept and kept and stage.name not in self._again:
            state = "to go on"
        elif differing := self._differing(stage):
            state = f"finished with other settings ({', '.join(differing)})"
        return self._named(stage) | {"state": state, "settings": described(stage.command)}

    def begin(self, stage: Stage) -> Command:
        """The command to run: it replaces what an earlier run of this stage made, and nothing else."""
        before = self._stages.get(stage.name)
        ours = before is not None and before["ours"]
        free = stage.path is None or not _is_there(stage.path)
        self._stages[stage.name] = {"asked": self._asked[stage.name], "ours": ours or free}
        self._write()
        changes: dict[str, Any] = {}
        if ours and "overwrite" in type(stage.command).model_fields:
            changes["overwrite"] = True
        if stage.name in self._again and before is not None and "restart" in type(stage.command).model_fields:
            changes["restart"] = True
        return stage.command.model_copy(update=changes)

    def keep(self, stage: Stage, result: Result, seconds: float) -> dict[str, Any]:
        """Note that a stage is finished."""
        self._stages[stage.name] |= {"values": finite(result.values), "seconds": round(seconds, 1)}
        self._again.discard(stage.name)
        self._write()
        return self._shown(stage, "ran")

    def _differing(self, stage: Stage) -> list[str]:
        kept = self._stages.get(stage.name, {})
        if stage.name in self._again or "values" not in kept:
            return []
        before, now = kept["asked"], self._asked[stage.name]
        return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]

    def _shown(self, stage: Stage, state: str) -> dict[str, Any]:
        kept = self._stages[stage.name]
        values = kept["values"] if isinstance(kept["values"], dict) else {"values": kept["values"]}
        return values | self._named(stage) | {"seconds": kept["seconds"], "state": state}

    @staticmethod
    def _named(stage: Stage) -> dict[str, Any]:
        return {"name": stage.name, "command": stage.title, "path": str(stage.path) if stage.path else None}

    def _write(self) -> None:
        content = {"tunescope": __version__, "stages": self._stages}
        storage.atomic_write(self._file, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def described(settings: Settings) -> dict[str, Any]:
    """All settings of a command, its parts' in their own place."""
    found: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            named = {"name": value.name} if hasattr(value, "name") else {}
            found[name] = named | described(value)
        else:
            found[name] = value if value is None or isinstance(value, bool | int | float) else _plain(value)
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, bool | int | float) or value is None else str(value)


def _asked(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    """What a stage depends on, by name: its settings, the files it reads, and the stages it uses."""
    made = {str(each.path) for each in recipe.stages if each.path is not None}
    asked: dict[str, Any] = {"command": stage.title}
    for name, value in described(stage.command).items():
        if isinstance(value, dict):
            asked |= {f"{name}.{inner}": found for inner, found in value.items()}
        elif name not in _NOT_COMPARED:
            asked[name] = value
            if isinstance(value, str) and not _is_made(value, made) and (content := _content(Path(value))):
                asked[f"{name} (its content)"] = content
        for path in _read_beside(value):
            if not _is_made(str(path), made) and (content := _content(path)):
                asked[f"{path} (its content)"] = content
    return asked


def _is_there(path: Path) -> bool:
    """Whether there is a file or a folder, or a task's entry in a table."""
    if path.exists() or ":" not in path.name:
        return path.exists()
    from tunescope import bank

    with suppress(UnknownNameError):
        return bank.entry_folder(path).exists()
    return False


def _is_made(value: str, made: Collection[str]) -> bool:
    """Whether a stage makes what a setting names: an entry, a file, or the table of a task's entry."""
    return value in made or value.rpartition(":")[0] in made


def _read_beside(value: Any) -> Iterator[Path]:
    """Files that a setting names without being one: those of a list, also behind ``NAME=``, modules of functions in the
    current folder, data of a mixture.
    """
    if isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _read_beside(each)
            if isinstance(each, str) and not isinstance(value, Mapping):
                yield Path(each.rpartition("=")[2])
    if not isinstance(value, str):
        return
    if module := _FUNCTION.search(value):
        yield Path(*module[1].split(".")).with_suffix(".py")
    if Path(value).suffix in (".yaml", ".yml"):
        with suppress(TunescopeError):  # the stage says what is wrong when it runs
            mixture = read_mixture(Path(value))
            named = [*mixture.tasks.values(), *([mixture.general] if mixture.general is not None else [])]
            yield from (Path(task.data) for task in named)


def _content(path: Path) -> str | None:
    """A hash of a file, or of an entry of a bank but for what was measured of it; None for what is neither."""
    from tunescope import bank

    try:
        if path.is_file():
            return storage.sha256_file(path)
        if not ((path := bank.entry_folder(path)) / bank.RECORD).is_file():
            return None
    except (OSError, ValueError, UnknownNameError):  # a text that is no path, a task that is not there
        return None
    record = bank.read_record(path).model_dump_json(exclude={"card"})
    return hashlib.sha256(record.encode()).hexdigest()
