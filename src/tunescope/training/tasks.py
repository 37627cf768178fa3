"""Several tasks at once, over one base: a table of customizations, one a task.

For most methods tasks share nothing. Each has a learner of its own, and they share the passes of the frozen base, so
that each becomes what it would become alone (Lester et al. 2021, arXiv:2104.08691: one matrix a task).

P-tuning's tasks share the encoder that predicts their virtual tokens (Liu et al. 2021, arXiv:2103.10385; NeMo's
p-tuning). Then there is one learner, which sees the rows of all tasks; a task's virtual tokens stand in one matrix
behind those of the tasks before it. When training ends each task gets its own, and the encoder is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from tunescope import bank
from tunescope.bank.names import TABLE
from tunescope.bank.table import check_tasks
from tunescope.base import Base
from tunescope.errors import TrainingError
from tunescope.methods import Customization, Customized, Method, PTuning
from tunescope.objectives import SFT
from tunescope.team import joined, this_team
from tunescope.training.learner import Learner
from tunescope.training.metrics import StepMetrics
from tunescope.training.prepared import Data, Prepared, Reading, prepare
from tunescope.training.result import TrainResult
from tunescope.training.run import Trained, learn
from tunescope.training.settings import TrainSettings
from tunescope.training.start import Start
from tunescope.training.unfinished import kept_files, part_of_run, recipe_of, unfinished_run

Runs = Mapping[str, Prepared]
OnStep = Callable[[StepMetrics], object]


def train_tasks(
    base: Base,
    method: Method,
    data: Mapping[str, Data],
    *,
    settings: TrainSettings | None = None,
    out: str | Path | None = None,
    style: str = "auto",
    patterns: Mapping[str, str | None] | None = None,
    skip_bad: int = 0,
    restart: bool = False,
    overwrite: bool = False,
    on_step: OnStep = lambda metrics: None,
) -> dict[str, Trained]:
    """Customize ``base`` by ``method`` for several tasks at once, by supervised fine-tuning.

    A run that was interrupted or killed goes on when the same call is made again, as ``train`` does.

    Args:
        base: frozen.
        method: what is trained. P-tuning's tasks share its encoder; all others share nothing, and each task has the
            steps of ``settings`` for itself.
        data: of each task, by its name; as for ``train``.
        settings: of the loop.
        out: the table to write (``bank.table``); None keeps the results in memory only.
        style: ``chat``, ``plain``, or ``auto`` for what the base's tokenizer is made for.
        patterns: how a task's columns become rows, by its name.
        skip_bad: rows of each task that may be bad and left out.
        restart: drop an unfinished run's checkpoints.
        overwrite: replace a table that is at ``out``.
        on_step: called after each step of the task that has most of them. Where it returns True, all end there.

    Returns:
        what the run leaves, by task.

    Raises:
        DataError: rows that do not fit.
        TrainingError: fewer than two tasks, a method that has no effects to keep, an unfinished run with other
            settings, or a run that failed.
        TunescopeError: a name that no task can have, ``out`` is taken, or another run writes there.
    """
    check_trains_tasks(method)
    if len(data) < 2:
        raise TrainingError(f"A table is for several tasks, and {len(data)} is given: tunescope train trains one.")
    check_tasks(data)
    if unknown := sorted(set(patterns or {}) - set(data)):
        raise TrainingError(f"patterns has {unknown[0]!r}, which is none of the tasks: {', '.join(data)}.")
    settings, patterns = settings or TrainSettings(), patterns or {}
    with contextlib.ExitStack() as held:
        held.enter_context(joined())
        if out is not None:
            held.enter_context(bank.claimed(Path(out), overwrite=overwrite, kind=TABLE))
        runs = {}
        for name, rows in data.items():
            how = Reading(patterns.get(name), style, skip_bad)
            runs[name] = prepare(_start(base, method, name), SFT(), rows, how, settings)
            if isinstance(method, PTuning):  # its encoder is none of the task's own
                runs[name].customized.finish()
        recipe = {"names": list(runs), "tasks": {name: recipe_of(run.record) for name, run in runs.items()}}
        with unfinished_run(out, recipe, restart=restart) as unfinished:
            work = unfinished.folder
            train = _train_shared if isinstance(method, PTuning) else _train_apart
            found = train(base, method, runs, settings, work, on_step)
            records = {
                name: runs[name].record.model_copy(update={"training": {**each.result.summary(), "tasks": list(runs)}})
                for name, each in found.items()
            }
            if out is not None and this_team().writes:
                made = {name: (each.customized, records[name]) for name, each in found.items()}
                files = {name: kept_files(each.folder) for name, each in found.items()}
                bank.save_table(made, Path(out), extra=files, overwrite=overwrite)
    return {
        name: Trained(
            each.customized, records[name], each.result, None if out is None else Path(out) / name, runs[name].notes
        )
        for name, each in found.items()
    }


def check_trains_tasks(method: Method) -> None:
    """See that a method makes something that a table can keep.

    Raises:
        TrainingError: it trains nothing, or the base's own weights.
    """
    if method.trains != "effects":
        what = "trains nothing" if method.trains == "nothing" else "moves the base's own weights"
        raise TrainingError(f"{method.name} {what}, so it makes no table of tasks.")


@dataclass(frozen=True)
class _Found:
    """What training made of a task.

    Attributes:
        customized: finished.
        result: of the learner that saw its rows.
        folder: of that learner.
    """

    customized: Customized
    result: TrainResult
    folder: Path


def _start(base: Base, method: Method, task: str) -> Start:
    """P-tuning's virtual tokens begin at the task's name."""
    return Start(base, method.model_copy(update={"task": task}) if isinstance(method, PTuning) else method)


def _train_apart(
    base: Base, method: Method, runs: Runs, settings: TrainSettings, work: Path, on_step: OnStep
) -> dict[str, _Found]:
    """A learner a task; they share the base's passes."""
    learners = {
        name: Learner(run.customized, SFT(), run.examples, settings, part_of_run(work, name))
        for name, run in runs.items()
    }
    by_length = sorted(runs, key=lambda name: len(runs[name].examples), reverse=True)
    learn([learners[name] for name in by_length], work, runs[by_length[0]].record, on_step)
    _raise_first(learners)
    for run in runs.values():
        run.customized.finish()
    return {name: _Found(runs[name].customized, learner.result, learner.folder) for name, learner in learners.items()}


