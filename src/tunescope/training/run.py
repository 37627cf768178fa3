"""A whole run: from a base, a method, an objective and rows to a customization, and to a bank entry."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

from tunescope import bank
from tunescope.bank import Record
from tunescope.base import Base
from tunescope.errors import TrainingError
from tunescope.methods import Customized, Method
from tunescope.objectives import SFT, Objective
from tunescope.team import joined, this_team
from tunescope.training.learner import Learner
from tunescope.training.loop import train_loop
from tunescope.training.metrics import StepMetrics
from tunescope.training.policy import learners_of
from tunescope.training.prepared import Data, Reading, prepare
from tunescope.training.result import TrainResult
from tunescope.training.settings import TrainSettings
from tunescope.training.start import find_start, pattern_of
from tunescope.training.trackers import tracked
from tunescope.training.unfinished import kept_files, recipe_of, unfinished_run

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


def _one_writer(run: Callable[_P, Trained]) -> Callable[_P, Trained]:
    """Join the team, if there is one, and hold ``out``, where one is given, for all of a run."""

    @functools.wraps(run)
    def held(*given: _P.args, **named: _P.kwargs) -> Trained:
        with ExitStack() as opened:
            opened.enter_context(joined())
            if (out := named.get("out")) is not None:
                opened.enter_context(bank.claimed(Path(str(out)), overwrite=bool(named.get("overwrite"))))
            return run(*given, **named)

    return held


@_one_writer
def train(
    base: Base,
    method: Method,
    objective: Objective | None = None,
    data: Data = (),
    *,
    settings: TrainSettings | None = None,
    out: str | Path | None = None,
    pattern: str | None = None,
    style: str = "auto",
    skip_bad: int = 0,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    validation: Data | None = None,
    start: str | Path | Trained | None = None,
    continued: str | Path | Trained | None = None,
    restart: bool = False,
    overwrite: bool = False,
    until: int | None = None,
    on_step: Callable[[StepMetrics], object] = lambda metrics: None,
) -> Trained:
    """Customize ``base`` by ``method``.

    A run that was interrupted or killed goes on when the same call is made again: its checkpoints lie beside the entry,
    in ``.training``, until it ends. While it goes, no other run can write the same entry. Where torch.distributed's
    process group was made before, its processes train together: all make this call, the first one writes.

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
        until: pause after this step: what was learned so far is returned, without an entry, and the same call goes on
            from there, under one schedule of the rate, as if there had been no pause. Needs ``out``.
        on_step: called after each optimizer step. Where it returns True the run ends there, and what it has is kept.

    Raises:
        DataError: rows that do not fit.
        TrainingError: an objective that the method cannot take, an entry it cannot start from, an unfinished run with
            other settings, or a run that failed.
        BankError: no entry to start from there, a damaged one, or one of another base.
        TunescopeError: ``out`` is taken, or another run writes there.
    """
    settings, objective = settings or TrainSettings(), objective or SFT()
    if until is not None and (out is None or until < 1):
        raise TrainingError("until pauses a run after a step, from 1 on, and needs an out to go on from.")
    begin = find_start(base, method, start, continued)
    pattern = pattern or pattern_of(start if start is not None else continued, objective)
    how = Reading(pattern, style, skip_bad, tuple(labels) if labels is not None else None, name)
    run = prepare(begin, objective, data, how, settings, validation=validation)
    customized, record = run.customized, run.record
    path = None
    if not run.learns:
        if out is not None and this_team().writes:
            path = bank.save(customized, Path(out), record, overwrite=overwrite)
        return Trained(customized, record, TrainResult(), path, run.notes)
    with unfinished_run(out, recipe_of(record), restart=restart) as unfinished:
        work = unfinished.folder
        learners = learners_of(customized, objective, run.examples, settings, work, validation=run.unseen)
        learn(learners, work, record, on_step, until)
        for learner in learners:
            if learner.error is not None:
                raise learner.error
        unfinished.pauses = learners[0].runs
        customized.finish()
        result = learners[0].result
        record = record.model_copy(update={"training": result.summary()})
        if out is not None and not unfinished.pauses and this_team().writes:
            path = bank.save(customized, Path(out), record, extra=kept_files(work), overwrite=overwrite)
    return Trained(customized, record, result, path, [*run.notes, *objective.notes(run.rows)])


def learn(
    learners: Sequence[Learner],
    work: Path,
    record: Record,
    on_step: Callable[[StepMetrics], object],
    until: int | None = None,
) -> None:
    """Train learners; the first one's steps are reported. Where it ends early, or one of them fails, all end.

    Args:
        learners: of a run; one that fails says so in its ``error``.
        work: the run's folder.
        record: of the first, for trackers.
        on_step: called after each step of the first. Where it returns True, all end there.
        until: a step of the first after which all pause, with a checkpoint to go on from.
    """
    lead = learners[0]
    with tracked(lead.settings.trackers, work, record) as track:

        def reported(learner: Learner, metrics: StepMetrics) -> bool:
            failed = any(each.error is not None for each in learners)
            if learner is not lead:
                return failed or lead.result.stopped_early
            track(metrics)
            return on_step(metrics) is True or failed

        train_loop(learners, on_step=reported, until=until)
