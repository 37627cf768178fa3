"""A run that is about to begin: rows made examples, a customization at its start, and what will be its certificate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.bank import BaseRecord, DataRecord, Record
from tunescope.base.device import dtype_name
from tunescope.data.encoding import Encoder
from tunescope.data.inputs import Source, understand
from tunescope.data.rankings import Preference
from tunescope.data.rows import Row
from tunescope.errors import TrainingError
from tunescope.inference.calibration import label_prior
from tunescope.methods import Customized
from tunescope.methods.prompting import Prompting
from tunescope.objectives import SFT, Objective
from tunescope.training.settings import TrainSettings
from tunescope.training.start import Start
from tunescope.version import __version__

# Rows that a prompting method looks at to see how completions join their prompts.
_LOOKED_AT = 256
# Sets of rows whose tokens are kept, and the most rows that one may have (about 10 MB of ids).
_KEPT, _MOST_KEPT = 4, 20_000
_kept: dict[Any, tuple[Encoder, list[Any]]] = {}
Data = Source | Sequence[Row] | Sequence[Preference]


@dataclass(frozen=True)
class Reading:
    """How data are read.

    Attributes:
        pattern: how columns become rows; also kept in the template when the data are rows already.
        style: of the template.
        skip_bad: rows that may be bad and left out.
        labels: of a classification task; found in the rows where None.
        name: of the data, for the record; their own where None.
    """

    pattern: str | None = None
    style: str = "auto"
    skip_bad: int = 0
    labels: tuple[str, ...] | None = None
    name: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A run that is about to begin.

    Attributes:
        customized: at its start.
        record: its certificate, but for what the run will measure.
        rows: what was read.
        examples: what it learns from.
        unseen: what is measured and not learned.
        notes: what happened to rows, in words.
    """

    customized: Customized
    record: Record
    rows: list[Any]
    examples: list[Any]
    unseen: list[Any]
    notes: list[str]

    @property
    def learns(self) -> bool:
        """Whether anything is trained."""
        return self.customized.method.trains != "nothing"


def prepare(
    begin: Start,
    objective: Objective,
    data: Data,
    how: Reading,
    settings: TrainSettings,
    *,
    validation: Data | None = None,
) -> Prepared:
    """Read the data, put a customization at its start, and encode the rows by its template.

    Args:
        begin: what is trained, and on top of what.
        objective: what for.
        data: rows, or what becomes rows.
        how: they are read.
        settings: of the loop.
        validation: as ``data``, measured and not learned.

    Raises:
        DataError: rows that do not fit.
        TrainingError: an objective that the method cannot take.
    """
    base, method = begin.base, begin.method
    learns = method.trains != "nothing"
    if not learns and not isinstance(objective, SFT):
        raise TrainingError(f"{method.name} trains nothing, so it cannot be trained for {objective.name}.")
    given = understand(
        data,
        how.pattern,
        skip_bad=how.skip_bad,
        kind=objective.takes,
        convert=objective.rows,
        optional=objective.optional,
    )
    rows, name = given.rows, how.name or given.name
    labels = how.labels if how.labels is not None else objective.labels(rows)
    template = objective.template(begin.template(given.pattern, how.style), rows)
    added = objective.effects(base, torch.Generator().manual_seed(settings.seed), rows) if learns else {}
    customized = begin.customize(template, rows, labels, settings.seed, added)
    encoder = _encoder(customized, objective, settings, name, given.skip_bad)
    encoder, examples = _examples(objective, rows if learns else rows[:_LOOKED_AT], encoder)
    unseen, unseen_notes = _validation(validation, customized, objective, settings, given.pattern, how.skip_bad)
    if encoder.joined:
        customized.customization.template = customized.template.model_copy(update={"heal": True})
    if isinstance(method, Prompting) and method.calibrate:
        if not labels:
            raise TrainingError(f"{method.name} is to be calibrated, and only labels are: this task has none.")
        prior = label_prior(customized, labels, settings.max_length)
        customized.customization.template = customized.template.model_copy(update={"label_prior": prior})
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
    notes = given.notes if not learns else [*given.notes, *encoder.notes(), *unseen_notes]
    return Prepared(customized, record, rows, examples, unseen, notes)


def _examples(objective: Objective, rows: list[Any], encoder: Encoder) -> tuple[Encoder, list[Any]]:
    """``objective.examples``, and the encoder with what it noted; kept for the next run on the same rows.

    A comparison trains many candidates on the same rows, each in stages, and tokenizing them may take as long as a
    stage does.
    """
    if type(objective) is not SFT or len(rows) > _MOST_KEPT:
        return encoder, objective.examples(rows, encoder)
    how = (encoder.template.model_dump_json(), encoder.context, encoder.max_length, encoder.cut, encoder.skip_bad)
    what = (encoder.source, rows_hash(rows), tuple(row.number for row in rows))
    key = (id(encoder.tokenizer), objective.model_dump_json(), how, what)
    if key not in _kept:
        _kept[key] = encoder, objective.examples(rows, encoder)
        while len(_kept) > _KEPT:
            _kept.pop(next(iter(_kept)))
    return _kept[key]


def rows_hash(rows: Sequence[Row] | Sequence[Preference]) -> str:
    """SHA-256 over what the rows say, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.content, ensure_ascii=False).encode())
    return digest.hexdigest()


def _encoder(
    customized: Customized, objective: Objective, settings: TrainSettings, name: str, skip_bad: int
) -> Encoder:
    """Makes the examples of rows, those to learn and those to validate on."""
    base = customized.base
    return Encoder(
        base.tokenizer, customized.template, base.context_length, settings.max_length, objective.cut, name, skip_bad
    )


def _validation(
    data: Data | None,
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
