"""The commands. Bodies import what they need when they run, so that help is fast."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope.cli import options
from tunescope.cli.output import Output
from tunescope.errors import TunescopeError


def build_app(arguments: list[str]) -> typer.Typer:
    """The application. ``train`` has a subcommand for each method, made only when it is what was called."""
    app = typer.Typer(
        help="Customize a language model by every method, measure what each buys on your data, and take the right one.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.command()(pull)
    app.command()(look)
    app.add_typer(_train_app(arguments), name="train")
    app.command("eval")(evaluate)
    app.command()(predict)
    _add_generate(app, arguments)
    _add_pairs(app, arguments)
    _add_compare(app, arguments)
    app.add_typer(_bank_app(), name="bank")
    app.command()(doctor)
    _expand_homes(app)
    return app


def _expand_homes(app: typer.Typer) -> None:
    """Have every path that a command takes begin at home where it begins in ``~``: the shell leaves ``--out=~/x``."""
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _expand_homes(group.typer_instance)
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _with_homes(command.callback)


def _with_homes(command: Callable[..., Any]) -> Callable[..., Any]:
    def at_home(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [at_home(each) for each in value]
        # pathlib's own raises for an unknown user
        return Path(os.path.expanduser(value)) if isinstance(value, Path) else value  # noqa: PTH111

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> Any:
        return command(*args, **{name: at_home(value) for name, value in given.items()})

    return run


def pull(
    name: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or a built-in name (smollm2-135m).")],
    source: Annotated[str, typer.Option("--from", help="auto, or hub to prefer the hub's original.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Fetch a base model into the cache and fingerprint it."""
    from tunescope.cli.pull import pull_base

    pull_base(name, source, revision, Output(as_json))