def _train_shared(
    base: Base, method: Method, runs: Runs, settings: TrainSettings, work: Path, on_step: OnStep
) -> dict[str, _Found]:
    """One learner of all rows, whose tasks share p-tuning's encoder."""
    assert isinstance(method, PTuning)
    size, templates = method.virtual_tokens, [run.customized.template for run in runs.values()]
    effects = method.effects_of_tasks(base, torch.Generator().manual_seed(settings.seed), list(runs))
    shared = Customized(base, Customization(method, templates[0], effects).to(base.device), base)
    examples = [example.behind(number * size) for number, run in enumerate(runs.values()) for example in run.examples]
    learner = Learner(shared, SFT(), examples, settings, work)
    learn([learner], work, next(iter(runs.values())).record, on_step)
    _raise_first({", ".join(runs): learner})
    shared.finish()
    rows = shared.customization.virtual_table().split(size)
    for run, own in zip(runs.values(), rows, strict=True):
        run.customized.customization.load_tensors({"embedding.prefix.embeddings": own})
    return {name: _Found(run.customized, learner.result, work) for name, run in runs.items()}


def _raise_first(learners: Mapping[str, Learner]) -> None:
    """Say which task's learner failed, and why."""
    for name, learner in learners.items():
        if learner.error is not None:
            raise TrainingError(f"{name}: {learner.error}")
