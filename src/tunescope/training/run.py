"""A whole run: from a base, a method, an objective and rows to a customization, and to a bank entry."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import torch

from tunescope import bank, storage
from tunescope.bank import BaseRecord, DataRecord, Record
from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.data.encoding import Encoder
from tunescope.data.inputs import Source, understand
from tunescope.data.rankings import Preference
from tunescope.data.rows import Row
from tunescope.errors import TrainingError
from tunescope.methods import Customized, Method
from tunescope.objectives import SFT, Objective
from tunescope.training.checkpoint import FILE as CHECKPOINT
from tunescope.training.checkpoint import has_checkpoint
from tunescope.training.learner import SAMPLES, SAMPLES_PAGE, Learner
from tunescope.training.loop import train_loop
from tunescope.training.metrics import METRICS, METRICS_BESIDE, StepMetrics
from tunescope.training.policy import learners_of
from tunescope.training.result import TrainResult
from tunescope.training.settings import TrainSettings
from tunescope.training.start import find_start, pattern_of
from tunescope.training.trackers import tracked
from tunescope.version import __version__

# Rows that a prompting method looks at to see how completions join their prompts.
_LOOKED_AT = 256
RECIPE = "recipe.json"
UNFINISHED = storage.Kind(
    "unfinished run", unsealed=(RECIPE, METRICS, METRICS_BESIDE, SAMPLES, SAMPLES_PAGE, CHECKPOINT)
)
# Files of a run that lie in the entry, too.
_KEPT = (METRICS, SAMPLES, SAMPLES_PAGE)
# Of these parts of a record it is said that they differ, and not in what.
_WHOLE = ("start", "continued")
_P = ParamSpec("_P")


@dataclass
class Trained:
    """What a run leaves.

    Attributes:
        customized: ready to use, in evaluation mode.
        record: its certificate.
        result: what the loop measured.
        path: the bank entry, or None when none was asked for.
        notes: what happened to rows (cut, dropped), in words.
    """

    customized: Customized
    record: Record
    result: TrainResult
    path: Path | None
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The object that ``train --json`` prints."""
        return {**self.result.summary(), "path": str(self.path) if self.path else None}


