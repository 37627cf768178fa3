"""The folder of an unfinished run: its checkpoints and metrics, beside the entry that is to come."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import storage
from tunescope.bank import Record
from tunescope.errors import TeamError, TrainingError
from tunescope.team import Team, this_team
from tunescope.training.checkpoint import FILE as CHECKPOINT
from tunescope.training.checkpoint import has_checkpoint
from tunescope.training.learner import SAMPLES, SAMPLES_PAGE
from tunescope.training.metrics import METRICS, METRICS_BESIDE

RECIPE = "recipe.json"
UNFINISHED = storage.Kind(
    "unfinished run", unsealed=(RECIPE, METRICS, METRICS_BESIDE, SAMPLES, SAMPLES_PAGE, CHECKPOINT)
)
# Files of a run that lie in the entry, too.
_KEPT = (METRICS, SAMPLES, SAMPLES_PAGE)
# Of these parts of a record it is said that they differ, and not in what.
_WHOLE = ("start", "continued")
# Where the learners of a run with several keep theirs.
_PARTS = "parts"


@dataclass
class Unfinished:
    """A run's folder.

    Attributes:
        folder: where its checkpoints and metrics lie.
        pauses: the run is to go on in a later call, so the folder stays.
    """

    folder: Path
    pauses: bool = False


def recipe_of(record: Record) -> dict[str, Any]:
    """What an unfinished run must have in common with the call that goes on with it."""
    return dict(json.loads(record.model_dump_json(exclude={"tunescope", "training", "card"})))


def kept_files(folder: Path) -> dict[str, str]:
    """What of a run's folder is kept with its entry, by file name."""
    return {name: (folder / name).read_text(encoding="utf-8") for name in _KEPT if (folder / name).is_file()}


def work_folder(out: Path) -> Path:
    """Where an entry's unfinished run keeps its checkpoints and metrics."""
    out = storage.resolved(out)
    return out.parent / ".training" / out.name


@contextmanager
def unfinished_run(out: str | Path | None, recipe: Mapping[str, Any], *, restart: bool) -> Iterator[Unfinished]:
    """The folder of an unfinished run, removed when the run ends well and kept when it pauses or fails.

    In a team of processes the first one makes and removes it, and the others read there.

    Args:
        out: what the run makes; None for a run that is kept in memory, whose folder is temporary.
        recipe: what the run is; one that goes on must be the same.
        restart: drop what is there.

    Raises:
        TrainingError: an unfinished run with another recipe, or processes that do not do the same.
    """
    team = this_team()
    if out is None:
        _agree(team, recipe)
        with tempfile.TemporaryDirectory(prefix="tunescope-") as temporary:
            yield Unfinished(Path(temporary))
        return
    if not team.writes:
        _agree(team, recipe)
        yield Unfinished(work_folder(Path(out)))
        return
    folder = work_folder(Path(out))
    if restart or not _has_checkpoints(folder):  # a run that kept nothing binds nobody to its settings
        storage.remove_folder(folder, UNFINISHED)
    folder = storage.claim_folder(folder, UNFINISHED)
    if _has_checkpoints(folder):
        before = storage.read_state(folder / RECIPE, lambda text: dict(json.loads(text)), "Start over with --restart.")
        if differing := _differences(before, recipe):
            raise TrainingError(
                f"An unfinished run of {out} had other settings ({', '.join(differing)}). Give the same settings to go "
                "on with it, or --restart to start over."
            )
    storage.atomic_write(folder / RECIPE, json.dumps(recipe, indent=2))
    _agree(team, recipe)
    run = Unfinished(folder)
    try:
        yield run
    except BaseException:
        if not _has_checkpoints(folder):
            _remove(folder)
        raise
    if not run.pauses:
        _remove(folder)


def forget_run(out: str | Path) -> None:
    """Remove what an unfinished run of ``out`` left, if there is one. The caller holds ``out``."""
    if (folder := work_folder(Path(out))).exists():
        _remove(folder)


def part_of_run(folder: Path, name: str) -> Path:
    """A learner's own folder in that of a run with several."""
    if not this_team().writes:
        return folder / _PARTS / name
    return storage.claim_folder(folder / _PARTS / name, UNFINISHED)


def _agree(team: Team, recipe: Mapping[str, Any]) -> None:
    """Wait for the others of a team, and see that all do the same run.

    Raises:
        TeamError: one has other settings or data, which are named.
    """
    first, *others = team.gathered(recipe)
    for rank, other in enumerate(others, 1):
        if differing := _differences(first, other):
            raise TeamError(
                f"Process {rank + 1} of {team.size} does another run than the first one ({', '.join(differing)}): "
                "start all of them with the same settings and data."
            )


def _has_checkpoints(folder: Path) -> bool:
    """Whether the run, or one of its parts, left a checkpoint."""
    parts = (folder / _PARTS).iterdir() if (folder / _PARTS).is_dir() else ()
    return any(map(has_checkpoint, (folder, *parts)))


def _remove(folder: Path) -> None:
    storage.remove_folder(folder, UNFINISHED)
    with suppress(OSError):  # other unfinished runs lie there too
        folder.parent.rmdir()


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The settings that differ, each once, by their own name."""
    found = []
    for key in new:
        if old.get(key) == new[key]:
            continue
        if key not in _WHOLE and isinstance(new[key], dict) and isinstance(old.get(key), dict):
            found += _differences(old[key], new[key])
        else:
            found.append(key)
    return list(dict.fromkeys(found))
