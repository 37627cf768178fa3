"""What this machine computes fast: the device, and the number format its matrix products prefer."""

from __future__ import annotations

import functools
import platform
import time
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def default_device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@functools.cache
def matmul_gflops(dtype: torch.dtype) -> float:
    """Speed of this processor's matrix products in 1e9 operations a second, measured once in a process (~20 ms).

    Measured, not looked up: bfloat16 is five times faster than float32 on processors with its instructions and many
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

    A processor takes bfloat16 only where that is at least 1.3 times faster: below that the lost digits buy nothing.
    """
    if name != "auto":
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if matmul_gflops(torch.bfloat16) > 1.3 * matmul_gflops(torch.float32) else torch.float32
    return torch.float32


def processor_name() -> str:
    """The processor's (or accelerator's) name as the system tells it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")
