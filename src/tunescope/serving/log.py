"""The server's log: written by a thread of its own, so that who reads it slowly, or not at all, holds nobody up."""

from __future__ import annotations

import json
import logging
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

# Lines that wait for their reader; further ones are lost, and counted.
_WAITING = 10_000
# Seconds that the last lines are waited for when the server ends.
_LAST = 2.0


@contextmanager
def log_lines(logger: logging.Logger, stream: TextIO, waiting: int = _WAITING) -> Iterator[None]:
    """Within this context the logger's lines go to a stream, bare, and nowhere else.

    Args:
        logger: of the server.
        stream: that may block.
        waiting: most lines that wait for it.
    """
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(waiting)
    writer = logging.StreamHandler(stream)
    writer.setFormatter(logging.Formatter("%(message)s"))
    handler, listener = _Lines(lines), _Listener(lines, writer)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    listener.start()
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
        listener.stop()


class _Lines(QueueHandler):
    """Puts lines into the queue, and never waits for room in it."""

    _lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a line; before it how many were lost, where some were."""
        try:
            if self._lost:
                said = json.dumps({"lost_lines": self._lost})
                self.queue.put_nowait(logging.LogRecord(record.name, record.levelno, "", 0, said, None, None))
                self._lost = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._lost += 1


class _Listener(QueueListener):
    """Ends although nobody reads."""

    def stop(self) -> None:
        """Wait for the last lines, but not for ever: the thread is a daemon."""
        thread = self._thread
        with suppress(queue.Full):
            self.enqueue_sentinel()
        if thread is not None:
            thread.join(_LAST)
