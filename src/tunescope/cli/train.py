"""``train METHOD``: its flags are the method's settings and the loop's."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tunescope import bank
from tunescope.base import load_base
from tunescope.cli import options
from tunescope.cli.flags import with_settings
from tunescope.cli.output import Output, print_facts
from tunescope.cli.progress import TrainingProgress
from tunescope.data.reading import read
from tunescope.methods import Method
from tunescope.objectives import Objective
from tunescope.objectives.registry import OBJECTIVES
from tunescope.settings import Settings
from tunescope.training import TrainSettings, train
from tunescope.training.start import pattern_of

Out = Annotated[Path, typer.Option("--out", help="The bank entry to write: BANK/NAME.")]
ObjectiveName = Annotated[
    str,
    typer.Option(
        "--objective",
        help=f"What to train it for: {', '.join(OBJECTIVES.names())}. With it --help shows the objective's own flags.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an entry of that name.")]


def training_command(method_class: type[Method], objective_class: type[Objective]) -> Callable[..., None]:
    """The command that trains one method for one objective."""

    def run(
        base: options.BaseName,
        data: options.Data,
        out: Out,
        method: Any,
        goal: Any,
        settings: Any,
        objective: ObjectiveName = "sft",
        validation: Annotated[
            str | None, typer.Option("--validation", help="Rows that are measured every so often and never learned.")
        ] = None,
        split: options.Split = None,
        template: options.Template = None,
        style: options.Style = "auto",
        skip_bad: options.SkipBad = 0,
        dtype: options.DtypeName = "auto",
        device: options.Device = None,
        start: Annotated[
            Path | None,
            typer.Option("--from", metavar="BANK/NAME", help="An entry to train on top of. It stays as it is."),
        ] = None,
        continued: Annotated[
            Path | None,
            typer.Option(
                "--continue", metavar="BANK/NAME", help="An entry of this method whose own tensors to train on."
            ),
        ] = None,
        restart: options.Restart = False,
        overwrite: Overwrite = False,
        as_json: options.AsJson = False,
    ) -> None:
        # What --objective names is known before the flags are made (see app): here it is ``goal``.
        output = Output(as_json)
        bank.check_free(out, overwrite=overwrite)
        table = read(data, split=split, skip_bad=skip_bad)
        pattern = options.typed(template, output.note) or pattern_of(start or continued, goal) or table.default_template
        rows = goal.rows(table, pattern, skip_bad - len(table.skipped), output.note)
        with TrainingProgress(output.progress, method.name) as progress:
            trained = train(
                load_base(base, dtype=options.dtype(dtype), device=device),
                method,
                goal,
                rows,
                settings=settings,
                out=out,
                pattern=pattern,
                style=style,
                skip_bad=skip_bad - len(table.skipped) - (len(table) - len(rows)),
                name=table.name,
                validation=validation,
                start=start,
                continued=continued,
                restart=restart,
                overwrite=overwrite,
                on_step=progress,
            )
        for note in trained.notes:
            output.note(note)
        summary = trained.summary()
        following = f"Answer new rows: tunescope predict {shlex.quote(str(out))} --data new.csv --out answers.csv"

        def show(console: Console) -> None:
            print_facts(console, summary)
            if trained.record.labels:
                console.print(following, markup=False, soft_wrap=True)

        output.result(summary, show)

    classes: dict[str, type[Settings]] = {"method": method_class, "goal": objective_class, "settings": TrainSettings}
    return with_settings(run, classes, leave_out=meaningless(method_class))


def meaningless(method_class: type[Method]) -> set[str]:
    """Settings of the loop that say nothing about a method: all but the seed (few-shot draws by it) if none trains."""
    return set(TrainSettings.model_fields) - {"seed"} if method_class.trains == "nothing" else set()
