"""The comparison: every method on the same base, rows, machine and budget, each searched with an equal share.

Every method gets its first score, then the searches of all go on rung by rung, and the table sharpens. At the end the
test rows are opened once, for the settings that the validation rows chose. What is done is kept: a comparison that was
killed goes on where it was, down to the optimizer step, and one that gets more budget goes on from what it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field

from tunescope.base import Base
from tunescope.base.device import device_name, dtype_name
from tunescope.comparison.aim import Aim, AnyRow, Limits, aim_of, best, check_objective
from tunescope.comparison.ledger import Ledger
from tunescope.comparison.results import BaseInfo, Comparison, DataInfo, MachineInfo, RowText
from tunescope.comparison.schedule import Schedule
from tunescope.comparison.search import Task
from tunescope.data.identity import row_keys
from tunescope.data.inputs import Source, has_part, understand
from tunescope.data.rankings import Preference
from tunescope.data.rows import Row, label_set
from tunescope.data.splitting import overlap, split
from tunescope.data.template import default_template
from tunescope.errors import DataError, Interrupted, SettingError, TunescopeError
from tunescope.evaluation import Probes
from tunescope.evaluation.task import check_labels
from tunescope.judging import load_judge
from tunescope.locks import writing
from tunescope.methods import Method
from tunescope.methods.registry import METHODS
from tunescope.objectives import SFT, Objective
from tunescope.settings import Duration, Settings, Shown
from tunescope.training import StepMetrics, TrainSettings
from tunescope.training.prepared import rows_hash
from tunescope.version import __version__

# Validation rows of the first rung: enough to tell a setting that learns from one that does not.
_FIRST_ROWS = 64
# Most validation rows that are answered freely, where there are no labels and no judge.
_WRITTEN = 16
# Most characters of a test row's text that a report shows.
_SHOWN = 800


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _rising(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(sizes)))


class CompareSettings(Settings):
    """What a comparison takes; each is a flag of ``tunescope compare``."""

    budget: Duration = 600.0
    """Time for everything: 90s, 10m, 1h30m. The methods share equally what measuring them leaves. More of it later, in
    the same folder, goes on from there."""
    budget_tokens: int | None = Field(None, gt=0)
    """Tokens that each method may learn from (prompting: may read) in its search, in place of a share of the time."""
    methods: Annotated[tuple[str, ...], AfterValidator(_once)] = ()
    """Methods to compare, in order. All by default."""
    validation_rows: int = Field(200, gt=0)
    """Training rows to hold out and choose settings by, at most a fifth of them."""
    sizes: Annotated[tuple[Annotated[int, Field(gt=1)], ...], AfterValidator(_rising)] = ()
    """Numbers of rows to train the chosen settings on, too: 16,64,256 shows what more labels would buy. None by
    default: each takes as long as a training."""
    test_rows: int = Field(300, gt=0)
    """Most test rows to take, a stratified sample by the seed. 300 rows resolve about 5 points of accuracy."""
    generate_rows: int = Field(64, gt=0)
    """Most rows to generate freely for: generating is the slowest measurement."""
    max_new_tokens: int = Field(64, gt=0)
    """Most tokens of a freely generated text."""
    batch_size: int = Field(8, gt=0)
    """Rows an optimizer step."""
    epochs: float = Field(3.0, gt=0)
    """Most passes over the training rows, however much time is left."""
    max_length: int = Field(512, gt=1)
    """Most tokens of a training row; longer prompts lose the middle of their text, in training and in testing."""
    judge: Annotated[tuple[str, ...], Shown("JUDGE", repeated=True)] = ()
    """Score what is written, sampled from held-out prompts, by this judge (see ``judging.load_judge``) in place of how
    near it comes to the rows. Several, as 0.7*NAME, are summed."""
    skip_unjudged: int = Field(10, ge=0)
    """How many samples the judge may fail on in one measurement."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of samples, initializations and orders."""


class Watcher:
    """Callbacks on the progress of a comparison; base class of progress displays. This one shows nothing."""

    def begin(self, method: str, what: str) -> None:
        """Called before something is done for a method: what, in words."""

    def step(self, metrics: StepMetrics) -> None:
        """Called after an optimizer step."""

    def stage(self, stage: str) -> None:
        """Called with what is measured next of a chosen candidate."""

    def end(self, text: str) -> None:
        """Called with what came out of it, in words."""

    def table(self, comparison: Comparison) -> None:
        """Called with what is known by now, each time the table has become sharper."""