def rows_hash(rows: Sequence[Row] | Sequence[Preference]) -> str:
    """SHA-256 over what the rows say, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.content, ensure_ascii=False).encode())
    return digest.hexdigest()


def _one_writer(run: Callable[_P, Trained]) -> Callable[_P, Trained]:
    """Hold ``out``, where one is given, for all of a run."""

    @functools.wraps(run)
    def held(*given: _P.args, **named: _P.kwargs) -> Trained:
        out = named.get("out")
        if out is None:
            return run(*given, **named)
        with bank.claimed(Path(str(out)), overwrite=bool(named.get("overwrite"))):
            return run(*given, **named)

    return held


@_one_writer
def train(
    base: Base,
    method: Method,
    objective: Objective | None = None,
    data: Source | Sequence[Row] | Sequence[Preference] = (),
    *,
    settings: TrainSettings | None = None,
    out: str | Path | None = None,
    pattern: str | None = None,
    style: str = "auto",
    skip_bad: int = 0,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    validation: Source | Sequence[Row] | Sequence[Preference] | None = None,
    start: str | Path | Trained | None = None,
    continued: str | Path | Trained | None = None,
    restart: bool = False,
    overwrite: bool = False,
    on_step: Callable[[StepMetrics], object] = lambda metrics: None,
) -> Trained:
    """Customize ``base`` by ``method``.

    A run that was interrupted or killed goes on when the same call is made again: its checkpoints lie beside the entry,
    in ``.training``, until it ends. While it goes, no other run can write the same entry.

    Args:
        base: frozen; a method that moves weights moves those of a copy.
        method: what is trained, for example ``LoRA(rank=8)``.
        objective: what for; ``SFT()`` by default.
        data: what ``read`` takes (a file, a built-in set, a hub id), a table, or mappings from column to value, whose
            columns ``pattern`` or a convention explains; or rows or pairs, as the objective wants them.
        settings: of the loop.
        out: the bank entry to write; None keeps the result in memory only.
        pattern: see ``data.rows``; also kept in the template when ``data`` is rows already.
        style: ``chat``, ``plain``, or ``auto`` for what the base's tokenizer is made for.
        skip_bad: rows that may be bad and left out.
        labels: of a classification task; found in the rows by default.
        name: of the data, for the record.
        validation: rows as ``data`` that are not learned from: their loss is measured every so often.
        start: an entry, or what ``train`` returned: it stays as it is, and what is trained acts on top of it. Its
            template is taken over, and it is the reference of preference objectives.
        continued: an entry, or what ``train`` returned, of the same method: training goes on from its tensors, and the
            entry as it is now is the reference.
        restart: drop an unfinished run's checkpoints.
        overwrite: replace an entry that is at ``out``.
        on_step: called after each optimizer step. Where it returns True the run ends there, and what it has is kept.

    Raises:
        DataError: rows that do not fit.
        TrainingError: an objective that the method cannot take, an entry it cannot start from, an unfinished run with
            other settings, or a run that failed.
        BankError: no entry to start from there, a damaged one, or one of another base.
        TunescopeError: ``out`` is taken, or another run writes there.
    """
    settings, objective = settings or TrainSettings(), objective or SFT()
    begin = find_start(base, method, start, continued)
    base, method = begin.base, begin.method
    learns = method.trains != "nothing"
    if not learns and not isinstance(objective, SFT):
        raise TrainingError(f"{method.name} trains nothing, so it cannot be trained for {objective.name}.")
    pattern = pattern or pattern_of(start if start is not None else continued, objective)
    given = understand(
        data, pattern, skip_bad=skip_bad, kind=objective.takes, convert=objective.rows, optional=objective.optional
    )
    rows, pattern, notes, name = given.rows, given.pattern, given.notes, name or given.name
    labels = tuple(labels) if labels is not None else objective.labels(rows)
    template = objective.template(begin.template(pattern, style), rows)
    added = objective.effects(base, torch.Generator().manual_seed(settings.seed), rows) if learns else {}
    customized = begin.customize(template, rows, labels, settings.seed, added)
    encoder = _encoder(customized, objective, settings, name, given.skip_bad)
    examples = objective.examples(rows if learns else rows[:_LOOKED_AT], encoder)
    unseen, unseen_notes = _validation(validation, customized, objective, settings, pattern, skip_bad)
    if encoder.joined:
        customized.customization.template = customized.template.model_copy(update={"heal": True})
    record = Record(
        tunescope=__version__,
        method=method.name,
        method_settings=method.model_dump(mode="json"),
        objective=objective.name if learns else None,
        objective_settings=objective.model_dump(mode="json") if learns else {},
        train_settings=settings.model_dump(mode="json") if learns else None,
        dtype=dtype_name(base.dtype),
        template=customized.template,
        base=BaseRecord(name=base.name, fingerprint=base.fingerprint),
        data=DataRecord(name=name, sha256=rows_hash(rows), rows=len(rows)) if rows else None,
        labels=labels,
        **begin.chain(),
    )
    if not learns:
        path = bank.save(customized, Path(out), record, overwrite=overwrite) if out is not None else None
        return Trained(customized, record, TrainResult(), path, notes)
    with _work_folder(out, record, restart) as work:
        learners = learners_of(customized, objective, examples, settings, work, validation=unseen)
        with tracked(settings.trackers, work, record) as track:
            _learn(learners, track, on_step)
        customized.finish()
        result = learners[0].result
        record = record.model_copy(update={"training": result.summary()})
        path = None
        if out is not None:
            kept = {name: (work / name).read_text(encoding="utf-8") for name in _KEPT if (work / name).is_file()}
            path = bank.save(customized, Path(out), record, extra=kept, overwrite=overwrite)
    return Trained(customized, record, result, path, [*notes, *objective.notes(rows), *encoder.notes(), *unseen_notes])


def _learn(
    learners: Sequence[Learner], track: Callable[[StepMetrics], object], on_step: Callable[[StepMetrics], object]
) -> None:
    """Train the first of the learners, and those beside it; the steps of the first are reported.

    Raises:
        TrainingError: a loss or gradient that is not finite, of any.
    """

    def reported(learner: Learner, metrics: StepMetrics) -> object:
        if learner is not learners[0]:
            return None
        track(metrics)
        return on_step(metrics)

    train_loop(learners, on_step=reported)
    for learner in learners:
        if learner.error is not None:
            raise learner.error


def _encoder(
    customized: Customized, objective: Objective, settings: TrainSettings, name: str, skip_bad: int
) -> Encoder:
    """Makes the examples of rows, those to learn and those to validate on."""
    base = customized.base
    return Encoder(
        base.tokenizer, customized.template, base.context_length, settings.max_length, objective.cut, name, skip_bad
    )


def _validation(
    data: Source | Sequence[Row] | Sequence[Preference] | None,
    customized: Customized,
    objective: Objective,
    settings: TrainSettings,
    pattern: str | None,
    skip_bad: int,
) -> tuple[list[Any], list[str]]:
    """Validation rows as examples, and what is to be said of them.

    Raises:
        DataError: rows that do not fit.
        TrainingError: none is left, or settings for rows that are not there.
    """
    if data is None:
        if settings.validate_every is not None:
            raise TrainingError("--validate-every has nothing to measure: give rows with --validation.")
        return [], []
    if customized.method.trains == "nothing":
        raise TrainingError(
            f"{customized.method.name} trains nothing, so there is nothing to validate: tunescope eval."
        )
    if not objective.validates:
        raise TrainingError(
            f"{objective.name} learns from samples and has no loss on rows: leave --validation out, and measure "
            "held-out prompts with tunescope eval --judge."
        )
    given = understand(
        data, pattern, skip_bad=skip_bad, kind=objective.takes, convert=objective.rows, optional=objective.optional
    )
    encoder = _encoder(customized, objective, settings, given.name, given.skip_bad)
    if examples := objective.examples(given.rows, encoder):
        return examples, [f"Validation: {note}" for note in (*given.notes, *encoder.notes())]
    raise TrainingError("No validation row is left: none fits. Raise --max-length or shorten the completions.")


def work_folder(out: Path) -> Path:
    """Where an entry's unfinished run keeps its checkpoints and metrics."""
    out = storage.resolved(out)
    return out.parent / ".training" / out.name


