"""Files at rest: the cache folder, writes that happen wholly or not at all, locks between processes.

Everything tunescope downloads or derives lies in one cache folder: the platform's own (``~/.cache/tunescope`` on
Linux), or the one that the environment variable ``TUNESCOPE_CACHE`` names. It can be deleted at any time.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunescope.errors import TunescopeError

_STALE_SECONDS = 3600  # no write takes an hour, so an unfinished folder this old was left by a killed process


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
def atomic_folder(final: str | Path) -> Iterator[Path]:
    """Fill a temporary sibling of ``final``, which takes its place when the block ends well.

    If the block raises, the temporary folder is removed and ``final`` stays as it was. On Linux an existing ``final``
    is exchanged in one step; elsewhere two renames follow each other.

    Raises:
        TunescopeError: the disk is full or the folder cannot be written.
    """
    final = Path(final)
    temporary = _temporary_sibling(final)
    try:
        with disk_errors(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(final)
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            _put_in_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock that belongs to ``path``, waiting for other processes; the system frees it when one is killed.

    The lock is a hidden file ``.NAME.lock`` beside ``path``, which need not exist.

    Raises:
        TunescopeError: the disk is full or the folder cannot be written.
    """
    from filelock import FileLock

    path = Path(path)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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


def _remove_stale(final: Path) -> None:
    for left in final.parent.glob(f".{glob.escape(final.name)}.tmp-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > _STALE_SECONDS:
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
