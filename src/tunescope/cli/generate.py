"""``generate``: a few prompts by the base or one entry, or a file of prompts by any mix of a bank's entries."""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope import bank
from tunescope.base import load_base
from tunescope.cli import options
from tunescope.cli.flags import with_settings
from tunescope.cli.loading import base_of
from tunescope.cli.output import Output
from tunescope.data.messages import Message, describe, messages_of
from tunescope.data.reading import read_each
from tunescope.errors import BankError, DataError, TunescopeError, UnknownNameError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.prediction import probabilities_of, prompt_of_columns

# Given by options of their own: texts may hold the comma that separates a list's parts.
_TEXTS = ("stop", "stop_tokens", "choices")
_NAME = "entry"
# What a row of a batch can ask.
_ASKED = ("prompt", "messages", "row")


def generate_command() -> Callable[..., None]:
    """The command; its flags are ``Sampling``'s fields."""

    def run(
        prompts: Annotated[
            list[str] | None,
            typer.Argument(metavar="[BANK/NAME] PROMPT...", help="Prompts, after an entry of a bank if any."),
        ] = None,
        sampling: Any = None,
        base: options.OptionalBase = None,
        stop: Annotated[
            list[str] | None, typer.Option("--stop", help="A text that ends the answer before it. Repeatable.")
        ] = None,
        choice: Annotated[
            list[str] | None, typer.Option("--choice", help="An answer to choose from, by likelihood. Repeatable.")
        ] = None,
        batch: Annotated[
            Path | None,
            typer.Option(
                "--batch",
                help='A .jsonl file of rows {"prompt", "customization", "max_new_tokens", ...}: any mix, all at once. '
                'In place of "prompt" stand "messages", or "row": columns that the customization\'s own template '
                'renders, {"row": {"text": "..."}}, answered with its label where it was trained on labels.',
            ),
        ] = None,
        bank_folder: Annotated[
            Path | None, typer.Option("--bank", help="Folder of the entries that the rows of --batch name.")
        ] = None,
        dtype: options.DtypeName = "auto",
        device: options.Device = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object a prompt, in order; after --batch one of totals.")
        ] = False,
    ) -> None:
        output = Output(as_json)
        texts = {"stop": tuple(stop or ()), "choices": tuple(choice or ())}
        sampling = Sampling.parse(sampling.model_dump(exclude_unset=True) | {k: v for k, v in texts.items() if v})
        if batch is not None:
            if prompts:
                raise TunescopeError("Give prompts, or a file of them with --batch, not both.")
            _answer_batch(batch, bank_folder, base, dtype, device, sampling, output)
            return
        if bank_folder is not None:
            raise TunescopeError("--bank goes with --batch. To run one entry, name it before the prompts: BANK/NAME.")
        if not prompts:
            raise TunescopeError("Give at least one prompt, or a file of them with --batch.")
        _answer(prompts, base, dtype, device, sampling, output)

    run.__doc__ = "Answer prompts by the base or its customizations, any mix of them in one batch."
    return with_settings(run, {"sampling": Sampling}, leave_out=_TEXTS)


def _answer(
    prompts: list[str], base: str | None, dtype: str, device: str | None, sampling: Sampling, output: Output
) -> None:
    entry = Path(prompts[0]) if _names_entry(prompts[0]) else None
    if entry is not None:
        bank.read_record(entry)  # a name that only nearly is an entry's is no prompt
        prompts = prompts[1:]
    if not prompts:
        raise TunescopeError(f"{entry} is an entry; give at least one prompt after it.")
    if entry is None and base is None:
        raise TunescopeError(f"{prompts[0]!r} is no entry of a bank: name one, or a base with --base.")
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise TunescopeError(f"Prompt {number} is empty.")
    if entry is not None and bank.read_record(entry).labels and not sampling.choices:
        output.note(
            f"{entry} was trained on labels, and this answers with free text. A label with its probability, without "
            f"typing the template:\n  tunescope predict {shlex.quote(str(entry))} --data new.csv --out answers.csv"
        )
    engine = _engine(entry, base, dtype, device)
    requests = [Request(prompt, _NAME if entry else None, sampling) for prompt in prompts]
    if len(requests) == 1 and sampling.n == 1 and not output.as_json:
        for piece in engine.stream(requests[0]):
            output.write(piece, end="")
        output.write("")
        return
    for number, answer in enumerate(engine.generate(requests), start=1):
        if answer.error is not None:
            raise TunescopeError(f"Prompt {number}: {answer.error}")
        values = {"prompt": prompts[number - 1], **_values(answer), "customization": str(entry) if entry else None}
        _print(answer, values, output)