@contextmanager
def _work_folder(out: str | Path | None, record: Record, restart: bool) -> Iterator[Path]:
    """The folder of an unfinished run, removed when the run ends well and kept when it does not."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="tunescope-") as temporary:
            yield Path(temporary)
        return
    folder = work_folder(Path(out))
    if restart or not has_checkpoint(folder):  # a run that kept nothing binds nobody to its settings
        storage.remove_folder(folder, UNFINISHED)
    folder = storage.claim_folder(folder, UNFINISHED)
    recipe = record.model_dump_json(exclude={"tunescope", "training", "card"}, indent=2)
    if has_checkpoint(folder):
        before = storage.read_state(folder / RECIPE, lambda text: dict(json.loads(text)), "Start over with --restart.")
        if differing := _differences(before, json.loads(recipe)):
            raise TrainingError(
                f"An unfinished run of {out} had other settings ({', '.join(differing)}). Give the same settings to go "
                "on with it, or --restart to start over."
            )
    storage.atomic_write(folder / RECIPE, recipe)
    try:
        yield folder
    except BaseException:
        if not has_checkpoint(folder):
            _remove(folder)
        raise
    _remove(folder)


def _remove(folder: Path) -> None:
    storage.remove_folder(folder, UNFINISHED)
    with suppress(OSError):  # other unfinished runs lie there too
        folder.parent.rmdir()


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    found = []
    for key in new:
        if old.get(key) == new[key]:
            continue
        if key not in _WHOLE and isinstance(new[key], dict) and isinstance(old.get(key), dict):
            found += [name for name in new[key] if old[key].get(name) != new[key][name]]
        else:
            found.append(key)
    return found
