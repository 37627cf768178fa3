"""``doctor``: what this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report

if TYPE_CHECKING:
    from rich.console import Console

_EXTRAS = ("peft", "trl", "bitsandbytes", "vllm", "lm_eval", "ray")


@dataclass(frozen=True)
class Machine(Result):
    """What a machine can do."""

    def show(self, console: Console) -> None:
        """The facts, and why that precision is taken."""
        super().show(console)
        if "float32_gflops" in self.values:
            ratio = self.values["bfloat16_gflops"] / self.values["float32_gflops"]
            console.print(
                f"\nbfloat16 products run {ratio:.1f} times as fast as float32 here, so --dtype auto takes "
                f"{self.values['dtype']}."
            )


class DoctorRequest(Command):
    """Say what this machine can do: CPU, precision, memory, versions, cache."""

    def run(self, report: Report | None = None) -> Machine:
        """Look at the machine."""
        import torch

        from tunescope.base.device import (
            available_devices,
            device_name,
            dtype_name,
            matmul_gflops,
            resolve_device,
            resolve_dtype,
        )
        from tunescope.storage import cache_folder

        device = resolve_device(None)
        cache = cache_folder()
        values: dict[str, Any] = {
            "tunescope": version("tunescope"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "device": str(device),
            "devices": ", ".join(available_devices()),
            "device_name": device_name(device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gb": _memory_gb(),
            "cache": str(cache),
            "cache_free_gb": round(shutil.disk_usage(_existing(cache)).free / 1e9, 1),
            "extras": ", ".join(name for name in _EXTRAS if _installed(name)),
        }
        if device.type == "cpu":
            values["float32_gflops"] = round(matmul_gflops(torch.float32), 1)
            values["bfloat16_gflops"] = round(matmul_gflops(torch.bfloat16), 1)
        values["dtype"] = dtype_name(resolve_dtype("auto", device))
        return Machine(values)


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _existing(path: Any) -> Any:
    return path if path.exists() else _existing(path.parent)


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
