"""The base that a command runs on."""

from __future__ import annotations

from pathlib import Path

from tunescope import bank
from tunescope.base import Base, load_base
from tunescope.cli import options


def base_of(entry: Path, base: str | None, device: str | None, dtype: str = "auto") -> Base:
    """The base that --base names, or else the one the entry was made for, in this precision on this device."""
    named = base if base is not None else bank.read_record(entry).base.name
    return load_base(named, dtype=options.dtype(dtype), device=device)
