"""What a command works on: an entry of a bank on its base, or a base as it is."""

from __future__ import annotations

from pathlib import Path

from tunescope import bank
from tunescope.bank import Record
from tunescope.base import Base, load_base
from tunescope.base.loading import Dtype
from tunescope.data.template import default_template
from tunescope.errors import TunescopeError
from tunescope.methods import Customization, Customized, ZeroShot


def base_of(entry: Path, base: str | None, device: str | None, dtype: Dtype = "auto") -> Base:
    """The base that was named, or else the one the entry was made for, in this precision on this device."""
    named = base if base is not None else bank.read_record(entry).base.name
    return load_base(named, dtype=dtype, device=device)


def check_subject(entry: Path | None, base: str | None, what: str) -> None:
    """See that one of the two is named; ``what`` begins the message: ``Name what to measure``.

    Raises:
        TunescopeError: neither is.
    """
    if entry is None and base is None:
        raise TunescopeError(f"{what}: an entry of a bank, or a base with --base.")


def check_answers(entry: Path | None, record: Record | None) -> None:
    """See that what is measured by its answers gives some.

    Raises:
        TunescopeError: it is a reward or an attribute model.
    """
    if record is not None and record.objective in ("reward", "attributes"):
        raise TunescopeError(f"{entry} gives texts numbers and no answers: measure it on rows of its own.")


def customized_of(
    entry: Path | None,
    base: str | None,
    device: str | None,
    dtype: Dtype = "auto",
    *,
    pattern: str | None = None,
    style: str = "auto",
) -> Customized:
    """The entry on its base, or the base alone as a customization that changes nothing.

    Args:
        entry: of a bank.
        base: its name; by default the entry's.
        device: where to compute.
        dtype: precision.
        pattern: of the base's template, where there is no entry.
        style: of the base's template.
    """
    if entry is not None:
        return bank.load(entry, base_of(entry, base, device, dtype))
    loaded = load_base(str(base), dtype=dtype, device=device)
    template = default_template(loaded.tokenizer, pattern=pattern, style=style)
    return Customized(loaded, Customization(ZeroShot(), template, {}), loaded)
