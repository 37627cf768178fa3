"""``look``: the exact tokens that training would see."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.settings import Shown


class LookRequest(Command):
    """Show the exact tokens a model will learn from, before any compute: what is trained, what is cut, how long."""

    data: Annotated[str, Shown("DATA", positional=True)]
    """Rows: a file, a built-in set or a hub id."""
    base: fields.BaseName
    split: fields.Split = None
    template: fields.Template = None
    style: fields.Style = "auto"
    max_length: int | None = Field(None, ge=2)
    """Most tokens a row may have."""
    rows: int = Field(3, ge=0)
    """How many rows to show."""
    skip_bad: fields.SkipBad = 0

    def run(self, report: Report | None = None) -> Result:
        """Show rows as tokens, the lengths of all, and what is cut."""
        from tunescope.commands.look_tokens import look

        return look(self, report or Report())
