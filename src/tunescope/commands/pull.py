"""``pull``: fetch a base model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.errors import TunescopeError
from tunescope.settings import Shown


class PullRequest(Command):
    """Fetch a base model into the cache and fingerprint it."""

    name: Annotated[str, Shown("NAME", positional=True)]
    """Hub id, folder, .gguf file, or a built-in name (smollm2-135m)."""
    source: fields.Source = Field("auto", alias="from")
    """auto, or hub to prefer the hub's original."""
    revision: str | None = None
    """Revision on the hub."""

    def run(self, report: Report | None = None) -> Result:
        """Fetch a base, load it once and say what it is."""
        from tunescope.base import load_base
        from tunescope.base.sources import resolve

        found = resolve(self.name, prefer=self.source, revision=self.revision)
        if self.revision is not None and not found.origin.startswith("the hub's"):
            raise TunescopeError(
                f"--revision {self.revision}: only the hub has revisions, and {self.name} is {found.origin}."
            )
        base = load_base(found.folder)
        values = {
            "name": self.name,
            "origin": found.origin,
            "folder": str(found.folder),
            "fingerprint": base.fingerprint.short,
            "parameters": base.parameters,
            "context": base.context_length,
            "chat_template": bool(base.tokenizer.chat_template),
        }
        return Result(values)
