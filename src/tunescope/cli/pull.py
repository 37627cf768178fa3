"""``pull``: fetch a base model."""

from __future__ import annotations

from tunescope.base import load_base
from tunescope.base.sources import resolve
from tunescope.cli.output import Output, print_facts
from tunescope.errors import TunescopeError, UnknownNameError


def pull_base(name: str, source: str, revision: str | None, output: Output) -> None:
    """Fetch a base, load it once and say what it is."""
    if source not in ("auto", "hub"):
        raise UnknownNameError("source (--from)", source, ("auto", "hub"))
    found = resolve(name, prefer=source, revision=revision)  # type: ignore[arg-type]
    if revision is not None and not found.origin.startswith("the hub's"):
        raise TunescopeError(f"--revision {revision}: only the hub has revisions, and {name} is {found.origin}.")
    base = load_base(found.folder)
    values = {
        "name": name,
        "origin": found.origin,
        "folder": str(found.folder),
        "fingerprint": base.fingerprint.short,
        "parameters": base.parameters,
        "context": base.context_length,
        "chat_template": bool(base.tokenizer.chat_template),
    }
    output.result(values, lambda console: print_facts(console, values))
