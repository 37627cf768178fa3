"""Commands that several processes do together: started here, or by torchrun or accelerate launch.

Each process runs the same command; the first one speaks and writes (``tunescope.team``).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist

from tunescope.commands.report import Report
from tunescope.errors import TeamError, TunescopeError
from tunescope.team import joined, this_team

if TYPE_CHECKING:
    from torch.multiprocessing.spawn import ProcessContext

_HERE = "127.0.0.1"
# Processes that are done, or that lost another one, end within so many seconds.
_END_SECONDS = 30


class Together(Protocol):
    """A command that several processes can do."""

    @property
    def processes(self) -> int:
        """How many."""

    @property
    def device(self) -> str | None:
        """Where they compute."""

    def work(self, report: Report) -> object:
        """What each of them does."""


class Silent(Report):
    """Says nothing: another process says the same."""

    def note(self, text: str) -> None:
        """Nothing."""


@contextlib.contextmanager
def together(command: Together, report: Report) -> Iterator[Report]:
    """Within the block this process is one of those that do the command; its ``work`` is to be called there.

    Args:
        command: what is done, and by how many.
        report: hears of it in the first process.

    Yields:
        What to report to.

    Raises:
        TunescopeError: more processes than GPUs, or processes that are started twice.
        TeamError: one of the others ended.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    grouped = dist.is_initialized()
    if (launched or grouped) and command.processes > 1:
        raise TunescopeError("These processes were started by another program already: leave --processes out.")
    with contextlib.ExitStack() as ending:
        if launched and not grouped:
            _take_gpu(command, int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group(_backend(command))
            ending.callback(dist.destroy_process_group)
        elif command.processes > 1:
            ending.enter_context(_started(command))
        ending.enter_context(joined())
        yield report if this_team().writes else Silent()


@contextlib.contextmanager
def _started(command: Together) -> Iterator[None]:
    """Start the other processes; when the block ends, so do they."""
    count, threads = command.processes, torch.get_num_threads()
    _check_gpus(command)
    store = dist.TCPStore(_HERE, 0, count, is_master=True, wait_for_workers=False)
    own = max(threads // count, 1)
    others = torch.multiprocessing.start_processes(
        _other, (command, count, store.port, own), nprocs=count - 1, join=False, start_method="spawn"
    )
    torch.set_num_threads(own)
    try:
        _take_gpu(command, 0)
        dist.init_process_group(_backend(command), store=store, rank=0, world_size=count)
        yield
    except TeamError as error:
        raise (_cause(others) or error) from error
    except BaseException:
        for process in others.processes:  # what they wait for does not come
            process.terminate()
        raise
    finally:
        torch.set_num_threads(threads)
        if dist.is_initialized():
            dist.destroy_process_group()
        _end(others)


def _other(index: int, command: Together, count: int, port: int, threads: int) -> None:
    """What a further process does."""
    torch.set_num_threads(threads)
    _take_gpu(command, index + 1)
    store = dist.TCPStore(_HERE, port, count, is_master=False)
    dist.init_process_group(_backend(command), store=store, rank=index + 1, world_size=count)
    with joined():
        command.work(Silent())
    dist.destroy_process_group()


def _on_gpus(command: Together) -> bool:
    return torch.cuda.is_available() and (command.device or "cuda").startswith("cuda")


def _backend(command: Together) -> str:
    return "cpu:gloo,cuda:nccl" if _on_gpus(command) else "gloo"


def _check_gpus(command: Together) -> None:
    """See that each process has a GPU, where they compute on these."""
    if not _on_gpus(command):
        return
    if command.device not in (None, "cuda"):
        raise TunescopeError(f"--device {command.device} is one GPU, and each process takes its own: leave it out.")
    if command.processes > (there := torch.cuda.device_count()):
        raise TunescopeError(f"--processes {command.processes} need a GPU each, and {there} are here: give {there}.")


def _take_gpu(command: Together, number: int) -> None:
    if _on_gpus(command):
        torch.cuda.set_device(number)


def _cause(others: ProcessContext) -> TeamError | None:
    """Why one of the others ended, in its own words."""
    try:
        others.join(timeout=_END_SECONDS)
    except torch.multiprocessing.ProcessRaisedException as error:
        return TeamError(f"Process {error.error_index + 2} failed: {str(error).strip().splitlines()[-1]}")
    except torch.multiprocessing.ProcessExitedException as error:
        how = error.signal_name or f"exit code {error.exit_code}"
        return TeamError(
            f"Process {error.error_index + 2} was ended from outside ({how}), perhaps for want of memory. Its "
            "checkpoint is kept: run the same command again to go on."
        )
    return None


def _end(others: ProcessContext) -> None:
    for process in others.processes:
        process.join(_END_SECONDS)
        if process.is_alive():
            process.kill()
