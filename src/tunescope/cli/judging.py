"""``pairs``, and ``eval --judge``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope import bank
from tunescope.base import load_base
from tunescope.cli import options
from tunescope.cli.flags import with_settings
from tunescope.cli.loading import base_of
from tunescope.cli.output import Output, print_facts
from tunescope.cli.progress import CountProgress
from tunescope.data.reading import Table, read
from tunescope.data.rows import to_rows
from tunescope.data.template import default_template
from tunescope.errors import TunescopeError
from tunescope.evaluation import evaluate_judged
from tunescope.judging import Samples, load_judge, make_pairs
from tunescope.judging.pairs import check_files, samples_path
from tunescope.methods import Customization, Customized, ZeroShot

# Nothing that pairs are made by.
_LEFT_OUT = ("choices", "logprobs", "stop", "stop_tokens", "min_new_tokens")


def pairs_command() -> Callable[..., None]:
    """The command; its flags are those of sampling."""

    def run(
        prompts: Annotated[
            str, typer.Option("--prompts", help="Prompts: a file with a column prompt or messages, a built-in set.")
        ],
        judge: options.Judge,
        out: Annotated[Path, typer.Option("--out", help="The .jsonl file of pairs to write.")],
        sampling: Any,
        entry: Annotated[
            Path | None, typer.Argument(metavar="[BANK/NAME]", help="Whose completions; none for the base as it is.")
        ] = None,
        base: options.OptionalBase = None,
        split: options.Split = None,
        template: options.Template = None,
        max_prompts: Annotated[int | None, typer.Option(min=1, help="Only this many prompts, from the first.")] = None,
        skip_bad: options.SkipBad = 0,
        skip_unjudged: options.SkipUnjudged = 10,
        dtype: options.DtypeName = "auto",
        device: options.Device = None,
        restart: options.Restart = False,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files of that name.")] = False,
        as_json: options.AsJson = False,
    ) -> None:
        output = Output(as_json)
        check_files(out, overwrite)
        table = read(prompts, split=split, skip_bad=skip_bad)
        pattern = options.typed(template, output.note) or table.default_template
        left = skip_bad - len(table.skipped)
        rows = to_rows(table, pattern, skip_bad=left, need_completion=False, on_note=output.note)[:max_prompts]
        customized = _customized(entry, base, dtype, device)
        chosen = load_judge(judge, customized.origin)
        with CountProgress(output.progress, "sampling", len(rows), "prompts") as progress:
            made = make_pairs(
                customized, rows, chosen, sampling, out, skip_unjudged=skip_unjudged, restart=restart,
                overwrite=overwrite, on_prompt=progress,
            )  # fmt: skip
        for note in made.notes:
            output.note(note)
        values = made.summary() | {"file": str(out), "samples_file": str(samples_path(out))}
        output.result(values, lambda console: print_facts(console, values))

    run.__doc__ = "Make pairs of a model's own samples: the best and the worst of each prompt's, as a judge finds them."
    return with_settings(run, {"sampling": Samples}, leave_out=_LEFT_OUT)


def evaluate_by_judge(
    entry: Path | None,
    base: str | None,
    device: str | None,
    table: Table,
    *,
    judge: str,
    n: int,
    template: str | None,
    max_rows: int | None,
    max_new_tokens: int,
    skip_bad: int,
    skip_unjudged: int,
    output: Output,
) -> None:
    """Compare an entry's completions with its base's, keep the measurements in its record, and print them."""
    if entry is None:
        raise TunescopeError("--judge compares an entry with its base: name an entry of a bank.")
    record = bank.read_record(entry)
    pattern = template or record.template.pattern or table.default_template
    rows = to_rows(table, pattern, skip_bad=skip_bad, need_completion=False, on_note=output.note)[:max_rows]
    customized = bank.load(entry, base_of(entry, base, device))
    chosen = load_judge(judge, customized.origin)
    sampling = Samples(n=n, max_new_tokens=max_new_tokens)
    with CountProgress(output.progress, "sampling", 2 * len(rows), "prompts") as progress:
        card = evaluate_judged(
            customized, rows, chosen, sampling, skip_unjudged=skip_unjudged,
            on_prompt=lambda whose, done: progress(done + len(rows) * (whose == "base")),
        )  # fmt: skip
    card["artifact_mb"] = bank.size_mb(entry)
    bank.write_card(entry, card, record)
    for note in card["notes"]:
        output.note(note)
    shown = {name: value for name, value in card.items() if name != "notes"}
    output.result(card, lambda console: print_facts(console, shown))


def _customized(entry: Path | None, base: str | None, dtype: str, device: str | None) -> Customized:
    if entry is None and base is None:
        raise TunescopeError("Name whose completions to sample: an entry of a bank, or a base with --base.")
    if entry is not None:
        return bank.load(entry, base_of(entry, base, device, dtype))
    assert base is not None  # one of the two was named
    loaded = load_base(base, dtype=options.dtype(dtype), device=device)
    return Customized(loaded, Customization(ZeroShot(), default_template(loaded.tokenizer), {}), loaded)
