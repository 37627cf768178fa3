"""Markers: records of what tunescope wrote, with kind and SHA-256.

Each folder that tunescope makes holds a marker, ``.tunescope.json``, with its kind and the SHA-256 of its files. A
single file has its marker beside it: ``.NAME.tunescope.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.storage.files import atomic_write, sha256_file

MARKER = ".tunescope.json"
_intact: set[Path] = set()  # folders of the cache whose checksums this process has compared
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of folder that tunescope writes, and which files belong to it.

    Attributes:
        name: in words, for messages.
        unsealed: patterns of its files that have no checksum, because they change while the folder is filled. ``*``
            matches no slash; ``**`` matches every file.
        unmarked: for a folder without a marker, written before there were markers: the patterns of its files, or None
            if the folder is not of this kind.
    """

    name: str
    unsealed: tuple[str, ...] = ()
    unmarked: Callable[[Path], Sequence[str] | None] = lambda folder: None


PARTIAL = Kind("unfinished folder")
"""A folder that ``atomic_folder`` is filling."""


def is_marked(folder: Path, kind: Kind | None = None) -> bool:
    """Whether a folder has a marker: tunescope wrote it and has checksums of its sealed files.

    Args:
        folder: that may be marked.
        kind: the marker can be read and is of this kind.
    """
    if kind is None:
        return (folder / MARKER).is_file()
    marker = read_marker(folder)
    return marker is not None and marker["kind"] == kind.name


def broken(folder: Path, but: Sequence[str] = ()) -> str | None:
    """The first difference from what ``atomic_folder`` wrote, in words; None if there is none.

    Reads every file, about 1 GB a second. A folder without a marker has no checksums to compare with, and gives None.

    Args:
        folder: whose files are compared.
        but: names of files to leave out.
    """
    if not is_marked(folder):
        return None
    marker = read_marker(folder)
    if marker is None:
        return f"{folder / MARKER} cannot be read"
    for name, sums in marker["sha256"].items():
        if name in but:
            continue
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if sha256_file(folder / name) not in sums:
            return f"{folder / name} is not what was saved (its SHA-256 differs)"
    return None


def intact(folder: Path) -> bool:
    """Whether a folder of the cache is unchanged since it was made; checked once a process, about 0.2 s for 270 MB."""
    if folder in _intact:
        return True
    if damage := broken(folder):
        _log.warning("%s; it is made again.", damage)
        return False
    _intact.add(folder)
    return True


def read_marker(folder: Path) -> dict[str, Any] | None:
    """A folder's marker; None if it is missing or unreadable."""
    try:
        found = json.loads((folder / MARKER).read_bytes())
        return found if isinstance(found["sha256"], dict) and isinstance(found["unsealed"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_marker(folder: Path, kind: Kind, sums: dict[str, list[str]]) -> None:
    """Mark a folder: its kind, and the SHA-256 of its files by relative path."""
    marker = {"kind": kind.name, "sha256": sums, "unsealed": kind.unsealed}
    atomic_write(folder / MARKER, json.dumps(marker, indent=1))


def marker_beside(file: Path) -> Path:
    """The marker of a single file."""
    return file.with_name(f".{file.name}{MARKER}")


def sums_around_write(path: Path, new: bytes) -> list[str]:
    """SHA-256 of a file before and after a write: if the process is killed in between, both versions are known."""
    now = [sha256_file(path)] if path.is_file() else []
    return [*now, hashlib.sha256(new).hexdigest()]


def known_sums(file: Path) -> list[str]:
    """The SHA-256 values a file's marker allows; empty if tunescope did not write the file."""
    try:
        found = json.loads(marker_beside(file).read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []
