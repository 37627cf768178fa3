"""Attributes for rows that have none (SteerLM, step 2: Dong et al. 2023, arXiv:2310.05344): by an attribute model, or
measured by judges, such as a function of the user's.

What an attribute model says is rounded to the nearest whole number of its range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tunescope import bank, storage
from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.data.attributes import check_names
from tunescope.data.reading import Table
from tunescope.data.rows import Row, to_rows
from tunescope.data.writing import check_ending, written
from tunescope.errors import BankError, DataError, Interrupted, TunescopeError
from tunescope.inference.rewards import outputs_that_fit
from tunescope.judging.judges import Judge, check_answers, load_judge
from tunescope.locks import writing
from tunescope.methods import Customized
from tunescope.methods.fingerprint import hash_customized
from tunescope.objectives.attributes import HEAD, Attributes
from tunescope.storage import unfinished
from tunescope.storage.unfinished import Unfinished
from tunescope.version import __version__

# Rows whose attributes are kept together: enough for full passes.
_PART = 256


class Annotator(Protocol):
    """Says what completions are like.

    Attributes:
        names: of the attributes.
        low: the least value.
        high: the greatest value.
    """

    names: tuple[str, ...]
    low: int
    high: int

    def __call__(self, rows: Sequence[Row]) -> list[list[float]]:
        """A value for each attribute of each row's completion, in any range.

        Raises:
            DataError: a row without them, by its line.
        """

    def recipe(self) -> dict[str, Any]:
        """What decides the values, as JSON values."""


class AttributeModel:
    """An entry that was trained with the objective ``Attributes``.

    Args:
        customized: as it is loaded.
        record: its certificate.
        name: what it is called in messages.

    Raises:
        BankError: it was trained for something else.
    """

    def __init__(self, customized: Customized, record: bank.Record, name: str) -> None:
        if record.objective != Attributes.name:
            raise BankError(
                f"{name} was trained for {record.objective or 'nothing'} and does not say what texts are like: name an "
                "entry that was trained with --objective attributes."
            )
        objective = Attributes.parse(record.objective_settings)
        self.names, self.low, self.high = objective.columns, objective.low, objective.high
        self._customized, self._max_length = customized, (record.train_settings or {}).get("max_length")

    def __call__(self, rows: Sequence[Row]) -> list[list[float]]:
        """The head's outputs."""
        found = outputs_that_fit(self._customized, rows, HEAD, self._max_length)
        return [self._fitting(row, outputs) for row, outputs in zip(rows, found, strict=True)]

    @staticmethod
    def _fitting(row: Row, outputs: list[float] | None) -> list[float]:
        if outputs is None:
            raise DataError(f"Line {row.number}: the completion leaves no room for its prompt in the model's tokens.")
        return outputs

    def recipe(self) -> dict[str, Any]:
        """Whose tensors, on which base, in which precision."""
        base = self._customized.base
        return {
            "base": self._customized.origin.fingerprint.computing,
            "customization": hash_customized(self._customized),
            "dtype": dtype_name(base.dtype),
            "device": base.device.type,
        }


class Measures:
    """Attributes that judges measure.

    Args:
        given: each ``name=judge``, with what ``load_judge`` takes.
        base: whose tokens are counted, and on which a reward model is loaded.
        low: the least value.
        high: the greatest value.

    Raises:
        TunescopeError: no name, a bad one, or an unknown judge.
    """

    def __init__(self, given: Sequence[str], base: Base, low: int = 0, high: int = 4) -> None:
        parts = [each.partition("=") for each in given]
        if bad := [each for each, (name, equals, judge) in zip(given, parts, strict=True) if not (name and judge)]:
            raise TunescopeError(f"{bad[0]!r} does not say who measures what: write verbosity=module:function.")
        self.names, self.low, self.high = check_names(tuple(name for name, _, _ in parts)), low, high
        self._base = base.fingerprint.computing
        self._judges: list[Judge] = [load_judge(judge, base) for _, _, judge in parts]

    def __call__(self, rows: Sequence[Row]) -> list[list[float]]:
        """The judges' scores."""
        found: list[list[float]] = [[] for _ in rows]
        for name, judge in zip(self.names, self._judges, strict=True):
            check_answers(judge, rows)
            for row, own, score in zip(rows, found, judge(rows, [row.completion or "" for row in rows]), strict=True):
                if isinstance(score, str):
                    raise DataError(f"Line {row.number}: {name} has no value: {score}.")
                own.append(score)
        return found

    def judge_of(self, name: str) -> str:
        """Who measures an attribute, by name."""
        return self._judges[self.names.index(name)].name

    def recipe(self) -> dict[str, Any]:
        """The judges by name, and the base that they may read."""
        named = [f"{name}={judge.name}" for name, judge in zip(self.names, self._judges, strict=True)]
        return {"judges": named, "base": self._base}


