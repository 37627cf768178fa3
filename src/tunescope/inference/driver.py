"""The thread that makes an engine's steps while event loops wait for answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable

# How long the thread stays when there is nothing to do: a new one would make its own team of threads for matmuls.
_IDLE_SECONDS = 5.0
# How often it looks whether the program has ended meanwhile.
_LOOK_SECONDS = 0.2


class Driver:
    """Makes steps in a thread of its own, which begins when somebody waits and ends when there is nothing to do.

    Args:
        step: makes one; returns whether anything is left to do.
    """

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step
        self._changed = threading.Condition()
        self._waiting: list[asyncio.Future[None]] = []
        self._thread: threading.Thread | None = None

    async def stepped(self) -> None:
        """Wait until a step was made."""
        step_made = asyncio.get_running_loop().create_future()
        with self._changed:
            self._waiting.append(step_made)
            if self._thread is None:
                self._thread = threading.Thread(target=self._drive, name="tunescope engine")
                self._thread.start()
            self._changed.notify()
        await step_made

    def _drive(self) -> None:
        while True:
            try:
                busy = self._step()
            except Exception:
                busy = False  # the scheduler told every job why
            with self._changed:
                waiting, self._waiting = self._waiting, []
            _wake(waiting)
            if not busy and not self._more_to_do():
                return

    def _more_to_do(self) -> bool:
        """Wait until somebody waits again; False when nobody does, and the thread is to end."""
        until = time.monotonic() + _IDLE_SECONDS
        with self._changed:
            while not self._waiting:
                if time.monotonic() >= until or not threading.main_thread().is_alive():
                    self._thread = None
                    return False
                self._changed.wait(_LOOK_SECONDS)
            return True


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    by_loop = defaultdict(list)
    for future in waiting:
        by_loop[future.get_loop()].append(future)
    for loop, futures in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is there to hear it
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
