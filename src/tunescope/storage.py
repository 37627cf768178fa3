"""Files at rest: the cache folder, writes that happen wholly or not at all, and nothing foreign lost.

Everything tunescope downloads or derives lies in one cache folder: the platform's own (``~/.cache/tunescope`` on
Linux), or the one that the environment variable ``TUNESCOPE_CACHE`` names. It can be deleted at any time.

What a user names with ``--out`` may be anything. Each folder that tunescope makes holds a marker, ``.tunescope.json``,
with its kind and the SHA-256 of its files; a single file has one beside it. ``check_replaceable`` is the one place that
decides by it: what has no marker of the right kind, or holds a file that the marker does not name, is neither deleted
nor replaced.
"""

from __future__ import annotations

import ctypes
import errno
import fnmatch
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunescope.errors import TunescopeError

MARKER = ".tunescope.json"
_STALE_SECONDS = 3600  # no write takes an hour, so an unfinished folder this old was left by a killed process
_SCRATCH = re.compile(r"\..+\.(tmp-[0-9a-f]{12}|lock|lock\.json)")  # what writes and locks leave when they are killed
_intact: set[Path] = set()  # folders of the cache whose checksums this process has compared
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Kind:
    """A kind of folder that tunescope writes, and how one is known again.

    Attributes:
        name: in words, for messages.
        unsealed: patterns of the files that belong to it without a checksum, since they change while it is filled. A
            ``*`` stands for no slash; ``**`` is every file.
        unmarked: the patterns of its files where a folder without a marker is one nevertheless, as it was written
            before there were markers; None where it is not.
    """

    name: str
    unsealed: tuple[str, ...] = ()
    unmarked: Callable[[Path], Sequence[str] | None] = lambda folder: None


_PARTIAL = Kind("unfinished folder")


