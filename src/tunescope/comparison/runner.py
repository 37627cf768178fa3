"""The comparison: every method, one after the other, on the same base, rows, machine and budget.

Each trainable method gets the same share of the time. What is done is kept: a comparison that was killed goes on where
it was, down to the optimizer step.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field

from tunescope import bank
from tunescope.base import Base
from tunescope.base.device import device_name, dtype_name
from tunescope.comparison.budget import affordable_steps
from tunescope.comparison.ledger import Ledger
from tunescope.comparison.recommendation import advise
from tunescope.comparison.results import BaseInfo, Comparison, DataInfo, MachineInfo, MethodResult, Probe
from tunescope.data.inputs import Source, has_part, understand
from tunescope.data.rows import Row, label_set
from tunescope.data.splitting import overlap, split
from tunescope.data.template import default_template
from tunescope.errors import DataError, Interrupted, TunescopeError
from tunescope.evaluation import PER_ROW, Probes, evaluate
from tunescope.evaluation.task import check_labels
from tunescope.locks import writing
from tunescope.methods import Customized, Method
from tunescope.methods.registry import METHODS
from tunescope.settings import Duration, Settings
from tunescope.training import StepMetrics, TrainSettings, train
from tunescope.training.prepared import rows_hash
from tunescope.version import __version__


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class CompareSettings(Settings):
    """What a comparison takes; each is a flag of ``tunescope compare``."""

    budget: Duration = 600.0
    """Time for everything: 90s, 10m, 1h30m. Trainable methods share equally what evaluating leaves."""
    methods: Annotated[tuple[str, ...], AfterValidator(_once)] = ()
    """Methods to compare, in order. All by default."""
    test_rows: int = Field(300, gt=0)
    """Most test rows to take, a stratified sample by the seed. 300 rows resolve about 5 points of accuracy."""
    generate_rows: int = Field(64, gt=0)
    """Test rows to generate freely for: generating is the slowest measurement."""
    max_new_tokens: int = Field(64, gt=0)
    """Most tokens of a freely generated text."""
    batch_size: int = Field(8, gt=0)
    """Rows an optimizer step."""
    epochs: float = Field(3.0, gt=0)
    """Most passes over the training rows, however much time is left."""
    max_length: int = Field(512, gt=1)
    """Most tokens of a training row; longer prompts lose the middle of their text, in training and in testing."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of samples, initializations and orders."""


class Watcher:
    """Callbacks on the progress of a comparison; base class of progress displays. This one shows nothing."""

    def begin(self, method: str, number: int, count: int) -> None:
        """Called before a method is measured."""

    def stage(self, stage: str, steps: int | None = None) -> None:
        """Called with what is done next; ``steps`` when it is training."""

    def step(self, metrics: StepMetrics) -> None:
        """Called after an optimizer step."""

    def end(self, row: MethodResult) -> None:
        """Called after a method was measured, or failed."""


@dataclass
class _Work:
    """What every method's measurement needs."""

    base: Base
    train_rows: list[Row]
    test_rows: list[Row]
    labels: tuple[str, ...] | None
    pattern: str | None
    style: str
    probes: Probes | None
    settings: CompareSettings
    ledger: Ledger
    name: str
    watcher: Watcher
    notes: list[str]


def compare(
    base: Base,
    data: Source | Sequence[Row],
    test: Source | Sequence[Row] | None = None,
    *,
    out: str | Path,
    settings: CompareSettings | None = None,
    pattern: str | None = None,
    style: str = "auto",
    probes: Probes | None = None,
    name: str | None = None,
    skip_bad: int = 0,
    restart: bool = False,
    watcher: Watcher | None = None,
) -> Comparison:
    """Measure what each method buys and costs on these rows.

    Args:
        base: frozen.
        data: rows to learn from: what ``read`` takes, a table, mappings from column to value, or rows.
        test: rows to measure on, given in the same ways. By default the test part of a built-in set that has one, and
            else a fifth of ``data``, stratified.
        out: folder for the bank of trained customizations, ``comparison.json`` and ``report.html``; a comparison there
            that was not finished goes on.
        settings: budget, methods, sizes.
        pattern: how columns make prompt and completion; with rows as they are, how they did, for the record.
        style: ``chat``, ``plain`` or ``auto``.
        probes: what forgetting is measured on; None leaves it out.
        name: of the data, for the report; by default its own.
        skip_bad: how many rows of each of the two may be bad and left out.
        restart: forget what ``out`` holds.
        watcher: its callbacks report how it goes.

    Raises:
        UnknownNameError: a method that is not known.
        DataError: rows that do not fit, or too few.
        TunescopeError: ``out`` holds a comparison under other conditions (named) or something else, or another run
            writes there.
        Interrupted: after Ctrl-C; call again to go on.
    """
    settings, out = settings or CompareSettings(), Path(out)
    methods = [METHODS.load(method)() for method in settings.methods or METHODS.names()]
    given = understand(data, pattern, skip_bad=skip_bad)
    test = data if test is None and has_part(data, "test") else test
    measured = None if test is None else understand(test, given.pattern, skip_bad=skip_bad, split="test")
    train_rows, test_rows, notes = _prepare(given.rows, measured.rows if measured else None, settings)
    notes = [*given.notes, *(measured.notes if measured else []), *notes]
    labels = label_set(train_rows)
    if labels:
        check_labels(test_rows, labels)
    conditions = _conditions(base, train_rows, test_rows, settings, style, probes)
    with writing(out):
        ledger = Ledger(out, conditions, [method.name for method in methods], restart=restart)
        work = _Work(
            base, train_rows, test_rows, labels, given.pattern, style, probes, settings, ledger,
            name or given.name, watcher or Watcher(), notes,
        )  # fmt: skip
        return _compared(work, methods)