@dataclass(frozen=True)
class Given:
    """What a comparison was given, for its record.

    Attributes:
        name: of the data.
        train_rows: all that is learned from, those to choose by among them.
        task: what candidates learn, what for, and what they are chosen by.
        test_rows: to measure the chosen ones on.
        probes: what forgetting is measured on.
        settings: of the comparison.
        notes: what a reader must know of the data.
        named: what the command line calls base and data; empty where they have no name.
    """

    name: str
    train_rows: list[Any]
    task: Task
    test_rows: list[Any]
    probes: Probes | None
    settings: CompareSettings
    notes: list[str]
    named: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """The numbers of rows to train the chosen settings on, too: fewer than all."""
        return [size for size in self.settings.sizes if size < len(self.task.rows)]


def compare(
    base: Base,
    data: Source | Sequence[Row] | Sequence[Preference],
    test: Source | Sequence[Row] | Sequence[Preference] | None = None,
    *,
    objective: Objective | None = None,
    out: str | Path,
    settings: CompareSettings | None = None,
    pattern: str | None = None,
    style: str = "auto",
    probes: Probes | None = None,
    name: str | None = None,
    named: Mapping[str, Any] | None = None,
    skip_bad: int = 0,
    restart: bool = False,
    finish: bool = False,
    join: bool = False,
    helpers: Callable[[], AbstractContextManager[Any]] = nullcontext,
    watcher: Watcher | None = None,
) -> Comparison:
    """Measure what each method buys and costs on these rows.

    Args:
        base: frozen.
        data: rows to learn from: what ``read`` takes, a table, mappings from column to value, or rows; pairs or ranked
            responses for an objective that learns from them.
        test: rows to measure on, given in the same ways. By default the test part of a built-in set that has one, and
            else a fifth of ``data``, stratified.
        objective: what methods are trained for: ``SFT()`` by default, ``DPO(...)`` or ``Reward(...)``. Prompting takes
            the better completions for its rows.
        out: folder for the bank of chosen customizations, ``comparison.json`` and ``report.html``; a comparison there
            that was not finished goes on.
        settings: budget, methods, sizes.
        pattern: how columns make prompt and completion; with rows as they are, how they did, for the record.
        style: ``chat``, ``plain`` or ``auto``.
        probes: what forgetting is measured on; None leaves it out.
        name: of the data, for the report; by default its own.
        named: what the command line calls base and data (keys of ``train``), for the recipes that train each method's
            choice again; without it there are none.
        skip_bad: how many rows of each of the two may be bad and left out.
        restart: forget what ``out`` holds.
        finish: search no further: open the test rows for the best of each method so far.
        join: help the comparison that another process leads in ``out``, by the same call: take candidates further that
            it is not at, until the search is done. The test rows are left to it.
        helpers: encloses the search, which can be joined from then on.
        watcher: its callbacks report how it goes.

    Raises:
        UnknownNameError: a method that is not known.
        SettingError: an objective that methods are not compared for, a judge that has nothing to read, or a method that
            the objective cannot take.
        DataError: rows that do not fit, or too few.
        TunescopeError: ``out`` holds a comparison under other conditions (named) or something else, or another run
            writes there.
        Interrupted: after Ctrl-C; what is known by then is in ``out``. Call again to go on.
    """
    settings, objective, out = settings or CompareSettings(), objective or SFT(), Path(out)
    if join and (restart or finish):
        raise SettingError("compare", "join", "helps a search that goes on: leave --restart and --finish out")
    check_objective(objective, judged=bool(settings.judge))
    reads = partial(understand, skip_bad=skip_bad, kind=objective.takes, convert=objective.rows)
    given = reads(data, pattern)
    test = data if test is None and has_part(data, "test") else test
    measured = None if test is None else reads(test, given.pattern, split="test")
    train_rows, test_rows, notes = _prepare(given.rows, measured.rows if measured else None, settings)
    notes = [*given.notes, *(measured.notes if measured else []), *notes]
    aim = _aim(base, objective, train_rows, settings)
    if aim.labels:
        check_labels(test_rows, aim.labels)
    kinds = _kinds(settings, aim)
    conditions = _conditions(base, train_rows, test_rows, settings, style, probes, objective)
    watcher = watcher or Watcher()
    with nullcontext() if join else writing(out):
        call = {"methods": [kind.name for kind in kinds], **settings.model_dump(include={"budget", "budget_tokens"})}
        ledger = Ledger(out, conditions, call, restart=restart, joins=join)
        task = _task(base, train_rows, aim, given.pattern, style, name or given.name, settings)
        if label_set([row for row in task.rows if isinstance(row, Row)]) != aim.labels:
            named = None  # the rows that are learned from would be understood otherwise alone
        found = Given(task.name, train_rows, task, test_rows, probes, settings, notes, named or {})
        if named and not join:
            ledger.keep_lines([row.number for row in task.rows])
        schedule = Schedule(kinds, found, ledger, watcher, publish=lambda: _publish(schedule, found, ledger, watcher))
        try:
            if not finish:
                with helpers():
                    schedule.search()
            if join:
                return _known(schedule, found, ledger)
            schedule.finish()
            comparison = _publish(schedule, found, ledger, watcher)
        except (KeyboardInterrupt, Interrupted):
            if join:
                raise Interrupted("Stopped. What this process was at goes on in the others.") from None
            _publish(schedule, found, ledger, watcher)
            raise Interrupted(
                f"Stopped. What is known by now is in {ledger.report}. Make the same call to go on, with more budget "
                "to go further, or with --finish to test the best settings so far."
            ) from None
    if all(row.score is None for row in comparison.rows):
        raise TunescopeError(f"No method could be measured. {comparison.rows[0].name}: {comparison.rows[0].note}")
    return comparison


