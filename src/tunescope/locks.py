"""Locks between processes and threads: one that waits, for the cache, and one that refuses, for what a user writes."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunescope.errors import TunescopeError
from tunescope.storage import atomic_write, check_place, disk_errors

_held: dict[Path, int] = {}  # what this process is the only writer of -> the thread that is


@contextmanager
def writing(out: str | Path, wait: float = 0.0) -> Iterator[Path]:
    """Be the only writer of ``out``, a file or a folder, until the block ends; the system ends it for a killed process.

    The same thread may ask again for what it holds. Beside ``out`` lie meanwhile the lock, ``.NAME.lock``, and
    ``.NAME.lock.json`` with who holds it.

    Args:
        out: what the user named; it need not exist.
        wait: seconds to wait for another writer.

    Yields:
        ``out`` without symbolic links and ``..``.

    Raises:
        TunescopeError: another process or thread writes there (named), ``out`` is no place of its own (the folder that
            one is in, the home folder, a file system's root), or the place cannot be written.
    """
    from filelock import FileLock, Timeout

    final = check_place(out)
    if _held.get(final) == threading.get_ident():
        yield final
        return
    path = final.with_name(f".{final.name}.lock")
    holder = path.with_name(f"{path.name}.json")
    made = [parent for parent in final.parents if not parent.exists()]
    lock = FileLock(path)
    try:
        with disk_errors(final.parent):
            final.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=wait)
            atomic_write(holder, json.dumps(_myself()))
    except Timeout:
        raise TunescopeError(
            f"{out} is being written by another run{_holder(holder)}. Wait until it has ended, or choose another --out."
        ) from None
    _held[final] = threading.get_ident()
    try:
        yield final
    finally:
        del _held[final]
        holder.unlink(missing_ok=True)
        path.unlink(missing_ok=True)  # held still: who opened it meanwhile sees that it is gone, and tries again
        lock.release()
        for parent in made:  # those that the run left empty
            with contextlib.suppress(OSError):
                parent.rmdir()


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
