"""``predict``."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from tunescope import bank
from tunescope.cli.loading import base_of
from tunescope.cli.output import Output, print_facts
from tunescope.cli.progress import CountProgress
from tunescope.data.catalog import CATALOG
from tunescope.data.reading import read
from tunescope.data.rows import answer_columns
from tunescope.errors import DataError
from tunescope.evaluation.statistics import wilson_interval
from tunescope.inference import Predictor, predict_file
from tunescope.inference.prediction_file import Predicted, check_out

_SHOWN_TOGETHER = ("labels", "labelled_rows", "accuracy", "accuracy_low", "accuracy_high")
_SHOWN = 5  # labels listed in one message


def predict_rows(
    entry: Path,
    base: str | None,
    data: str,
    out: Path,
    *,
    split: str | None,
    max_new_tokens: int | None,
    max_length: int | None,
    skip_bad: int,
    dtype: str,
    device: str | None,
    restart: bool,
    overwrite: bool,
    output: Output,
) -> None:
    """Write the rows with their answers, and say how many there are and how sure they are."""
    record = bank.read_record(entry)
    check_out(out, overwrite)
    if split is None and data in CATALOG and "test" in CATALOG[data].members:
        split = "test"  # as for eval
    table = read(data, split=split, skip_bad=skip_bad, optional=answer_columns(record.template.pattern))
    customized = bank.load(entry, base_of(entry, base, device, dtype))
    try:
        predictor = Predictor.recorded(customized, record, max_new_tokens=max_new_tokens, max_length=max_length)
    except DataError as error:
        raise DataError(str(error).replace("max_new_tokens", "--max-new-tokens")) from None
    started = time.perf_counter()
    with CountProgress(output.progress, "predicting", len(table) + len(table.skipped), "rows") as progress:
        found = predict_file(
            predictor, table, out, skip_bad=skip_bad, overwrite=overwrite, restart=restart, on_done=progress
        )
    seconds = time.perf_counter() - started
    for note in _notes(found, predictor):
        output.note(note)
    values = _summary(found) | {"seconds": round(seconds, 1), "file": str(out)}
    shown = {name: value for name, value in values.items() if name not in _SHOWN_TOGETHER}
    shown["resumed"] = values["resumed"] or None
    if values["labels"]:
        shown["labels"] = ", ".join(f"{label} {count}" for label, count in values["labels"].items())
    if values["accuracy"] is not None:
        low, high = values["accuracy_low"], values["accuracy_high"]
        shown["accuracy"] = f"{values['accuracy']:.1%} ({low:.1%} to {high:.1%}) of {values['labelled_rows']} rows"
    output.result(values, lambda console: print_facts(console, shown))


def _summary(found: Predicted) -> dict[str, Any]:
    """Counts, and where rows have their true label the accuracy with its 95% interval."""
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
