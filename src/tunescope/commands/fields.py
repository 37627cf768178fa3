"""Settings that several commands have, with one help text each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tunescope.errors import UnknownNameError
from tunescope.settings import Names, Shown


def _at_home(path: Path) -> Path:
    # The shell leaves --out=~/x as it is; pathlib's own raises for an unknown user.
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _one_of(kind: str, *names: str) -> BeforeValidator:
    def check(name: Any) -> Any:
        if name not in names:
            raise UnknownNameError(kind, str(name), names)
        return name

    return BeforeValidator(check)


HomePath = Annotated[Path, AfterValidator(_at_home)]
BaseName = Annotated[
    str,
    Field(
        description="Base model: hub id, folder, .gguf file, or a built-in name (smollm2-135m). With :nf4 or :int8 "
        "behind it, its linear maps are kept in 4 or 8 bits."
    ),
]
OptionalBase = Annotated[str | None, Field(description="Base model. By default the one the entry was made for.")]
Data = Annotated[
    str, Field(description="Rows: a .jsonl, .csv or .parquet file, a built-in set (reuters-r8), or a hub id.")
]
Split = Annotated[str | None, Field(description="Which part of a built-in or hub data set.")]
Lines = Annotated[
    HomePath | None,
    Field(description="File of line numbers, one a line: only the rows on these lines are read. `compare` leaves one."),
]
Template = Annotated[
    str | None,
    Shown(escapes=True),
    Field(
        description='How columns make a prompt and its completion: "{text} topic: {label}". Braces hold the name of a '
        "column, {{ and }} are braces; \\n is a line break, \\t a tab, \\\\ a backslash."
    ),
]
Style = Annotated[str, Field(description="chat, plain, or auto for what the base's tokenizer is made for.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"],
    _one_of("dtype", "auto", "float32", "bfloat16"),
    Field(description="Precision: float32, bfloat16, or auto for what this machine is fast at."),
]
Device = Annotated[
    str | None,
    Field(description="Where to compute: cpu, cuda, cuda:1, mps. By default the accelerator if there is one."),
]
Processes = Annotated[
    int,
    Field(
        gt=0,
        description="Processes that compute a share of each step's rows: of this machine's cores, or of its GPUs, one "
        "each. The result is the same but for rounding and dropout.",
    ),
]
SkipBad = Annotated[int, Field(ge=0, description="How many bad rows may be left out.")]
Judge = Annotated[
    Names,
    Field(
        description="Who scores completions: sentiment, exact, regex:PATTERN, words:N, tokens:N, module:function, or "
        "BANK/NAME of a reward model. Given several times, as 0.7*NAME, their weighted sum."
    ),
]
SkipUnjudged = Annotated[int, Field(ge=0, description="How many samples the judge may fail on.")]
Restart = Annotated[bool, Field(description="Forget an unfinished run and start over.")]
Overwrite = Annotated[bool, Field(description="Replace what is there under that name, if tunescope wrote it.")]
Entry = Annotated[
    HomePath,
    Shown("BANK/NAME", positional=True),
    Field(description="An entry of a bank; BANK/TABLE:TASK for a task's in a table."),
]
OptionalEntry = Annotated[HomePath | None, Shown("[BANK/NAME]", positional=True)]
EntryOut = Annotated[HomePath, Field(description="The bank entry to write: BANK/NAME.")]
Probe = Annotated[
    HomePath | None,
    Field(description="Your own probe of forgetting: rows with text, or question, choices, answer."),
]
AllProbes = Annotated[bool, Field(description="Every probe question, not a fixed sample.")]
Steer = Annotated[
    str | None,
    Shown("NAME=VALUE,..."),
    Field(description="What answers are to be like, of an entry trained with --steer-columns: quality=4,verbosity=1."),
]
Source = Annotated[Literal["auto", "hub"], _one_of("source (--from)", "auto", "hub")]