def _compared(work: _Work, methods: Sequence[Method]) -> Comparison:
    """Measure every method that is not measured yet, and write what came out."""
    base, settings, ledger, labels = work.base, work.settings, work.ledger, work.labels
    rows = []
    for number, method in enumerate(methods):
        work.watcher.begin(method.name, number + 1, len(methods))
        try:
            row = ledger.row(method.name) or _measure(
                work, method, [each for each in methods[number:] if not ledger.row(each.name)]
            )
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped in {method.name}, after {number} of {len(methods)} methods. Make the same call to go on."
            ) from None
        work.watcher.end(row)
        rows.append(row)
    if all(row.score is None for row in rows):
        raise TunescopeError(f"No method could be measured. {rows[0].name}: {rows[0].note}")
    comparison = Comparison(
        tunescope=__version__,
        base=BaseInfo(name=base.name, fingerprint=base.fingerprint.short, parameters=base.parameters),
        data=DataInfo(
            name=work.name,
            sha256=rows_hash(work.train_rows),
            train_rows=len(work.train_rows),
            test_rows=len(work.test_rows),
            template=work.pattern or "as given in the rows",
            task="classification" if labels else "text",
            labels=list(labels or ()),
            notes=work.notes,
        ),
        machine=MachineInfo(
            device_name=device_name(base.device),
            cores=os.cpu_count() or 1,
            torch=torch.__version__,
            dtype=dtype_name(base.dtype),
        ),
        budget_seconds=settings.budget,
        seed=settings.seed,
        metric="accuracy" if labels else "chrf",
        rows=rows,
        advice=advise(rows, "accuracy" if labels else "chrf"),
        report=str(ledger.report),
        seconds=round(work.ledger.seconds(), 1),
    )
    ledger.close(comparison)
    return comparison


def _prepare(
    train_rows: list[Row], test_rows: Sequence[Row] | None, settings: CompareSettings
) -> tuple[list[Row], list[Row], list[str]]:
    """Training rows, test rows, and what a reader must know about them."""
    notes = []
    labels = label_set(train_rows)
    if test_rows is None:
        kept, held = split(len(train_rows), _labels_of(train_rows, labels), 0.2, settings.seed)
        test_rows, train_rows = [train_rows[i] for i in held], [train_rows[i] for i in kept]
        notes.append(f"No test data was given: {len(test_rows)} rows, stratified, were held out of the training data.")
    test_rows = list(test_rows)
    if len(test_rows) > settings.test_rows:
        of = len(test_rows)
        _, chosen = split(of, _labels_of(test_rows, labels), settings.test_rows, settings.seed)
        test_rows = [test_rows[i] for i in chosen]
        notes.append(f"Tested on {len(test_rows)} of {of} test rows, a stratified sample by the seed.")
    if not test_rows or not train_rows:
        raise DataError("Too few rows to compare: give more data, or test data of its own with --test.")
    if shared := overlap([row.prompt for row in train_rows], [row.prompt for row in test_rows]):
        lines = ", ".join(str(test_rows[i].number) for i in shared[:10]) + (" …" if len(shared) > 10 else "")
        notes.append(f"{len(shared)} test rows also stand in the training data (lines {lines}).")
    return train_rows, test_rows, notes


def _labels_of(rows: Sequence[Row], labels: Sequence[str] | None) -> list[str] | None:
    return [row.completion or "" for row in rows] if labels else None


def _conditions(
    base: Base,
    train_rows: list[Row],
    test_rows: list[Row],
    settings: CompareSettings,
    style: str,
    probes: Probes | None,
) -> dict[str, Any]:
    """All that makes rows comparable, by name.

    The methods and the budget may change between calls: what is already measured is kept, and more time or another
    method goes on from there.
    """
    versions = {name: metadata.version(name) for name in ("tunescope", "torch", "transformers")}
    return {
        "version": ", ".join(f"{name} {number}" for name, number in versions.items()),
        "device": f"{base.device.type}, {device_name(base.device)}",
        "dtype": dtype_name(base.dtype),
        "style": default_template(base.tokenizer, style=style).style,
        "base": base.fingerprint.model_dump(),
        "training rows": rows_hash(train_rows),
        "test rows": rows_hash(test_rows),
        "probes": probes.sha256() if probes is not None else None,
        "settings": settings.model_dump(mode="json", exclude={"methods", "budget"}),
    }


