"""The devices of this machine, and the number format that a device's matrix products prefer."""

from __future__ import annotations

import contextlib
import functools
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from tunescope.errors import TunescopeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def available_devices() -> list[str]:
    """The devices that a base can be put on, the default one first: ``cuda`` and each ``cuda:0``, ``mps``, ``cpu``."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*(["cuda"] if cuda else []), *cuda, *mps, "cpu"]


def resolve_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; for None the accelerator if there is one, else the CPU.

    Raises:
        TunescopeError: no such device on this machine, with those there are.
    """
    known = available_devices()
    name = known[0] if name is None else str(name)
    if name not in (*known, "cpu:0", "mps:0"):
        raise TunescopeError(f"This machine has no device {name!r} that can be used. Give one of: {', '.join(known)}.")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators that a run on the device draws from, by the kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    """Restore what ``random_states`` gave; a kind of device that is not there stays as it is.

    Raises:
        KeyError: no state of the CPU's generator.
    """
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


@functools.cache
def matmul_gflops(dtype: torch.dtype) -> float:
    """Speed of this CPU's matrix products in 1e9 operations a second, measured once in a process (~20 ms).

    Measured, not looked up: bfloat16 is five times faster than float32 on CPUs with its instructions and many
    times slower on those without, and no flag tells them apart on every platform.
    """
    size = 512
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    deadline = time.perf_counter() + 0.2
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.linear(left, right)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > deadline:
            break
    return 2 * size**3 / best / 1e9


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Turn ``float32``, ``bfloat16`` or ``auto`` into a dtype; ``auto`` takes what the device is fast at.

    A CPU takes bfloat16 only where that is at least 1.3 times faster: below that the lost digits buy nothing. A CUDA
    device takes it where the hardware computes in it: emulated, as before compute capability 8.0, it is slower than
    float32. MPS takes float32.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        with contextlib.nullcontext() if device.index is None else torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if matmul_gflops(torch.bfloat16) > 1.3 * matmul_gflops(torch.float32) else torch.float32
    return torch.float32


def device_name(device: torch.device) -> str:
    """The name of the CUDA device, else of the CPU, as the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")
