"""``generate --batch``: a file of prompts, answered by any mix of a bank's entries at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunescope import bank
from tunescope.base import load_base
from tunescope.commands.answers import Answer
from tunescope.commands.command import Result
from tunescope.commands.report import Report
from tunescope.data.messages import Message, describe, messages_of
from tunescope.data.reading import read_each
from tunescope.errors import BankError, DataError, TunescopeError, UnknownNameError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.prediction import prompt_of_columns

if TYPE_CHECKING:
    from rich.console import Console

    from tunescope.commands.generate import GenerateRequest

# What a row can ask.
_ASKED = ("prompt", "messages", "row")


@dataclass(frozen=True)
class Totals(Result):
    """How many rows were answered, and how fast."""

    def show(self, console: Console) -> None:
        """Nothing on standard output, where the answers stand: the command notes the speed."""


def answer_batch(request: GenerateRequest, defaults: Sampling, report: Report) -> Totals:
    """Answer the rows of a file; one that cannot be answered says why, and the others go on."""
    path, folder, base = Path(str(request.batch)), request.bank, request.base
    rows = [row for _line, row in read_each(path)]
    if not rows:
        raise TunescopeError(f"{path} has no rows.")
    entries = [] if folder is None else bank.names_in(folder)
    if folder is not None and not entries:
        raise BankError(f"{folder} has no entries.")
    if base is None:
        if folder is None:
            raise TunescopeError("Name a base with --base, or a bank of entries made for one with --bank.")
        base = bank.read_record(folder / entries[0]).base.name
    record_of = functools.cache(lambda name: bank.read_record(folder / name))
    parsed = [_request(row, defaults, entries, record_of) for row in rows]
    engine = Engine(load_base(base, dtype=request.dtype, device=request.device))
    refused = _load_entries(engine, folder, parsed)
    parsed = [refused.get(row.customization or "", row) if isinstance(row, Request) else row for row in parsed]
    printer = _InOrder(parsed, report)
    asked = [index for index, row in enumerate(parsed) if isinstance(row, Request)]
    start = time.perf_counter()
    with report.working("answering") as on_stage:

        def done(index: int, answer: Generated) -> None:
            printer.add(asked[index], answer)
            on_stage(f"{printer.answered} of {len(parsed)}")

        engine.generate([parsed[index] for index in asked], on_done=done)  # type: ignore[misc]
    printer.flush()
    seconds = time.perf_counter() - start
    totals = {
        "rows": len(parsed),
        "failed": printer.failed,
        "tokens": printer.tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(printer.tokens / max(seconds, 1e-9), 1),
    }
    if report.pieces:
        report.note(f"{totals['tokens']} tokens, {totals['tokens_per_s']} a second.")
    if printer.failed:
        report.part(Totals(totals))
        raise TunescopeError(f"{path}: {printer.failed} of {len(parsed)} rows could not be answered; each says why.")
    return Totals(totals)


def _load_entries(engine: Engine, folder: Path | None, rows: list[Request | Generated]) -> dict[str, Generated]:
    """Load what the rows ask for; returns the refusal for each entry that cannot be served."""
    refused = {}
    for name in sorted({row.customization for row in rows if isinstance(row, Request) and row.customization}):
        assert folder is not None  # a row that names an entry was refused where there is no bank
        try:
            engine.load(name, folder / name)
        except TunescopeError as error:
            refused[name] = _refusal(str(error))
    return refused


def _request(
    row: dict[str, Any] | str, defaults: Sampling, entries: list[str], record_of: Callable[[str], bank.Record]
) -> Request | Generated:
    """A row of the file, or why it is none."""
    if isinstance(row, str):
        return _refusal(f"The row {row}.")
    settings = dict(row)
    name, steer = settings.pop("customization", None), settings.pop("steer", None) or {}
    asked = {key: value for key in _ASKED if (value := settings.pop(key, None)) is not None}
    if len(asked) != 1:
        return _refusal(
            "The row needs prompt (a text), messages (a list of {role, content}) or row (an object of columns), and "
            "one of them."
        )
    if not isinstance(steer, dict):
        return _refusal(f'steer is {describe(steer)}, expected an object such as {{"quality": 4}}.')
    if name is not None and name not in entries:
        if not entries:
            return _refusal(f"The row asks for {name!r}, but no bank was given: name one with --bank.")
        return _refusal(str(UnknownNameError("customization", str(name), entries)))
    chosen = defaults.model_dump(exclude_unset=True) | settings
    try:
        record = record_of(name) if name is not None and "row" in asked else None
        prompt = _prompt(*next(iter(asked.items())), record)
        if record and record.labels and "choices" not in chosen:
            chosen = {"choices": record.labels} | settings  # the command's flags are of texts, not of labels
        return Request(prompt, name, Sampling.parse(chosen), steer)
    except TunescopeError as error:
        return _refusal(str(error))


def _prompt(field: str, value: Any, record: bank.Record | None) -> str | tuple[Message, ...]:
    """What a row of the file asks, by what stands in ``prompt``, ``messages`` or ``row``.

    Raises:
        DataError: it is not what its field is for.
    """
    if field == "row":
        if not isinstance(value, dict) or not value:
            raise DataError(f"row is {describe(value)}, expected an object of columns.")
        return prompt_of_columns(value, record.template.pattern if record else None)
    if field == "messages":
        turns = messages_of(value, "messages")
        if isinstance(turns, str):
            raise DataError(f"{turns}.")
        return turns
    if not isinstance(value, str):
        raise DataError(f"prompt is {type(value).__name__}, expected text.")
    return value


def _refusal(why: str) -> Generated:
    return Generated(text="", tokens=[], finished=False, reason="error", error=why)


class _InOrder:
    """Prints answers in the order of their rows, each as soon as those before it are there."""

    def __init__(self, rows: list[Request | Generated], report: Report) -> None:
        self._rows, self._report = rows, report
        self._answers = {index: row for index, row in enumerate(rows) if isinstance(row, Generated)}
        self._next = 0
        self.tokens = self.failed = 0

    @property
    def answered(self) -> int:
        return self._next

    def add(self, index: int, answer: Generated) -> None:
        self._answers[index] = answer
        self.flush()

    def flush(self) -> None:
        while self._next in self._answers:
            answer, row = self._answers.pop(self._next), self._rows[self._next]
            self._next += 1
            self.tokens += sum(len(each.tokens) for each in (answer, *answer.others))
            self.failed += answer.error is not None
            name = row.customization if isinstance(row, Request) else None
            self._report.part(Answer.of(answer, name, number=self._next))