@dataclass
class Annotated:
    """What was labelled.

    Attributes:
        names: of the attributes.
        values: of each row.
        resumed: how many rows an earlier call had labelled.
    """

    names: tuple[str, ...]
    values: list[list[int]]
    resumed: int

    def counts(self) -> dict[str, dict[int, int]]:
        """Of each attribute how many rows have each value."""
        return {name: dict(sorted(Counter(own[i] for own in self.values).items())) for i, name in enumerate(self.names)}


def annotate_file(
    annotators: Sequence[Annotator],
    table: Table,
    out: Path,
    *,
    pattern: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
    on_done: Callable[[int], None] = lambda done: None,
) -> Annotated:
    """Label the rows of a table and write them with their attributes, a column each behind their own.

    Args:
        annotators: who says what; no two of them the same attribute.
        table: rows with prompts and completions, all of them good.
        out: the file to write; its ending says the format.
        pattern: how columns make prompt and completion.
        overwrite: replace a file of an earlier call.
        restart: drop what an unfinished call labelled.
        on_note: callback for what is worth knowing of how the rows were read.
        on_done: callback with the number of rows done.

    Raises:
        DataError: rows that do not fit, a column that has the name of an attribute, or an unfinished call with other
            settings.
        TunescopeError: ``out`` is taken, or another run writes it.
        Interrupted: after Ctrl-C; what was labelled is kept.
    """
    names = check_names(tuple(name for each in annotators for name in each.names))
    held = {column for row in table.rows for column in row}
    if taken := [name for name in names if name in held]:
        raise DataError(f"{table.path} has a column {taken[0]} already: rename or remove it there.")
    rows = to_rows(table, pattern, on_note=on_note)
    with writing(out) as final:
        check_out(out, overwrite)
        recipe = {"tunescope": __version__, "data": table.sha256, "rows": len(rows), "pattern": pattern}
        recipe["annotators"] = [
            {"names": list(each.names), "low": each.low, "high": each.high, **each.recipe()} for each in annotators
        ]
        begun: Unfinished[list[int]] = Unfinished(final, recipe, list, restart=restart)
        resumed = len(begun.answers)
        _complete(annotators, rows, begun, on_done)
        values = [begun.answers[index] for index in range(len(rows))]
        labelled = [{**row, **dict(zip(names, own, strict=True))} for row, own in zip(table.rows, values, strict=True)]
        storage.write_output(out, written(labelled, out))
        begun.remove()
    return Annotated(names, values, resumed)


def check_out(out: Path, overwrite: bool) -> None:
    """Stop before any work where its result would have no place.

    Raises:
        TunescopeError: a name without a format, or a file that is there and not to be replaced.
    """
    check_ending(out)
    unfinished.check_out(out, overwrite)


def _complete(
    annotators: Sequence[Annotator],
    rows: Sequence[Row],
    begun: Unfinished[list[int]],
    on_done: Callable[[int], None],
) -> None:
    """Add the labels that are missing, each part to the file at once."""
    answers = begun.answers
    on_done(len(answers))
    with begun.writing() as add:
        try:
            left = [index for index in range(len(rows)) if index not in answers]
            for part in (left[begin : begin + _PART] for begin in range(0, len(left), _PART)):
                found: list[list[int]] = [[] for _ in part]
                for each in annotators:
                    for own, values in zip(found, each([rows[index] for index in part]), strict=True):
                        own += [min(max(round(value), each.low), each.high) for value in values]
                labels = dict(zip(part, found, strict=True))
                add(labels)
                answers |= labels
                on_done(len(answers))
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped after {len(answers)} of {len(rows)} rows. Make the same call to go on from there."
            ) from None