def _aim(base: Base, objective: Objective, rows: Sequence[AnyRow], settings: CompareSettings) -> Aim:
    """What for, and how that is measured."""
    limits = Limits(
        max_length=settings.max_length,
        max_new_tokens=settings.max_new_tokens,
        validation_texts=settings.generate_rows if settings.judge else min(settings.generate_rows, _WRITTEN),
        test_texts=settings.generate_rows,
        unjudged=settings.skip_unjudged,
    )
    judge = load_judge(settings.judge, base) if settings.judge else None
    return aim_of(objective, rows, limits, judge, settings.seed)


def _kinds(settings: CompareSettings, aim: Aim) -> list[type[Method]]:
    """The methods that are asked for, or all that the aim takes.

    Raises:
        UnknownNameError: a method that is not known.
        SettingError: one that the aim does not take.
    """
    kinds: list[type[Method]] = [METHODS.load(name) for name in settings.methods or METHODS.names()]
    refused = [kind.name for kind in kinds if not aim.takes(kind)]
    if settings.methods and refused:
        reason = f"{refused[0]} trains nothing, so there is no {aim.objective.name} model of it: leave it out"
        raise SettingError("CompareSettings", "methods", reason)
    return [kind for kind in kinds if kind.name not in refused]


def _publish(schedule: Schedule, given: Given, ledger: Ledger, watcher: Watcher) -> Comparison:
    """Write what is known by now; the process that leads does."""
    comparison = _known(schedule, given, ledger)
    if not ledger.joins:
        ledger.publish(comparison)
    watcher.table(comparison)
    return comparison


def _known(schedule: Schedule, given: Given, ledger: Ledger) -> Comparison:
    """What is known by now."""
    task, settings, aim = given.task, given.settings, given.task.aim
    base, metric = task.base, aim.metric
    rows = schedule.rows()
    notes = [*given.notes, *(note for note in ledger.notes() if note not in given.notes)]
    return Comparison(
        tunescope=__version__,
        base=BaseInfo(name=base.name, fingerprint=base.fingerprint.short, parameters=base.parameters),
        data=DataInfo(
            name=given.name,
            sha256=rows_hash(given.train_rows),
            train_rows=len(task.rows),
            test_rows=len(given.test_rows),
            validation_rows=len(task.validation[1]),
            template=task.pattern or "as given in the rows",
            task=aim.task,
            objective=aim.objective.name,
            judge=" + ".join(settings.judge) or None,
            labels=list(aim.labels or ()),
            notes=notes,
        ),
        machine=MachineInfo(
            device_name=device_name(base.device),
            cores=os.cpu_count() or 1,
            torch=torch.__version__,
            dtype=dtype_name(base.dtype),
        ),
        budget_seconds=settings.budget if settings.budget_tokens is None else None,
        budget_tokens=settings.budget_tokens,
        seed=settings.seed,
        split=schedule.split,
        test_seen=schedule.test_seen,
        metric=metric,
        rows=rows,
        tested=_to_read(given.test_rows) if schedule.split == "test" else [],
        advice=schedule.advice(rows, metric),
        report=str(ledger.report),
        seconds=round(ledger.seconds(), 1),
        first_table_seconds=ledger.seconds("first_table") or None,
        search_seconds=round(ledger.seconds("search"), 1),
        evaluation_seconds=round(ledger.seconds("evaluation"), 1),
    )


