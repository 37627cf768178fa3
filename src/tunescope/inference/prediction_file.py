"""Predictions in a file: the rows as they were, each with its answer.

A call that was killed goes on where it was when it is made again; see ``storage.unfinished``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunescope import storage
from tunescope.base.device import dtype_name
from tunescope.data.reading import Table
from tunescope.data.writing import check_ending, is_flat, written
from tunescope.errors import DataError, Interrupted
from tunescope.inference.prediction import Answers, Prediction, Predictor, Questions
from tunescope.locks import writing
from tunescope.methods.fingerprint import hash_customized
from tunescope.storage.unfinished import Unfinished
from tunescope.storage.unfinished import check_out as check_place_of
from tunescope.version import __version__


@dataclass(frozen=True)
class Predicted:
    """What was answered.

    Attributes:
        questions: the rows.
        predictions: one for each, in order.
        resumed: how many of them an earlier call had answered.
    """

    questions: Questions
    predictions: list[Prediction]
    resumed: int


def check_out(out: Path, overwrite: bool) -> None:
    """Stop before any work where its result would have no place.

    Raises:
        TunescopeError: a name without a format, a file that is there and not to be replaced or was not written here, or
            another run that writes it.
    """
    with writing(out):
        _check_out(out, overwrite)


def predict_file(
    predictor: Predictor,
    table: Table,
    out: Path,
    *,
    skip_bad: int = 0,
    overwrite: bool = False,
    restart: bool = False,
    on_done: Callable[[int], None] = lambda done: None,
) -> Predicted:
    """Answer the rows of a table and write them with their answers.

    Each row keeps its columns. Behind them stand ``prediction``; with labels ``probability``, of the one predicted, and
    ``probability_LABEL`` of each, in JSON one object ``probabilities``; and where rows may be skipped ``error``. A row
    without an answer has nothing in these but its error.

    Args:
        predictor: who answers.
        table: the rows.
        out: the file to write; its ending says the format.
        skip_bad: how many rows may stay without an answer.
        overwrite: replace a file of an earlier call.
        restart: drop what an unfinished call answered.
        on_done: callback with the number of rows done, those without an answer included.

    Raises:
        DataError: rows that do not fit, a column that has the name of one that is added, or an unfinished call with
            other settings.
        TunescopeError: as ``check_out``.
        Interrupted: after Ctrl-C; what was answered is kept.
    """
    _check_columns(predictor, table, out, skip_bad)
    questions = predictor.questions(table, skip_bad)
    with writing(out) as final:
        _check_out(out, overwrite)
        unfinished = Unfinished(final, _recipe(predictor, table), lambda found: Prediction(**found), restart=restart)
        asked = {question.index for question in questions.asked}
        answers = {index: found for index, found in unfinished.answers.items() if index in asked}
        resumed = len(answers)
        _complete(predictor, questions, answers, unfinished, on_done)
        predictions = questions.predictions(answers, skip_bad)
        rows = [
            {**row, **_added(predictor, found, out), **({"error": _error(found, line)} if skip_bad else {})}
            for row, line, found in zip(questions.rows, questions.lines, predictions, strict=True)
        ]
        storage.write_output(out, written(rows, out))
        unfinished.remove()
    return Predicted(questions, predictions, resumed)


def _check_out(out: Path, overwrite: bool) -> None:
    check_ending(out)
    check_place_of(out, overwrite)


def _complete(
    predictor: Predictor,
    questions: Questions,
    answers: dict[int, Prediction],
    unfinished: Unfinished[Prediction],
    on_done: Callable[[int], None],
) -> None:
    """Add the answers that are missing, each to the file at once."""
    on_done(len(questions.bad) + len(answers))
    with unfinished.writing() as add:

        def keep(part: Answers) -> None:
            answers.update(part)
            # A failure is no answer: it is tried again.
            add({index: asdict(answer) for index, answer in part.items() if answer.error is None})
            on_done(len(questions.bad) + len(answers))

        try:
            predictor.answer(questions.asked, keep, done=frozenset(answers))
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped after {len(answers)} of {len(questions.asked)} rows. Make the same call to go on from there."
            ) from None


def _added(predictor: Predictor, found: Prediction, out: Path) -> dict[str, Any]:
    """The columns of an answer; without one they are null."""
    added: dict[str, Any] = {"prediction": found.text if found.error is None else None}
    if predictor.labels:
        added["probability"] = found.probability
        if is_flat(out):
            added |= {f"probability_{name}": (found.probabilities or {}).get(name) for name in predictor.labels}
        else:
            added["probabilities"] = found.probabilities
    return added


def _error(found: Prediction, line: int) -> str | None:
    return None if found.error is None else f"line {line}: {found.error}"


def _check_columns(predictor: Predictor, table: Table, out: Path, skip_bad: int) -> None:
    """Refuse rows with a column that an answer's would replace."""
    added = [*_added(predictor, Prediction(""), out), *(["error"] if skip_bad else [])]
    if taken := [name for name in added if any(name in row for row in table.rows)]:
        raise DataError(
            f"{table.path} has a column {taken[0]} already, and the answers are written under that name: rename or "
            "remove it there."
        )


def _recipe(predictor: Predictor, table: Table) -> dict[str, Any]:
    """What decides the answers."""
    base = predictor.customized.base
    return {
        "tunescope": __version__,
        "base": predictor.customized.origin.fingerprint.computing,
        "customization": hash_customized(predictor.customized),
        "labels": list(predictor.labels),
        "data": table.sha256,
        "rows": len(table),
        "max_new_tokens": predictor.max_new_tokens,
        "max_length": predictor.max_length,
        "steer": predictor.steer,
        "temperature": predictor.temperature,
        "seed": predictor.seed,
        "dtype": dtype_name(base.dtype),
        "device": base.device.type,
    }