def _measure(work: _Work, method: Method, remaining: Sequence[Method]) -> MethodResult:
    """Train and evaluate one method; a failure is a row that says why, so that the others go on."""
    try:
        row = _measured(work, method, remaining)
    except Interrupted:
        raise
    except TunescopeError as error:
        return MethodResult(method=method.name, name=method.name, note=str(error))
    if row.score is not None:  # what got no time is tried again when the comparison goes on with a larger budget
        work.ledger.keep_row(row)
    return row


def _measured(work: _Work, method: Method, remaining: Sequence[Method]) -> MethodResult:
    entry = work.ledger.entry(method.name)
    trained = _trained(work, method, remaining, entry)
    if trained is None:
        return MethodResult(method=method.name, name=method.name, note="the budget left no time to train it")
    customized, training = trained
    started, record = time.monotonic(), bank.read_record(entry)
    card = evaluate(
        customized,
        work.test_rows,
        labels=work.labels,
        probes=work.probes,
        generate_rows=work.settings.generate_rows,
        max_new_tokens=work.settings.max_new_tokens,
        max_length=work.settings.max_length,
        on_stage=work.watcher.stage,
    )
    bank.write_card(entry, {key: value for key, value in card.items() if key not in PER_ROW}, record)
    work.ledger.keep_cost(time.monotonic() - started)
    _note(work, "testing", card["notes"])
    return _row(work.ledger, method, card, training)


def _trained(
    work: _Work, method: Method, remaining: Sequence[Method], entry: Path
) -> tuple[Customized, dict[str, Any]] | None:
    """The method's customization and what its training measured; None if the budget leaves no time.

    An entry that a comparison left when it was stopped between training and measuring is not trained again.
    """
    if (entry / bank.RECORD).is_file():
        return bank.load(entry, work.base), bank.read_record(entry).training
    settings = _train_settings(work, method, remaining)
    if settings is None:
        return None
    work.watcher.stage("training" if settings.max_steps else "preparing", settings.max_steps)
    trained = train(
        work.base,
        method,
        data=work.train_rows,
        settings=settings,
        out=entry,
        pattern=work.pattern,
        style=work.style,
        labels=work.labels,
        name=work.name,
        on_step=work.watcher.step,
    )
    _note(work, "training", trained.notes)
    return trained.customized, trained.record.training


def _note(work: _Work, stage: str, notes: Sequence[str]) -> None:
    work.notes += [note for each in notes if (note := f"In {stage}: {each}") not in work.notes]


def _train_settings(work: _Work, method: Method, remaining: Sequence[Method]) -> TrainSettings | None:
    """The loop's settings with the steps that the method's share of the budget pays for; None if it pays for none.

    They are kept beside the rows: a method whose training was interrupted goes on with the same number of steps.
    """
    common = TrainSettings(
        batch_size=work.settings.batch_size,
        epochs=work.settings.epochs,
        max_length=work.settings.max_length,
        seed=work.settings.seed,
    )
    if method.trains == "nothing":
        return common
    steps = work.ledger.steps(method.name)
    if steps is None:
        work.watcher.stage("estimating")
        to_train = sum(other.trains != "nothing" for other in remaining)
        left = work.settings.budget - work.ledger.seconds() - work.ledger.cost() * len(remaining)
        steps = affordable_steps(
            work.base, method, work.train_rows, common, left / max(to_train, 1), pattern=work.pattern, style=work.style
        )
        if not steps:
            return None
        work.ledger.keep_steps(method.name, steps)
    return common.model_copy(update={"max_steps": steps})


def _row(ledger: Ledger, method: Method, card: dict[str, Any], training: dict[str, Any]) -> MethodResult:
    shared = set(MethodResult.model_fields) & set(card)
    values = {key: card[key] for key in shared if card[key] is not None}
    values |= {
        key: training[key] for key in ("steps", "rows_per_s", "tokens_per_s", "pad_fraction", "loss") if training
    }
    values["peak_memory_mb"] = max(card["peak_memory_mb"], training.get("peak_memory_mb", 0.0))
    values["probes"] = {
        name: {key: probe[key] for key in Probe.model_fields} for name, probe in values.get("probes", {}).items()
    }
    values["extra_prompt_tokens"] = round(card["extra_prompt_tokens"])
    return MethodResult(
        method=method.name,
        name=method.name,
        seconds=training.get("seconds", 0.0),
        artifact_mb=bank.size_mb(ledger.entry(method.name)),
        path=str(ledger.entry(method.name)),
        curve=ledger.curve(method.name),
        **values,
    )
