"""Atomic writes, checksums, the cache folder, and errors for a full or unwritable disk."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tunescope.errors import TunescopeError

_T = TypeVar("_T")


def cache_folder() -> Path:
    """The folder for downloaded and derived files; not necessarily there yet."""
    if chosen := os.environ.get("TUNESCOPE_CACHE"):
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("tunescope", appauthor=False))


def sha256_file(*paths: str | Path) -> str:
    """SHA-256 of a file's bytes, or of several one after the other, as 64 hexadecimal digits; read in pieces."""
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
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """``atomic_write`` for those who write files themselves: what they write at the path that this gives takes the
    place of ``path`` when the context ends, unless it ends with an exception.

    Raises:
        TunescopeError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_state(path: Path, parse: Callable[[str], _T], remedy: str) -> _T:
    """Read a state file of an unfinished run.

    Args:
        path: the file.
        parse: from text to value; may raise what the built-in and pydantic's parsers raise.
        remedy: added to the error.

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

    Exceptions of libraries count too: safetensors and Arrow have their own for a full disk.

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


def resolved(path: str | Path) -> Path:
    """The absolute path, without symbolic links and ``..``.

    Raises:
        TunescopeError: symbolic links that lead in a circle.
    """
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno != errno.ELOOP:
            raise
        raise TunescopeError(f"{path} cannot be followed: its symbolic links lead in a circle.") from error


def temporary_sibling(path: Path) -> Path:
    """A new hidden name beside ``path``, on the same file system, for a write that is not finished."""
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}")


def flush(file: Path) -> None:
    """Have the system write a file to the disk before its folder is renamed."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def put_in_place(temporary: Path, final: Path) -> None:
    """Rename a folder over another; what was at ``final`` is then at ``temporary``, or gone."""
    if not final.exists():
        temporary.rename(final)
        return
    if _exchange(temporary, final):
        return
    old = temporary_sibling(final)
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