def _to_read(rows: Sequence[AnyRow]) -> list[RowText]:
    """Test rows as people read them."""
    return [
        RowText(key=key, prompt=_shortened(row.prompt), expected=row.completion or "")
        for key, row in zip(row_keys(rows), map(best, rows), strict=True)
    ]


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"


def _prepare(
    train_rows: list[Any], test_rows: Sequence[AnyRow] | None, settings: CompareSettings
) -> tuple[list[Any], list[Any], list[str]]:
    """Training rows, test rows, and what a reader must know about them."""
    notes = []
    labels = label_set([row for row in train_rows if isinstance(row, Row)])
    if test_rows is None:
        kept, held = split(len(train_rows), _labels_of(train_rows, labels), 0.2, settings.seed)
        test_rows, train_rows = [train_rows[i] for i in held], [train_rows[i] for i in kept]
        notes.append(f"No test data was given: {len(test_rows)} rows, stratified, were held out of the training data.")
    test_rows = list(test_rows)
    if len(test_rows) > settings.test_rows:
        of = len(test_rows)
        test_rows = _sampled(test_rows, labels, settings.test_rows, settings.seed)
        notes.append(f"Tested on {len(test_rows)} of {of} test rows, a stratified sample by the seed.")
    if not test_rows or len(train_rows) < 2:
        raise DataError("Too few rows to compare: give more data, or test data of its own with --test.")
    if shared := overlap([best(row).prompt for row in train_rows], [best(row).prompt for row in test_rows]):
        lines = ", ".join(str(test_rows[i].number) for i in shared[:10]) + (" …" if len(shared) > 10 else "")
        notes.append(f"{len(shared)} test rows also stand in the training data (lines {lines}).")
    return train_rows, test_rows, notes


def _task(
    base: Base,
    train_rows: list[Any],
    aim: Aim,
    pattern: str | None,
    style: str,
    name: str,
    settings: CompareSettings,
) -> Task:
    """What candidates learn, and what they are chosen by: rows held out of those to learn from."""
    count = min(settings.validation_rows, max(len(train_rows) // 5, 1))
    labels = aim.labels
    kept, held = split(len(train_rows), _labels_of(train_rows, labels), count, settings.seed)
    validation = [train_rows[i] for i in held]
    return Task(
        base=base,
        rows=[train_rows[i] for i in kept],
        validation=(_sampled(validation, labels, _FIRST_ROWS, settings.seed), validation),
        aim=aim,
        pattern=pattern,
        style=style,
        name=name,
        settings=TrainSettings(
            batch_size=settings.batch_size, epochs=settings.epochs, max_length=settings.max_length, seed=settings.seed
        ),
    )


def _sampled(rows: Sequence[Any], labels: tuple[str, ...] | None, count: int, seed: int) -> list[Any]:
    """At most ``count`` of the rows, stratified."""
    if len(rows) <= count:
        return list(rows)
    return [rows[i] for i in split(len(rows), _labels_of(rows, labels), count, seed)[1]]


def _labels_of(rows: Sequence[Any], labels: Sequence[str] | None) -> list[str] | None:
    return [row.completion or "" for row in rows] if labels else None


def _conditions(
    base: Base,
    train_rows: list[Any],
    test_rows: list[Any],
    settings: CompareSettings,
    style: str,
    probes: Probes | None,
    objective: Objective,
) -> dict[str, Any]:
    """All that makes rows comparable, by name.

    The methods and the budget may change between calls: what is already measured is kept, and more time or another
    method goes on from there.
    """
    versions = {name: metadata.version(name) for name in ("tunescope", "torch", "transformers")}
    unlike: dict[str, Any] = {"judge": list(settings.judge)} if settings.judge else {}
    if objective != SFT():
        unlike["objective"] = {"name": objective.name, **objective.model_dump(mode="json")}
    left_out = {"methods", "budget", "budget_tokens", "sizes", "judge", "skip_unjudged"}
    return {
        **unlike,
        "version": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "device": f"{base.device.type}, {device_name(base.device)}",
        "dtype": dtype_name(base.dtype),
        "style": default_template(base.tokenizer, style=style).style,
        "base": base.fingerprint.model_dump(),
        "training rows": rows_hash(train_rows),
        "test rows": rows_hash(test_rows),
        "budget's unit": "seconds" if settings.budget_tokens is None else "tokens",
        "probes": probes.sha256() if probes is not None else None,
        "settings": settings.model_dump(mode="json", exclude=left_out),
    }
