"""``pairs``: preference pairs from a model's own samples."""

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
from tunescope.data.reading import read
from tunescope.data.rows import to_rows
from tunescope.data.template import default_template
from tunescope.errors import TunescopeError
from tunescope.judging import Samples, load_judge, make_pairs
from tunescope.judging.preference_pairs import check_files, samples_path
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


def _customized(entry: Path | None, base: str | None, dtype: str, device: str | None) -> Customized:
    if entry is None and base is None:
        raise TunescopeError("Name whose completions to sample: an entry of a bank, or a base with --base.")
    if entry is not None:
        return bank.load(entry, base_of(entry, base, device, dtype))
    assert base is not None  # one of the two was named
    loaded = load_base(base, dtype=options.dtype(dtype), device=device)
    return Customized(loaded, Customization(ZeroShot(), default_template(loaded.tokenizer), {}), loaded)