def look(
    data: Annotated[str, typer.Argument(help="Rows: a file, a built-in set or a hub id.")],
    base: options.BaseName,
    split: options.Split = None,
    template: options.Template = None,
    style: options.Style = "auto",
    max_length: Annotated[int | None, typer.Option(min=2, help="Most tokens a row may have.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    skip_bad: options.SkipBad = 0,
    as_json: options.AsJson = False,
) -> None:
    """Show the exact tokens a model will learn from, before any compute: what is trained, what is cut, how long."""
    from tunescope.cli.look import look_at

    look_at(data, base, split, template, style, max_length, rows, skip_bad, Output(as_json))


def evaluate(
    context: typer.Context,
    data: options.Data,
    entry: Annotated[
        Path | None, typer.Argument(metavar="[BANK/NAME]", help="An entry of a bank; none for the base as it is.")
    ] = None,
    base: options.OptionalBase = None,
    split: options.Split = None,
    template: options.Template = None,
    style: options.Style = "auto",
    probe: Annotated[
        Path | None, typer.Option(help="Your own probe of forgetting: rows with text, or question, choices, answer.")
    ] = None,
    all_probes: Annotated[bool, typer.Option("--all-probes", help="Every probe question, not a fixed sample.")] = False,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Most rows, a stratified sample; all by default.")] = None,
    generate_rows: Annotated[
        int | None, typer.Option(min=0, help="Rows to generate freely for; all by default.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of a generated text.")] = 128,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a row; by default as it was trained.")
    ] = None,
    skip_bad: options.SkipBad = 0,
    plot: Annotated[
        Path | None, typer.Option(help="HTML file to draw the calibration in, of an entry measured on pairs.")
    ] = None,
    judge: options.OptionalJudge = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Completions of each prompt to sample for --judge.")] = 4,
    skip_unjudged: options.SkipUnjudged = 10,
    device: options.Device = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure an entry on rows it has not seen: task, forgetting on and off, latency, cost.

    An entry trained on pairs (dpo, reward) is measured on pairs: accuracy, margin, calibration. A reward model scores
    rows of prompt and completion. With --judge an entry's sampled completions of prompts are compared with its base's:
    score, win rate, and how far they moved (KL).
    """
    from tunescope.cli.eval import evaluate_entry

    evaluate_entry(
        entry,
        base,
        device,
        data,
        split=split,
        template=template,
        style=style,
        probe=probe,
        all_probes=all_probes,
        max_rows=max_rows,
        generate_rows=generate_rows,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        skip_bad=skip_bad,
        plot=plot,
        judge=judge,
        n=n,
        skip_unjudged=skip_unjudged,
        given={name for name in context.params if _is_given(context, name)},
        output=Output(as_json),
    )


def predict(
    entry: options.Entry,
    data: Annotated[
        str,
        typer.Option("--data", help="Rows to answer: a .jsonl, .json, .csv, .tsv or .parquet file, a set or a hub id."),
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write: .csv, .tsv, .jsonl, .json or .parquet.")],
    base: options.OptionalBase = None,
    split: options.Split = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a generated text; 128 by default.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Most tokens of a row; by default as it was trained.")
    ] = None,
    skip_bad: Annotated[
        int,
        typer.Option("--skip-bad", min=0, help="How many rows may stay without an answer; the column error says why."),
    ] = 0,
    dtype: options.DtypeName = "auto",
    device: options.Device = None,
    restart: options.Restart = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Answer new rows through an entry's own template: a label with probabilities, or a text.

    The rows need the columns that the template names; the one it learned may be missing or empty. They are written with
    all their columns and, behind these, prediction and, where the entry was trained on labels, probability and one
    probability_LABEL each (in JSON one object, probabilities). A call that was stopped goes on when it is made again.
    """
    from tunescope.cli.predict import predict_rows

    predict_rows(
        entry,
        base,
        data,
        out,
        split=split,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        skip_bad=skip_bad,
        dtype=dtype,
        device=device,
        restart=restart,
        overwrite=overwrite,
        output=Output(as_json),
    )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def doctor(as_json: options.AsJson = False) -> None:
    """Say what this machine can do: processor, precision, memory, versions, cache."""
    from tunescope.cli.doctor import examine

    examine(Output(as_json))


def _train_app(arguments: list[str]) -> typer.Typer:
    app = typer.Typer(help="Customize a base by one method and keep the result.", no_args_is_help=True)
    if arguments[:1] != ["train"]:
        return app
    from tunescope.cli.train import meaningless, training_command
    from tunescope.methods.registry import METHODS

    names = METHODS.names()
    if len(arguments) > 1 and not arguments[1].startswith("-"):
        called = METHODS.load(arguments[1])  # an unknown name is answered with the nearest ones
        for name in sorted(meaningless(called)):
            if _flag(name) in _flags(arguments):
                raise TunescopeError(f"{arguments[1]} trains nothing, so {_flag(name)} has no meaning: leave it out.")
        names = list(dict.fromkeys([*names, arguments[1]]))  # a composition (prompt-tuning+lora) is none of the listed
    objective = _objective(arguments)
    for name in names:
        method = METHODS.load(name)
        app.command(name, help=(method.__doc__ or "").strip())(training_command(method, objective))
    return app


def _add_generate(app: typer.Typer, arguments: list[str]) -> None:
    if arguments[:1] != ["generate"]:

        def generate() -> None:
            """Answer prompts by the base or its customizations, any mix of them in one batch."""

        app.command()(generate)
        return
    from tunescope.cli.generate import generate_command

    app.command("generate")(generate_command())


def _objective(arguments: list[str]) -> Any:
    """The objective's class that ``--objective`` names: the flags that a training has depend on it.

    Raises:
        UnknownNameError: with the nearest names.
        TunescopeError: a flag of another objective.
    """
    from tunescope.objectives.registry import OBJECTIVES

    chosen = "sft"
    for argument, value in zip(arguments, [*arguments[1:], chosen], strict=True):
        if argument.partition("=")[0] == "--objective":
            chosen = argument.partition("=")[2] or value
    found = OBJECTIVES.load(chosen)
    for name in OBJECTIVES.names():
        for field in OBJECTIVES.load(name).model_fields:
            if _flag(field) in _flags(arguments) and field not in found.model_fields:
                raise TunescopeError(
                    f"{_flag(field)} belongs to --objective {name}, and this is {chosen}: leave one of them out."
                )
    return found


def _flags(arguments: list[str]) -> set[str]:
    return {argument.partition("=")[0] for argument in arguments}


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _add_pairs(app: typer.Typer, arguments: list[str]) -> None:
    if arguments[:1] != ["pairs"]:

        def pairs() -> None:
            """Make pairs of a model's own samples: the best and the worst of each prompt's, as a judge finds them."""

        app.command()(pairs)
        return
    from tunescope.cli.pairs import pairs_command

    app.command("pairs")(pairs_command())


def _add_compare(app: typer.Typer, arguments: list[str]) -> None:
    if arguments[:1] != ["compare"]:

        def compare() -> None:
            """Train and measure the methods on your data within a budget, and say which one to take."""

        app.command()(compare)
        return
    from tunescope.cli.compare import compare_command

    app.command("compare")(compare_command())


def _bank_app() -> typer.Typer:
    app = typer.Typer(help="Look after customizations at rest.", no_args_is_help=True)

    @app.command("list")
    def list_entries(
        bank: Annotated[Path, typer.Argument(help="Folder of entries.")], as_json: options.AsJson = False
    ) -> None:
        """List the entries of a bank."""
        from tunescope.cli.bank import list_bank

        list_bank(bank, Output(as_json))

    @app.command()
    def show(entry: options.Entry, as_json: options.AsJson = False) -> None:
        """Show an entry's record: method, base, data, training, measurements."""
        from tunescope.cli.bank import show_entry

        show_entry(entry, Output(as_json))

    @app.command()
    def verify(
        entry: options.Entry,
        base: options.OptionalBase = None,
        device: options.Device = None,
        as_json: options.AsJson = False,
    ) -> None:
        """Check that an entry still is what was saved: base, tensors, template, and the logits it computes."""
        from tunescope.cli.bank import verify_entry

        verify_entry(entry, base, device, Output(as_json))

    @app.command()
    def export(
        entry: options.Entry,
        to: Annotated[str, typer.Option("--to", help="peft, or transformers for a merged model folder.")],
        out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
        base: options.OptionalBase = None,
        device: options.Device = None,
        as_json: options.AsJson = False,
    ) -> None:
        """Write an entry for other tools: PEFT's format, or a transformers folder with the effects in its weights."""
        from tunescope.cli.bank import export_entry

        export_entry(entry, to, out, base, device, Output(as_json))

    @app.command("import")
    def import_folder(
        folder: Annotated[Path, typer.Argument(help="A folder that PEFT wrote.")],
        base: options.BaseName,
        out: Annotated[Path, typer.Option("--out", help="The bank entry to write: BANK/NAME.")],
        device: options.Device = None,
        template: options.Template = None,
        style: options.Style = "auto",
        as_json: options.AsJson = False,
    ) -> None:
        """Make an entry of a folder that PEFT wrote (LoRA, IA3, prompt tuning, p-tuning).

        PEFT records no template: say with --style and --template what the adapter was trained under.
        """
        from tunescope.cli.bank import import_entry

        import_entry(folder, base, out, template, style, device, Output(as_json))

    @app.command()
    def merge(
        entries: Annotated[list[Path], typer.Argument(metavar="BANK/NAME...", help="LoRA entries of one base.")],
        out: Annotated[Path, typer.Option("--out", help="The bank entry to write: BANK/NAME.")],
        weights: Annotated[
            str | None, typer.Option(help="A weight for each, 0.7,0.3; equal ones that sum to 1 by default.")
        ] = None,
        how: Annotated[str, typer.Option(help="linear (exact), ties or dare.")] = "linear",
        density: Annotated[float, typer.Option(help="Share of the entries that ties and dare keep.")] = 0.5,
        rank: Annotated[int | None, typer.Option(min=1, help="Rank of the result; by default what it needs.")] = None,
        device: options.Device = None,
        as_json: options.AsJson = False,
    ) -> None:
        """Make one LoRA of several."""
        from tunescope.cli.bank import merge_entries

        merge_entries(entries, weights, how, density, rank, out, device, Output(as_json))

    return app
