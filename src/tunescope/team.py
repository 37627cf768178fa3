"""Processes that do one run together: each computes its share of the rows, and all of them take the same step.

A team is torch.distributed's process group, however it was made (`tunescope train --processes`, torchrun, accelerate
launch, a user's own script), while its processes train (``joined``). At all other times, and without a group, a process
is a team of itself, and everything here returns at once: what one process measures waits for nobody. Members tell each
other JSON values and sums of gradients, nothing else. All of a team have to call the same things in the same order, so
what decides a call must be known to all of them alike.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from tunescope.errors import TeamError, TrainingError, TunescopeError

_T = TypeVar("_T")
_R = TypeVar("_R")

# Gradients are summed so many numbers at a time: enough that a message costs more than its beginning, few enough that
# the copy of them is small (100 MB).
_MESSAGE = 25_000_000


@dataclass(frozen=True)
class Team:
    """Who trains together.

    Attributes:
        rank: of this process, from 0. The first one writes what the run leaves; the others write nothing.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def share(self, items: Sequence[_T]) -> Sequence[_T]:
        """This process's items: every ``size``-th."""
        return items[self.rank :: self.size]

    def share_by_length(self, items: Sequence[_T], length: Callable[[_T], int]) -> list[_T]:
        """This process's items, in their order, so that all have about as much to compute: the longest are dealt out
        first, to and fro.
        """
        longest = sorted(range(len(items)), key=lambda i: -length(items[i]))
        to_and_fro = [*range(self.size), *reversed(range(self.size))]
        own = [i for place, i in enumerate(longest) if to_and_fro[place % len(to_and_fro)] == self.rank]
        return [items[i] for i in sorted(own)]

    def gathered(self, value: Any) -> list[Any]:
        """Every process's ``value``, by rank: JSON values.

        Raises:
            TeamError: another process ended.
        """
        if self.size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        _told(lambda: dist.all_gather(sizes, torch.tensor([len(own)])))
        longest = int(max(sizes))
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        _told(lambda: dist.all_gather(found, nn.functional.pad(own, (0, longest - len(own)))))
        return [json.loads(bytes(each[: int(size)].tolist())) for each, size in zip(found, sizes, strict=True)]

    def any(self, wish: bool) -> bool:
        """Whether any process says so."""
        return any(self.gathered(wish)) if self.size > 1 else wish

    def mapped(self, items: Sequence[_T], compute: Callable[[Sequence[_T]], Sequence[_R]]) -> list[_R]:
        """What ``compute`` makes of the items, a JSON value each, every process having computed its share.

        Raises:
            TrainingError: what another process could not compute, in its words.
            TeamError: another process ended.
        """
        if self.size == 1:
            return list(compute(items))
        try:
            own: Any = {"values": list(compute(self.share(items)))}
        except TunescopeError as error:
            own = {"error": str(error)}
        found = self.gathered(own)
        for each in found:
            if "error" in each:
                raise TrainingError(each["error"])
        return [found[i % self.size]["values"][i // self.size] for i in range(len(items))]

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over the processes. One that no process has stays away.

        Raises:
            TeamError: another process ended.
        """
        if self.size == 1:
            return
        for some in _messages(list(parameters)):
            there = [float(each.grad is not None) for each in some]
            parts = [each.grad if each.grad is not None else torch.zeros_like(each) for each in some]
            message = torch.cat([each.flatten().float() for each in parts] + [some[0].new_tensor(there).float()])
            _told(lambda message=message: dist.all_reduce(message))  # type: ignore[misc]
            *sums, there_now = message.split([each.numel() for each in some] + [len(some)])
            for parameter, total, exists in zip(some, sums, there_now.tolist(), strict=True):
                parameter.grad = total.view_as(parameter).to(parameter.dtype, copy=True) if exists else None


_ALONE = Team()
_team = ContextVar("team", default=_ALONE)


def this_team() -> Team:
    """The team that this process is in now."""
    return _team.get()


@contextmanager
def joined() -> Iterator[None]:
    """Within the block this process is in the team of the process group, if there is one."""
    grouped = dist.is_available() and dist.is_initialized()
    token = _team.set(Team(dist.get_rank(), dist.get_world_size()) if grouped else _ALONE)
    try:
        yield
    finally:
        _team.reset(token)


def _messages(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    some: list[nn.Parameter] = []
    for parameter in parameters:
        if some and sum(each.numel() for each in some) + parameter.numel() > _MESSAGE:
            yield some
            some = []
        some.append(parameter)
    if some:
        yield some


def _told(communicate: Callable[[], object]) -> None:
    try:
        communicate()
    except RuntimeError as error:
        raise TeamError(
            "Another process of this run ended or cannot be reached, so it cannot go on. Its checkpoint is kept: run "
            f"the same command again. ({error})"
        ) from error
