"""Outputs: files and folders that the user names. Only what tunescope wrote itself is deleted or replaced.

``check_replaceable`` alone decides, by the markers: a folder without a marker of the right kind, or with a file that
the marker does not name, stays untouched.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tunescope.errors import TunescopeError
from tunescope.storage.files import (
    atomic_write,
    disk_errors,
    flush,
    put_in_place,
    resolved,
    sha256_file,
    temporary_sibling,
)
from tunescope.storage.markers import (
    MARKER,
    PARTIAL,
    Kind,
    known_sums,
    marker_beside,
    read_marker,
    sums_around_write,
    write_marker,
)

_STALE_SECONDS = 3600  # no write takes an hour, so an unfinished folder this old was left by a killed process
_SCRATCH = re.compile(r"\..+\.(tmp-[0-9a-f]{12}|lock|lock\.json)")  # what writes and locks leave when they are killed


@contextmanager
def atomic_folder(final: str | Path, kind: Kind | None = None) -> Iterator[Path]:
    """Fill a temporary folder beside ``final``, which replaces ``final`` when the block ends without an error.

    If the block raises, the temporary folder is removed and ``final`` stays as it was. On Linux an existing ``final``
    is exchanged in one step; elsewhere two renames follow each other.

    Args:
        final: the folder to write.
        kind: the folder is marked with it and with checksums, and may replace a folder of the same kind. None, for
            other tools' formats: nothing is marked and nothing replaced.

    Raises:
        TunescopeError: ``final`` is not ours to replace, the disk is full or the folder cannot be written.
    """
    shown, final = final, resolved(final)
    check_replaceable(shown, kind)
    temporary = temporary_sibling(final)
    try:
        with disk_errors(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(final)
            temporary.mkdir()
            write_marker(temporary, PARTIAL, {})
            yield temporary
            files = [file for file in sorted(temporary.rglob("*")) if file.is_file() and file != temporary / MARKER]
            if kind is None:
                (temporary / MARKER).unlink()
            else:
                sums = {file.relative_to(temporary).as_posix(): [sha256_file(file)] for file in files}
                write_marker(temporary, kind, sums)
            for file in files:
                flush(file)
            check_replaceable(shown, kind)  # again: the block may have taken hours
            put_in_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # made by this call, or the old folder that it replaced


def claim_folder(folder: str | Path, kind: Kind) -> Path:
    """Make and mark a folder that is filled over time; accept one of this kind that is already there.

    Returns:
        the folder, without symbolic links and ``..``.

    Raises:
        TunescopeError: the folder was not written by tunescope, or is of another kind.
    """
    final = resolved(folder)
    marker = read_marker(final)
    if marker is None or marker["kind"] != kind.name:
        _refuse(folder, _why_foreign(final, kind) if marker is None else _not_a(kind))
        with disk_errors(final):
            _make(final)
            write_marker(final, kind, {})
    return final


def _make(folder: Path) -> None:
    """Make a folder, also where another process removes the empty one above it at this moment."""
    with suppress(FileNotFoundError):
        folder.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


def remove_folder(folder: str | Path, kind: Kind) -> None:
    """Delete a folder that tunescope wrote; no error if there is none.

    The marker is deleted last, so a killed call can be repeated.

    Raises:
        TunescopeError: the folder is not of this kind, or holds a file that tunescope did not write.
    """
    check_replaceable(folder, kind)
    final = resolved(folder)
    if not final.exists():
        return
    for child in final.iterdir():
        if child.name == MARKER:
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    (final / MARKER).unlink(missing_ok=True)
    final.rmdir()


def check_replaceable(path: str | Path, kind: Kind | None) -> None:
    """Refuse to delete or replace a folder that tunescope did not write.

    Allowed are: an unused name, an empty folder, and a folder with the marker of ``kind`` whose markers name all of its
    files. Symbolic links and ``..`` are resolved first.

    Args:
        path: as the user named it.
        kind: of the folder that replaces it; None if nothing may be replaced.

    Raises:
        TunescopeError: with the reason and the remedy.
    """
    _refuse(path, _why_foreign(check_place(path), kind))


def write_output(path: str | Path, content: str | bytes) -> None:
    """Write a file that the user named. An existing one is replaced only if tunescope wrote its content.

    Raises:
        TunescopeError: the file is not ours to replace, the disk is full or the folder cannot be written.
    """
    check_output(path)
    final = resolved(path)
    data = content.encode() if isinstance(content, str) else content
    atomic_write(marker_beside(final), json.dumps({"kind": "file", "sha256": sums_around_write(final, data)}))
    atomic_write(final, data)


def check_output(path: str | Path) -> None:
    """Refuse a file that ``write_output`` would not replace: tunescope did not write it, or it was changed since.

    Raises:
        TunescopeError: with the remedy.
    """
    final = check_place(path)
    if final.is_dir():
        raise TunescopeError(f"{path} is a folder. Name a file to write.")
    if final.exists() and sha256_file(final) not in known_sums(final):
        raise TunescopeError(
            f"{path} exists, and what it holds was not written by tunescope, so it is not replaced. Choose another "
            "name, or delete it yourself."
        )


def rewrite(path: Path, content: str) -> None:
    """Replace one file of a marked folder atomically, and update its checksum in the marker."""
    marker = read_marker(path.parent)
    if marker is not None and path.name in marker["sha256"]:
        marker["sha256"][path.name] = sums_around_write(path, content.encode())
        atomic_write(path.parent / MARKER, json.dumps(marker, indent=1))
    atomic_write(path, content)


def check_place(path: str | Path) -> Path:
    """Refuse paths that must never be an output: the working folder, the home folder and their parents, and an
    unexpanded ``~``, which would make a folder of that name.

    Returns:
        the path without symbolic links and ``..``.

    Raises:
        TunescopeError: with the reason.
    """
    final = resolved(path)
    home = os.path.expanduser("~")  # noqa: PTH111 (pathlib's raises for a user without one)
    if os.path.expanduser(path) != str(path):  # noqa: PTH111
        raise TunescopeError(
            f"{path} begins with ~, which Python does not expand. Give Path({str(path)!r}).expanduser()."
        )
    for place, name in ((Path(), "the folder you are in"), (home, "your home folder")):
        if resolved(place).is_relative_to(final) or final == final.parent:
            what = "is" if resolved(place) == final else "holds"
            raise TunescopeError(f"{path} {what} {name}, so it is not touched. Name a file or folder of its own in it.")
    for parent in final.parents:
        if parent.is_file():
            raise TunescopeError(f"{path} cannot be: {parent} is a file, not a folder. Choose another --out.")
    return final


def _refuse(shown: str | Path, why: str | None) -> None:
    if why is not None:
        raise TunescopeError(f"{shown} {why}")


def _not_a(kind: Kind) -> str:
    return f"exists and is no {kind.name}, so it is not touched. Choose another --out."


def _why_foreign(final: Path, kind: Kind | None) -> str | None:
    """Why the file or folder at a path may not be replaced; None if it may."""
    if not final.exists():
        return None
    if kind is None:
        return "exists already. Choose another --out."
    if not final.is_dir():
        return _not_a(kind)
    if all(_is_scratch(child) for child in final.iterdir()):
        return None
    marker = read_marker(final)
    known = kind.unmarked(final) if marker is None else ()
    if known is None or (marker and marker["kind"] != kind.name):
        return _not_a(kind)
    if foreign := [path.relative_to(final).as_posix() for path in _foreign(final, known)]:
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        return f"holds what tunescope did not write there: {named}. Move that away, or choose another --out."
    return None


def _foreign(folder: Path, known: Sequence[str]) -> Iterator[Path]:
    """Files in a folder that neither its marker nor a pattern names. Marked subfolders go by their own."""
    marker = read_marker(folder)
    names = {MARKER, *(marker["sha256"] if marker else ())}
    known = marker["unsealed"] if marker else known
    todo = [folder]
    while todo:
        for path in sorted(todo.pop().iterdir()):
            name = path.relative_to(folder).as_posix()
            if _is_scratch(path) or name in names:
                continue
            if path.is_dir() and not path.is_symlink():
                if (path / MARKER).is_file():
                    yield from _foreign(path, ())
                else:
                    todo.append(path)
            elif not any(_fits(name, pattern) for pattern in known):
                yield path


def _fits(name: str, pattern: str) -> bool:
    """Whether a relative path matches a kind's pattern."""
    return pattern == "**" or (name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern))


def _is_scratch(path: Path) -> bool:
    """Whether a killed write or lock left this file, or this is the folder of a write whose lock nobody holds."""
    if not _SCRATCH.fullmatch(path.name):
        return False
    if path.is_symlink() or not path.is_dir():
        return True
    marker = read_marker(path)
    return marker is not None and marker["kind"] == PARTIAL.name and not _is_locked(path)


def _is_locked(partial: Path) -> bool:
    """Whether another process holds the lock of the output that ``partial`` will become."""
    from filelock import FileLock, Timeout

    path = partial.with_name(f"{partial.name.rpartition('.tmp-')[0]}.lock")
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _remove_stale(final: Path) -> None:
    for left in final.parent.glob(f".{glob.escape(final.name)}.tmp-*"):
        if read_marker(left) and time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
