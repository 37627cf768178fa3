"""Locks between processes and threads: one that waits, for the cache, and one that refuses, for what a user writes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tunescope.errors import BusyError, TunescopeError
from tunescope.storage import atomic_write, check_place, disk_errors

if TYPE_CHECKING:
    from filelock import BaseFileLock

_held: dict[Path, int] = {}  # what this process is the only writer of -> the thread that is


@contextmanager
def writing(out: str | Path, wait: float = 0.2) -> Iterator[Path]:
    """Be the only writer of ``out``, a file or a folder, until the block ends; the system ends it for a killed process.

    The same thread may ask again for what it holds. Beside ``out`` lie meanwhile the lock, ``.NAME.lock``, and
    ``.NAME.lock.json`` with who holds it.

    Args:
        out: what the user named; it need not exist.
        wait: seconds to wait for another writer; by default for one that is about to end only.

    Yields:
        ``out`` without symbolic links and ``..``.

    Raises:
        BusyError: another process or thread writes there (named).
        TunescopeError: ``out`` is no place of its own (the folder that one is in, the home folder, a file system's
            root), or the place cannot be written.
    """
    final = check_place(out)
    if _held.get(final) == threading.get_ident():
        yield final
        return
    path = final.with_name(f".{final.name}.lock")
    holder = path.with_name(f"{path.name}.json")
    made = [parent for parent in final.parents if not parent.exists()]
    with contextlib.ExitStack() as after:
        after.callback(_remove_empty, made)
        lock = _acquired(path, holder, out, wait)
        after.callback(lock.release)
        for file in (path, holder):  # while it is held: who has opened the lock meanwhile sees that it is gone
            after.callback(_unlink, file)
        atomic_write(holder, json.dumps(_myself()))
        _held[final] = threading.get_ident()
        after.callback(_held.pop, final)
        yield final


def _acquired(path: Path, holder: Path, out: str | Path, wait: float) -> BaseFileLock:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait)
    except Timeout:
        raise BusyError(
            f"{out} is being written by another run{_holder(holder)}. Wait until it has ended, or choose another --out."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        raise TunescopeError(
            f"{path.parent} is on a file system without locks. Choose --out on another one."
        ) from error
    return lock


def _unlink(file: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps an open file, and filelock removes it there
        file.unlink()


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove those of the folders, each inside the next, that a run left empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_free(out: str | Path) -> None:
    """Raise now what ``writing`` would raise: before data are read and a base is loaded."""
    with writing(out):
        pass


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


def _myself() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": command if len(command) <= 300 else f"{command[:300]}…",
    }


def _holder(file: Path) -> str:
    """Who holds a lock, in words; nothing where that is not known, as in its first moment."""
    try:
        who = json.loads(file.read_bytes())
        return f" (process {who['pid']} on {who['host']}, since {who['since']}: {who['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