def cache_folder() -> Path:
    """The folder for downloaded and derived files; not necessarily there yet."""
    if chosen := os.environ.get("TUNESCOPE_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("tunescope", appauthor=False))


def sha256_file(*paths: str | Path) -> str:
    """SHA-256 of a file's bytes, or of several one after the other, as 64 hexadecimal digits; read piecewise."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a whole file or nothing: readers see the old content or the new, also when the process is killed.

    Missing parent folders are made. Text is written as UTF-8 with its newlines as they are.

    Raises:
        TunescopeError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = _temporary_sibling(path)
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(final: str | Path, kind: Kind | None = None) -> Iterator[Path]:
    """Fill a temporary sibling of ``final``, which takes its place when the block ends well.

    If the block raises, the temporary folder is removed and ``final`` stays as it was. On Linux an existing ``final``
    is exchanged in one step; elsewhere two renames follow each other.

    Args:
        final: the folder to write.
        kind: what it will be: it is marked with its kind and its checksums, and replaces one of its kind. Without a
            kind, as for other tools' formats, nothing is marked and nothing replaced.

    Raises:
        TunescopeError: ``final`` is not ours to replace, the disk is full or the folder cannot be written.
    """
    shown, final = final, resolved(final)
    check_replaceable(shown, kind)
    temporary = _temporary_sibling(final)
    try:
        with disk_errors(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(final)
            temporary.mkdir()
            _write_marker(temporary, _PARTIAL, {})
            yield temporary
            files = [file for file in sorted(temporary.rglob("*")) if file.is_file() and file != temporary / MARKER]
            if kind is None:
                (temporary / MARKER).unlink()
            else:
                sums = {file.relative_to(temporary).as_posix(): [sha256_file(file)] for file in files}
                _write_marker(temporary, kind, sums)
            for file in files:
                _flush(file)
            check_replaceable(shown, kind)  # again: the block may have taken hours
            _put_in_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # this call made it, or found it ours


def claim_folder(folder: str | Path, kind: Kind) -> Path:
    """Make a folder that is filled little by little and mark it, or find that it is one of this kind already.

    Returns:
        the folder, without symbolic links and ``..``.

    Raises:
        TunescopeError: what is there was not written by tunescope, or is of another kind.
    """
    final = resolved(folder)
    marker = _marker(final)
    if marker is None or marker["kind"] != kind.name:
        _refuse(folder, _why_foreign(final, kind) if marker is None else _not_a(kind))
        with disk_errors(final):
            final.mkdir(parents=True, exist_ok=True)
            _write_marker(final, kind, {})
    return final


def remove_folder(folder: str | Path, kind: Kind) -> None:
    """Delete a folder that tunescope wrote; nothing happens where there is none.

    The marker goes last, so that a call that is killed can be made again.

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
    """The one decision whether a folder may be deleted or replaced: only what tunescope wrote itself may be.

    Free are: a name where nothing is, an empty folder, and a folder with the marker of ``kind`` all of whose files the
    markers in it name. Symbolic links and ``..`` are resolved before.

    Args:
        path: what the user named.
        kind: what will take its place; None where nothing is ever replaced.

    Raises:
        TunescopeError: it is not free, with the reason and the remedy.
    """
    _refuse(path, _why_foreign(check_place(path), kind))


def write_output(path: str | Path, content: str | bytes) -> None:
    """Write a file that the user named; one that is there is replaced only if tunescope wrote what it holds.

    Raises:
        TunescopeError: the file is not ours to replace, the disk is full or the folder cannot be written.
    """
    check_output(path)
    final = resolved(path)
    data = content.encode() if isinstance(content, str) else content
    atomic_write(_marker_beside(final), json.dumps({"kind": "file", "sha256": _sums(final, data)}))
    atomic_write(final, data)


def check_output(path: str | Path) -> None:
    """Refuse a file that tunescope did not write, or that was changed since; ``write_output`` would not replace it.

    Raises:
        TunescopeError: with the remedy.
    """
    final = check_place(path)
    if final.is_dir():
        raise TunescopeError(f"{path} is a folder. Name a file to write.")
    if final.exists() and sha256_file(final) not in _known_sums(final):
        raise TunescopeError(
            f"{path} exists, and what it holds was not written by tunescope, so it is not replaced. Choose another "
            "name, or delete it yourself."
        )


def rewrite(path: Path, content: str) -> None:
    """Replace one file of a marked folder, wholly or not at all, and keep the folder's checksums true."""
    marker = _marker(path.parent)
    if marker is not None and path.name in marker["sha256"]:
        marker["sha256"][path.name] = _sums(path, content.encode())
        atomic_write(path.parent / MARKER, json.dumps(marker, indent=1))
    atomic_write(path, content)


def is_marked(folder: Path) -> bool:
    """Whether a folder has a marker, so that tunescope wrote it and knows checksums of its sealed files."""
    return (folder / MARKER).is_file()


def broken(folder: Path, but: Sequence[str] = ()) -> str | None:
    """What is no longer as it was when ``atomic_folder`` made the folder, in words; None where all of it is.

    Every file is read, about 1 GB a second. A folder without a marker has nothing to compare with, and gives None.

    Args:
        folder: to look through.
        but: names of files that are left out.
    """
    if not is_marked(folder):
        return None
    marker = _marker(folder)
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
    """Whether a folder of the cache is as it was made; compared once in a process, about 0.2 s for 270 MB."""
    if folder in _intact:
        return True
    if damage := broken(folder):
        _log.warning("%s; it is made again.", damage)
        return False
    _intact.add(folder)
    return True


def read_state(path: Path, parse: Callable[[str], _T], remedy: str) -> _T:
    """Read a file that an unfinished run keeps for itself.

    Args:
        path: the file.
        parse: makes the value of the text; may raise what the built-in and pydantic's parsers do.
        remedy: what to do where that fails.

    Raises:
        TunescopeError: the file is damaged, with the remedy.
    """
    try:
        return parse(path.read_bytes().decode())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, TunescopeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TunescopeError(f"{path} is damaged ({reason}). {remedy}") from error


@contextmanager
def disk_errors(folder: str | Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a message that names ``folder`` and the remedy.

    Also for libraries that report a full disk in an exception of their own, as safetensors and Arrow do.

    Raises:
        TunescopeError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except TunescopeError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            raise full_disk(folder) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise TunescopeError(f"{getattr(error, 'filename', None) or folder} cannot be written: {error}.") from error
        raise


def full_disk(folder: str | Path) -> TunescopeError:
    """The error for a disk without space at ``folder``."""
    cache = cache_folder()
    remedy = (
        "Delete what you no longer need there, or set TUNESCOPE_CACHE to a folder on another disk."
        if Path(folder).absolute().is_relative_to(cache)
        else f"Free some space (the cache {cache} can be deleted at any time), or write to another disk."
    )
    return TunescopeError(f"The disk is full: cannot write to {folder}. Nothing half-written was kept. {remedy}")


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}")


def resolved(path: str | Path) -> Path:
    """A path as the system sees it: absolute, without symbolic links and ``..``.

    Raises:
        TunescopeError: symbolic links that lead in a circle.
    """
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise
        raise TunescopeError(f"{path} cannot be followed: its symbolic links lead in a circle.") from error


def check_place(path: str | Path) -> Path:
    """Refuse what can be no output, whatever it holds: the working folder, the home folder, and all that hold them; and
    a ``~`` that nobody expanded, which would be a folder of that name.

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
    """Why what is at a path is not ours to replace; None where it is."""
    if not final.exists():
        return None
    if kind is None:
        return "exists already. Choose another --out."
    if not final.is_dir():
        return _not_a(kind)
    if all(_is_scratch(child) for child in final.iterdir()):
        return None
    marker = _marker(final)
    known = kind.unmarked(final) if marker is None else ()
    if known is None or (marker and marker["kind"] != kind.name):
        return _not_a(kind)
    if foreign := [path.relative_to(final).as_posix() for path in _foreign(final, known)]:
        named = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        return f"holds what tunescope did not write there: {named}. Move that away, or choose another --out."
    return None


def _foreign(folder: Path, known: Sequence[str]) -> Iterator[Path]:
    """The files in a folder that neither a marker nor a pattern names; folders below with a marker go by their own."""
    marker = _marker(folder)
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
    """Whether a file's path is one that a kind's pattern names."""
    return pattern == "**" or (name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern))


def _is_scratch(path: Path) -> bool:
    """Whether this is a file that a killed write or lock left, or the folder of a write whose lock nobody holds."""
    if not _SCRATCH.fullmatch(path.name):
        return False
    if path.is_symlink() or not path.is_dir():
        return True
    marker = _marker(path)
    return marker is not None and marker["kind"] == _PARTIAL.name and not _is_locked(path)


def _is_locked(partial: Path) -> bool:
    """Whether somebody is writing the folder that ``atomic_folder`` fills ``partial`` for."""
    from filelock import FileLock, Timeout

    path = partial.with_name(f"{partial.name.rpartition('.tmp-')[0]}.lock")
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except (Timeout, OSError):
        return True


def _marker(folder: Path) -> dict[str, Any] | None:
    """What a folder's marker says; None where there is none that can be read."""
    try:
        found = json.loads((folder / MARKER).read_bytes())
        return found if isinstance(found["sha256"], dict) and isinstance(found["unsealed"], list) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_marker(folder: Path, kind: Kind, sums: dict[str, list[str]]) -> None:
    marker = {"kind": kind.name, "sha256": sums, "unsealed": kind.unsealed}
    atomic_write(folder / MARKER, json.dumps(marker, indent=1))


def _marker_beside(file: Path) -> Path:
    return file.with_name(f".{file.name}{MARKER}")


def _sums(path: Path, new: bytes) -> list[str]:
    """SHA-256 of a file as it is and as it will be: a kill between marking and writing leaves it known either way."""
    now = [sha256_file(path)] if path.is_file() else []
    return [*now, hashlib.sha256(new).hexdigest()]


def _known_sums(file: Path) -> list[str]:
    """SHA-256 of what tunescope wrote to a file last; none where it wrote nothing."""
    try:
        found = json.loads(_marker_beside(file).read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return found if isinstance(found, list) else []


def _remove_stale(final: Path) -> None:
    for left in final.parent.glob(f".{glob.escape(final.name)}.tmp-*"):
        if _marker(left) and time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename a folder over another; what was at ``final`` is then at ``temporary``, or gone."""
    if not final.exists():
        temporary.rename(final)
        return
    if _exchange(temporary, final):
        return
    old = _temporary_sibling(final)
    final.rename(old)
    try:
        temporary.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step where the system can (Linux's ``renameat2``); False where it cannot."""
    if sys.platform != "linux":
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library without it
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0
