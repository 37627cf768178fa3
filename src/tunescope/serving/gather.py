"""Several things at once, of which one that fails ends the others."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")


# How many of one call are under way at once: the others of it wait outside the engine's queue.
_TOGETHER = 32


async def all_of(works: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results in order.

    Raises:
        Exception: the first that one of them raised; the others are cancelled.
    """
    turns = asyncio.Semaphore(_TOGETHER)

    async def in_turn(work: Coroutine[Any, Any, _T]) -> _T:
        async with turns:
            return await work

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(in_turn(work)) for work in works]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