def _engine(entry: Path | None, base: str | None, dtype: str, device: str | None) -> Engine:
    """An engine on the entry's base, or on an entry's own weights where it has some."""
    if entry is None:
        assert base is not None  # the caller asked for one of the two
        return Engine(load_base(base, dtype=options.dtype(dtype), device=device))
    customized = bank.load(entry, base_of(entry, base, device, dtype))
    engine = Engine(customized.base)
    engine.load(_NAME, customized)
    return engine


def _answer_batch(
    path: Path,
    folder: Path | None,
    base: str | None,
    dtype: str,
    device: str | None,
    defaults: Sampling,
    output: Output,
) -> None:
    """Answer the rows of a file; one that cannot be answered says why, and the others go on."""
    rows = [row for _line, row in read_each(path)]
    if not rows:
        raise TunescopeError(f"{path} has no rows.")
    entries = [] if folder is None else [entry.name for entry in bank.list_entries(folder)]
    if folder is not None and not entries:
        raise BankError(f"{folder} has no entries.")
    if base is None:
        if folder is None:
            raise TunescopeError("Name a base with --base, or a bank of entries made for one with --bank.")
        base = bank.read_record(folder / entries[0]).base.name
    record_of = functools.cache(lambda name: bank.read_record(folder / name))
    parsed = [_request(row, defaults, entries, record_of) for row in rows]
    engine = Engine(load_base(base, dtype=options.dtype(dtype), device=device))
    refused = _load_entries(engine, folder, parsed)
    parsed = [refused.get(row.customization or "", row) if isinstance(row, Request) else row for row in parsed]
    printer = _InOrder(parsed, output)
    asked = [index for index, row in enumerate(parsed) if isinstance(row, Request)]
    start = time.perf_counter()
    with output.progress.status("answering") as status:

        def done(index: int, answer: Generated) -> None:
            printer.add(asked[index], answer)
            status.update(f"answering: {printer.answered} of {len(parsed)}")

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
    speed = f"{totals['tokens']} tokens, {totals['tokens_per_s']} a second."
    output.result(totals, lambda _console: output.note(speed))
    if printer.failed:
        raise TunescopeError(f"{path}: {printer.failed} of {len(parsed)} rows could not be answered; each says why.")


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
    name = settings.pop("customization", None)
    asked = {key: value for key in _ASKED if (value := settings.pop(key, None)) is not None}
    if len(asked) != 1:
        return _refusal(
            "The row needs prompt (a text), messages (a list of {role, content}) or row (an object of columns), and "
            "one of them."
        )
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
        return Request(prompt, name, Sampling.parse(chosen))
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

    def __init__(self, rows: list[Request | Generated], output: Output) -> None:
        self._rows, self._output = rows, output
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
            _print(answer, {**_values(answer), "customization": name}, self._output, self._next)


def _values(answer: Generated) -> dict[str, Any]:
    if answer.error is not None:
        return {"error": answer.error}
    values: dict[str, Any] = {
        "text": answer.text,
        "tokens": len(answer.tokens),
        "finished": answer.finished,
        "reason": answer.reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
    }
    if answer.logprobs is not None:
        values["logprobs"] = answer.logprobs
    if answer.choice_logprobs is not None:
        values["choice_logprobs"] = answer.choice_logprobs
        values["probabilities"] = probabilities_of(answer.choice_logprobs)
    if answer.others:
        values["samples"] = [_values(replace(each, others=())) for each in (answer, *answer.others)]
    return values


def _print(answer: Generated, values: dict[str, Any], output: Output, number: int | None = None) -> None:
    texts = [f"Error: {answer.error}"] if answer.error is not None else [e.text for e in (answer, *answer.others)]
    before = "" if number is None else f"[{number}] "

    def show(_console: Any) -> None:
        for text in texts:
            output.write(before + text)

    output.result(values, show)


def _names_entry(text: str) -> bool:
    """Whether a text is the path of an entry, or stands right in a folder of entries as an entry would."""
    path = Path(text)
    try:
        if (path / bank.RECORD).is_file():
            return True
        return len(path.parts) > 1 and " " not in text and bool(bank.list_entries(path.parent))
    except (OSError, ValueError):  # too long for a path, or with characters none can have
        return False
