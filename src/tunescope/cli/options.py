"""Options that several commands share, with one help text each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from tunescope.errors import UnknownNameError

Dtype = Literal["auto", "float32", "bfloat16"]

BaseName = Annotated[
    str, typer.Option("--base", help="Base model: hub id, folder, .gguf file, or a built-in name (smollm2-135m).")
]
OptionalBase = Annotated[
    str | None, typer.Option("--base", help="Base model. By default the one the entry was made for.")
]
Data = Annotated[
    str, typer.Option("--data", help="Rows: a .jsonl, .csv or .parquet file, a built-in set (reuters-r8), or a hub id.")
]
Split = Annotated[str | None, typer.Option("--split", help="Which part of a built-in or hub data set.")]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help='How columns make a prompt and its completion: "{text} topic: {label}". Braces hold the name of a column, '
        "{{ and }} are braces; \\n is a line break, \\t a tab, \\\\ a backslash.",
    ),
]
Style = Annotated[str, typer.Option("--style", help="chat, plain, or auto for what the base's tokenizer is made for.")]
DtypeName = Annotated[
    str, typer.Option("--dtype", help="Precision: float32, bfloat16, or auto for what this machine is fast at.")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", help="Where to compute: cpu, cuda, cuda:1, mps. By default the accelerator if there is one."
    ),
]
SkipBad = Annotated[int, typer.Option("--skip-bad", min=0, help="How many bad rows may be left out.")]
Judge = Annotated[
    str,
    typer.Option("--judge", help="Who scores completions: sentiment, module:function, or BANK/NAME of a reward model."),
]
OptionalJudge = Annotated[
    str | None,
    typer.Option("--judge", help="Compare sampled completions: sentiment, module:function, or a reward model."),
]
SkipUnjudged = Annotated[int, typer.Option("--skip-unjudged", min=0, help="How many samples the judge may fail on.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines; progress goes to stderr.")]
Restart = Annotated[bool, typer.Option("--restart", help="Forget an unfinished run and start over.")]
Entry = Annotated[Path, typer.Argument(metavar="BANK/NAME", help="An entry of a bank.")]


def typed(template: str | None, on_note: Callable[[str], None]) -> str | None:
    """A template as it was meant: shells pass a typed ``\\n`` on as a backslash and an n. Says so where it changes."""
    if template is None:
        return None
    meant = re.sub(r"\\([nt\\])", lambda match: _ESCAPES[match[1]], template)
    if meant != template:
        on_note("In --template \\n is read as a line break, \\t as a tab and \\\\ as a backslash.")
    return meant


_ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def dtype(name: str) -> Dtype:
    """Check a precision's name.

    Raises:
        UnknownNameError: with the names there are.
    """
    if name not in get_args(Dtype):
        raise UnknownNameError("dtype", name, get_args(Dtype))
    return name  # type: ignore[return-value]
