"""Whose turn it is among the jobs that wait: customizations share the rows evenly, so that many requests for one do not
hold up the few for another."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable

from tunescope.inference.job import Job

# How often the oldest job may be overtaken: however many customizations come and go, everyone comes in.
_PATIENCE = 128


class Turns:
    """The order in which waiting jobs come in during one step.

    The next is the oldest job of the customization with the fewest rows; among several of these, the oldest.

    Args:
        waiting: by arrival; ``take`` removes from it.
        rows: jobs that have a slot.
    """

    def __init__(self, waiting: deque[Job], rows: Iterable[Job]) -> None:
        self._waiting = waiting
        self._rows: Counter[str | None] = Counter(job.customization for job in rows)
        self._lines: defaultdict[str | None, deque[Job]] = defaultdict(deque)
        for job in waiting:
            self._lines[job.customization].append(job)

    def next(self) -> Job:
        """The job whose turn it is. There must be one."""
        oldest = self._waiting[0]
        if oldest.overtaken >= _PATIENCE:
            return oldest
        return min(
            (line[0] for line in self._lines.values()), key=lambda job: (self._rows[job.customization], job.arrived)
        )

    def take(self, job: Job) -> None:
        """It comes in, or waits for another one's prefix: it is not asked again in this step."""
        if job is self._waiting[0]:
            self._waiting.popleft()
        else:
            self._waiting[0].overtaken += 1
            self._waiting.remove(job)
        line = self._lines[job.customization]
        line.popleft()
        if not line:
            del self._lines[job.customization]
        self._rows[job.customization] += 1
