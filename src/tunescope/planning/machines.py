"""Machines: what fits on one, and how fast it computes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import torch

from tunescope import peak_memory
from tunescope.base.device import device_name, matmul_gflops, resolve_device
from tunescope.errors import UnknownNameError
from tunescope.planning.counting import Work

# What a run reaches of a data sheet's numbers, by common experience; of a machine at hand the numbers are measured.
_REACHED = 0.5
_LAUNCH = 8e-6


@dataclass(frozen=True)
class Machine:
    """One device.

    Attributes:
        name: of it.
        device: ``cuda`` or ``cpu``.
        memory_mb: in 1e6 bytes: what is free on this machine, or all that a GPU has.
        flops: of matrix products a second, by precision.
        bandwidth: bytes a second.
        call: seconds that calling an operation takes.
        measured: whether these were measured; else they are a data sheet's, of which half is reached.
    """

    name: str
    device: torch.device
    memory_mb: float
    flops: dict[torch.dtype, float]
    bandwidth: float
    call: float
    measured: bool = False

    def with_memory(self, megabytes: float) -> Machine:
        """The same with so much memory, in 1e6 bytes."""
        return replace(self, memory_mb=megabytes)

    def shared_by(self, processes: int) -> Machine:
        """What each of several processes has: an accelerator of its own, or a part of a CPU."""
        if self.device.type != "cpu":
            return self
        flops = {dtype: speed / processes for dtype, speed in self.flops.items()}
        memory, bandwidth = self.memory_mb / processes, self.bandwidth / processes
        return replace(self, memory_mb=memory, flops=flops, bandwidth=bandwidth)

    @property
    def dtype(self) -> torch.dtype:
        """The precision that ``--dtype auto`` takes here."""
        fast = self.flops.get(torch.bfloat16, 0.0) > 1.3 * self.flops[torch.float32]
        return torch.bfloat16 if fast else torch.float32

    def seconds(self, work: Work, dtype: torch.dtype) -> float:
        """How long it takes: products are bound by arithmetic or by memory, all else by memory, and each call costs."""
        flops = self.flops.get(dtype, self.flops[torch.float32])
        products = max(work.flops / flops, work.product_bytes / self.bandwidth)
        return products + work.other_bytes / self.bandwidth + work.operations * self.call


def _gpu(name: str, gigabytes: float, bfloat16: float | None, float32: float, bandwidth: float) -> Machine:
    """Of a data sheet: GB, dense TFLOPS in bfloat16 (None where it has none) and float32, GB/s."""
    flops = {torch.float32: float32 * 1e12 * _REACHED}
    if bfloat16 is not None:
        flops[torch.bfloat16] = bfloat16 * 1e12 * _REACHED
    return Machine(name, torch.device("cuda"), gigabytes * 1e3, flops, bandwidth * 1e9 * _REACHED, _LAUNCH)


# NVIDIA's data sheets, without sparsity; float32 outside of the tensor cores, as torch computes it by default.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("b200", 180, 2250, 75, 8000),
        _gpu("h200", 141, 989, 67, 4800),
        _gpu("h100", 80, 989, 67, 3350),
        _gpu("a100", 80, 312, 19.5, 2039),
        _gpu("a100-40", 40, 312, 19.5, 1555),
        _gpu("l40s", 48, 362, 91.6, 864),
        _gpu("a10", 24, 125, 31.2, 600),
        _gpu("l4", 24, 121, 30.3, 300),
        _gpu("rtx-4090", 24, 165, 82.6, 1008),
        _gpu("rtx-3090", 24, 71, 35.6, 936),
        _gpu("t4", 16, None, 8.1, 320),
    )
}


def gpu(name: str) -> Machine:
    """A GPU by name.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if (found := GPUS.get(name.lower())) is None:
        raise UnknownNameError("GPU", name, GPUS)
    return found


def this_machine(device: str | None = None) -> Machine:
    """The device here, measured in about a second.

    Raises:
        TunescopeError: no such device.
    """
    target = resolve_device(device)
    if target.type == "cuda":
        return _measured_gpu(target)
    flops = {dtype: matmul_gflops(dtype) * 1e9 for dtype in (torch.float32, torch.bfloat16)}
    memory = min(peak_memory.available_mb(), _physical_mb())
    return Machine(device_name(target), target, memory, flops, _bandwidth(target), _call(target), measured=True)


def _measured_gpu(device: torch.device) -> Machine:
    flops = {dtype: _matmul_flops(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    free, _ = torch.cuda.mem_get_info(device)
    return Machine(
        device_name(device), device, free / 1e6, flops, _bandwidth(device), max(_call(device), _LAUNCH), measured=True
    )


def _physical_mb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6
    except (ValueError, OSError, AttributeError):
        return float("inf")


def _matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    size = 4096
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _fastest(lambda: left @ right, device)


def _bandwidth(device: torch.device) -> float:
    """Of a copy of 128 MB, which is read and written."""
    given = torch.ones(32 * 1024 * 1024, device=device)
    taken = torch.empty_like(given)
    return 2 * given.nbytes / _fastest(lambda: taken.copy_(given), device)


def _call(device: torch.device) -> float:
    """Of the smallest addition."""
    one = torch.ones(1, device=device)

    def many() -> None:
        for _ in range(1000):
            one.add(one)

    return _fastest(many, device) / 1000


def _fastest(work: object, device: torch.device, times: int = 3) -> float:
    from tunescope.base.device import synchronize

    assert callable(work)
    best = float("inf")
    for _ in range(times + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
