"""``mix``: a mixture of tasks, written out as rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.errors import TunescopeError
from tunescope.settings import Shown

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class MixResult(Result):
    """What is in a mixture."""

    def show(self, console: Console) -> None:
        """A line a task, then the file."""
        from rich.table import Table

        table = Table("task", "rows", "share", "of tokens", "different rows", "rows by template", box=None)
        for name, own in self.values["tasks"].items():
            tokens = "" if own["token_share"] is None else f"{own['token_share']:.1%}"
            templates = ", ".join(map(str, own["templates"]))
            table.add_row(name, str(own["rows"]), f"{own['share']:.1%}", tokens, str(own["available"]), templates)
        console.print(table)
        for name, rows in self.values["leaks"].items():
            console.print(f"unseen {name}: {rows} of its rows share words with the mixture", markup=False)
        console.print(str(self.path), markup=False, soft_wrap=True)


class MixRequest(Command):
    """Mix tasks for instruction tuning: how many rows of each, worded by its templates, whole tasks held out.

    The mixture is a .yaml file (docs/instruction-tuning.md). Its rows are written as JSON lines with prompt,
    completion, task and source, in an order drawn by the seed; look, train and eval read them as any rows.
    """

    suffix: ClassVar[str] = ".jsonl"

    mixture: Annotated[fields.HomePath, Shown("MIXTURE.yaml", positional=True)]
    """The tasks and their shares."""
    out: fields.HomePath
    """The .jsonl file to write."""
    base: fields.OptionalBase = None
    """Whose tokens are counted; needed for shares of tokens."""
    overwrite: fields.Overwrite = False

    def run(self, report: Report | None = None) -> MixResult:
        """Draw the rows, write them, and say what they are."""
        from dataclasses import asdict

        from tunescope import storage
        from tunescope.commands.yaml_file import read_mixture
        from tunescope.data.mixture import mix
        from tunescope.locks import writing

        report = report or Report()
        if self.out.suffix != ".jsonl":
            raise TunescopeError(f"{self.out}: a mixture is written as JSON lines. Give --out a name in .jsonl.")
        mixture = read_mixture(self.mixture)
        with writing(self.out):
            if self.out.exists() and not self.overwrite:
                raise TunescopeError(
                    f"{self.out} exists already. Choose another --out, or replace it with --overwrite."
                )
            storage.check_output(self.out)
            mixed = mix(mixture, _counter(self.base))
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in mixed.rows)
            storage.write_output(self.out, lines)
        for note in dict.fromkeys(mixed.notes):
            report.note(note)
        values: dict[str, Any] = {
            "rows": len(mixed.rows),
            "tasks": {name: asdict(share) for name, share in mixed.shares.items()},
            "leaks": mixed.leaks,
            "file": str(self.out),
        }
        return MixResult(values, self.out)


def _counter(base: str | None) -> Callable[[str], int] | None:
    if base is None:
        return None
    from tunescope.base.loading import load_tokenizer

    tokenizer, _ = load_tokenizer(base)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
