"""Sides of a comparison: each run in a process of its own, the sides taking turns."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

Figures = dict[str, float]


def take_turns(
    sides: Sequence[str],
    repeats: int,
    command: Callable[[str], list[str]],
    python: Callable[[str], str] = lambda side: sys.executable,
) -> dict[str, list[Figures]]:
    """Run every side ``repeats`` times, one after the other, so that what else the machine does meets all of them.

    Args:
        sides: their names.
        repeats: runs of each.
        command: arguments of this program for a side; it prints one JSON object, last.
        python: the interpreter of a side; this one by default.

    Returns:
        What each run of each side printed. The program ends where a run fails.
    """
    found: dict[str, list[Figures]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, runs in found.items():
            done = subprocess.run([python(side), sys.argv[0], *command(side)], capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{side}: {done.stderr}")
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(side, runs[-1], file=sys.stderr, flush=True)
    return found


def medians(runs: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def peak_mb() -> float:
    """Peak memory of this process so far, in 1e6 bytes: of the GPU where there is one."""
    import torch

    from tunescope import peak_memory

    return peak_memory.peak_mb(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def machine() -> dict[str, Any]:
    """The CPU or GPU, and the threads that torch uses."""
    import torch

    from tunescope.base.device import device_name, resolve_device

    return {"machine": device_name(resolve_device(None)), "threads": torch.get_num_threads()}
