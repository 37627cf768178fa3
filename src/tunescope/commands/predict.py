"""``predict``: answer new rows."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.errors import DataError

if TYPE_CHECKING:
    from tunescope.inference import Predictor
    from tunescope.inference.prediction_file import Predicted

_SHOWN_TOGETHER = ("labels", "labelled_rows", "accuracy", "accuracy_low", "accuracy_high")
_SHOWN = 5  # labels listed in one message


class PredictRequest(Command):
    """Answer new rows through an entry's own template: a label with probabilities, or a text.

    The rows need the columns that the template names; the one it learned may be missing or empty. They are written with
    all their columns and, behind these, prediction and, where the entry was trained on labels, probability and one
    probability_LABEL each (in JSON one object, probabilities). A call that was stopped goes on when it is made again.
    """

    suffix: ClassVar[str] = ".csv"

    entry: fields.Entry
    data: str
    """Rows to answer: a .jsonl, .json, .csv, .tsv or .parquet file, a set or a hub id."""
    out: fields.HomePath
    """File to write: .csv, .tsv, .jsonl, .json or .parquet."""
    base: fields.OptionalBase = None
    split: fields.Split = None
    max_new_tokens: int | None = Field(None, ge=1)
    """Most tokens of a generated text; 128 by default."""
    max_length: int | None = Field(None, ge=2)
    """Most tokens of a row; by default as it was trained."""
    steer: fields.Steer = None
    temperature: float = Field(0.0, ge=0)
    """1 samples texts from the model itself; 0 takes the likeliest."""
    seed: int = Field(0, ge=0)
    """Of the sampling."""
    skip_bad: int = Field(0, ge=0)
    """How many rows may stay without an answer; the column error says why."""
    dtype: fields.Dtype = "auto"
    device: fields.Device = None
    restart: fields.Restart = False
    overwrite: fields.Overwrite = False

    def run(self, report: Report | None = None) -> Result:
        """Write the rows with their answers, and say how many there are and how sure they are."""
        from tunescope import bank
        from tunescope.commands.subject import customized_of
        from tunescope.data.attributes import parse_steer
        from tunescope.data.inputs import has_part
        from tunescope.data.reading import read
        from tunescope.data.rows import answer_columns
        from tunescope.inference import Predictor, predict_file
        from tunescope.inference.prediction_file import check_out

        report = report or Report()
        record = bank.read_record(self.entry)
        check_out(self.out, self.overwrite)
        split = "test" if self.split is None and has_part(self.data, "test") else self.split  # as for eval
        optional = answer_columns(record.template.pattern)
        table = read(self.data, split=split, skip_bad=self.skip_bad, optional=optional)
        customized = customized_of(self.entry, self.base, self.device, self.dtype)
        try:
            predictor = Predictor.recorded(
                customized, record, max_new_tokens=self.max_new_tokens, max_length=self.max_length,
                steer=parse_steer(self.steer) if self.steer else None, temperature=self.temperature, seed=self.seed,
            )  # fmt: skip
        except DataError as error:
            raise DataError(str(error).replace("max_new_tokens", "--max-new-tokens")) from None
        started = time.perf_counter()
        with report.counting("predicting", len(table) + len(table.skipped), "rows") as on_done:
            found = predict_file(
                predictor, table, self.out, skip_bad=self.skip_bad, overwrite=self.overwrite, restart=self.restart,
                on_done=on_done,
            )  # fmt: skip
        for note in _notes(found, predictor):
            report.note(note)
        values = _summary(found) | {"seconds": round(time.perf_counter() - started, 1), "file": str(self.out)}
        return Result(values, self.out, _facts(values))


def _facts(values: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in values.items() if name not in _SHOWN_TOGETHER}
    shown["resumed"] = values["resumed"] or None
    if values["labels"]:
        shown["labels"] = ", ".join(f"{label} {count}" for label, count in values["labels"].items())
    if values["accuracy"] is not None:
        low, high = values["accuracy_low"], values["accuracy_high"]
        shown["accuracy"] = f"{values['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {values['labelled_rows']} rows"
    return shown


def _summary(found: Predicted) -> dict[str, Any]:
    """Counts, and where rows have their true label the accuracy with its 95% interval."""
    from tunescope.evaluation.statistics import wilson_interval

    predictions = found.predictions
    labels = Counter(answer.label for answer in predictions if answer.label is not None)
    right = [label == predictions[index].label for index, label in _true_labels(found).items()]
    interval = wilson_interval(sum(right), len(right)) if right else None
    return {
        "rows": len(predictions),
        "unanswered": sum(answer.error is not None for answer in predictions),
        "resumed": found.resumed,
        "labels": dict(labels.most_common()) or None,
        "labelled_rows": len(right) if labels else None,
        "accuracy": sum(right) / len(right) if right else None,
        "accuracy_low": interval.low if interval else None,
        "accuracy_high": interval.high if interval else None,
    }


def _true_labels(found: Predicted) -> dict[int, str]:
    """The true labels of rows that were answered with one, by index."""
    return {index: label for index, label in found.questions.truth.items() if found.predictions[index].label}


def _notes(found: Predicted, predictor: Predictor) -> list[str]:
    notes = list(found.questions.notes)
    if cut := found.questions.cut:
        notes.append(f"{'1 prompt was' if cut == 1 else f'{cut} prompts were'} cut to fit (the middle of the text).")
    if unfinished := sum(not answer.finished for answer in found.predictions):
        texts = "1 text was" if unfinished == 1 else f"{unfinished} texts were"
        notes.append(f"{texts} cut at {predictor.max_new_tokens} tokens. --max-new-tokens allows more.")
    if unknown := sorted(set(_true_labels(found).values()) - set(predictor.labels)):
        more = " …" if len(unknown) > _SHOWN else ""
        notes.append(
            f"The rows have labels that training did not: {', '.join(unknown[:_SHOWN])}{more}. They count as wrong."
        )
    return notes
