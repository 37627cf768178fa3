"""``compare``: the spectrum on the user's own data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tunescope.base import load_base
from tunescope.cli import options
from tunescope.cli.flags import duration, with_settings
from tunescope.cli.output import Output
from tunescope.cli.progress import ComparisonProgress
from tunescope.comparison import CompareSettings, Comparison, compare, render_table
from tunescope.data.inputs import has_part
from tunescope.data.reading import Table, read
from tunescope.data.rows import Row, to_rows
from tunescope.data.template import default_template
from tunescope.errors import DataError
from tunescope.evaluation import default_probes, user_probes
from tunescope.locks import check_free


def compare_command() -> Callable[..., None]:
    """The command, with a flag for each setting of a comparison."""

    def run(
        base: options.BaseName,
        data: options.Data,
        out: Annotated[Path, typer.Option("--out", help="Folder for the bank, comparison.json and report.html.")],
        settings: Any,
        test: Annotated[
            str | None,
            typer.Option("--test", help="Test rows. By default a built-in set's own, else a fifth is held out."),
        ] = None,
        budget: Annotated[str, typer.Option("--budget", help="Time for everything: 90s, 10m, 1h30m.")] = "10m",
        split: options.Split = None,
        template: options.Template = None,
        style: options.Style = "auto",
        dtype: options.DtypeName = "auto",
        device: options.Device = None,
        probe: Annotated[
            Path | None, typer.Option("--probe", help="Your own probe of forgetting: text, or question/choices/answer.")
        ] = None,
        all_probes: Annotated[
            bool, typer.Option("--all-probes", help="Every probe question, not a fixed sample.")
        ] = False,
        skip_bad: options.SkipBad = 0,
        restart: options.Restart = False,
        as_json: options.AsJson = False,
    ) -> None:
        """Train and measure the methods on your data within a budget, and say which one to take."""
        output = Output(as_json)
        template = options.typed(template, output.note)
        check_free(out)
        once = tuple(dict.fromkeys(settings.methods))
        settings = settings.model_copy(update={"budget_seconds": duration(budget), "methods": once})
        table = read(data, split=split, skip_bad=skip_bad)
        pattern = template or table.default_template
        rows = to_rows(table, pattern, skip_bad=skip_bad - len(table.skipped), on_note=output.note)
        test_rows = _test_rows(data, test, split, pattern, skip_bad, output)
        probes = user_probes(probe) if probe is not None else default_probes(everything=all_probes)
        loaded = load_base(base, dtype=options.dtype(dtype), device=device)
        default_template(loaded.tokenizer, pattern=pattern, style=style)  # a style that no method could take stops here
        progress = ComparisonProgress(output.progress)
        try:
            found = compare(
                loaded,
                rows,
                test_rows,
                out=out,
                settings=settings,
                pattern=pattern,
                style=style,
                probes=probes,
                name=table.name,
                restart=restart,
                watcher=progress,
            )
        finally:
            progress.close()
        output.result(found.model_dump(mode="json"), lambda console: _show(console, found))

    return with_settings(run, {"settings": CompareSettings}, leave_out=["budget_seconds"])


def _test_rows(
    data: str, test: str | None, split: str | None, pattern: str | None, skip_bad: int, output: Output
) -> list[Row] | None:
    """Rows named by --test, or the test part of a built-in set."""
    if test is not None:
        table: Table = read(test, skip_bad=skip_bad)
    elif has_part(data, "test") and split != "test":
        table = read(data, split="test")
    else:
        return None
    if not len(table):
        raise DataError(f"{table.path}: no test rows.")
    return to_rows(table, pattern, skip_bad=skip_bad - len(table.skipped), on_note=output.note)


def _show(console: Console, found: Comparison) -> None:
    console.print(render_table(found, console.width))
    console.print(found.advice.text)
    console.print(f"\nReport: {found.report}")
