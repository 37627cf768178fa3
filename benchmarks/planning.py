"""Planned against measured: peak memory and time of every method and objective, each in a process of its own.

    python benchmarks/planning.py [--base smollm2-135m] [--methods lora full] [--objectives sft dpo] [--json]

A cell trains one epoch on 32 rows (a policy: two rounds of 16 prompts). Memory is the peak over a process that has the
base loaded and its weights read, since files that are mapped count once they are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sides import machine

ROWS = 32
METHODS = ("prompt-tuning", "p-tuning", "ia3", "lora", "adapter", "full")
# What each objective learns from.
DATA = {
    "sft": "reuters-r8",
    "attributes": "reuters-r8",
    "dpo": "nq-open-pairs",
    "reward": "nq-open-pairs",
    "ppo": "grimm-stories",
    "rloo": "grimm-stories",
    "grpo": "grimm-stories",
}
POLICIES = ("ppo", "rloo", "grpo")
TRAINING = {"max_length": 256, "epochs": 1.0}
ROUNDS = {"rounds": 2, "prompts": 16, "n": 4, "max_new_tokens": 32}


def rows_of(objective: str, folder: Path) -> Path:
    """A file with the first rows of the objective's data."""
    import tunescope as ts

    path = folder / f"{DATA[objective]}-{objective == 'attributes'}.jsonl"
    if not path.exists():
        table = ts.read(DATA[objective], split="train")
        lines = []
        for number, row in enumerate(table.rows[:ROWS]):
            own = dict(row)
            if objective == "attributes":
                own |= dict.fromkeys(ts.Attributes().columns, number % 5)
            lines.append(json.dumps(own, ensure_ascii=False))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def measure(base_name: str, method: str, objective: str, data: str, pattern: str | None) -> dict[str, Any]:
    """Train a cell in this process; its peak memory over the loaded base in 1e6 bytes, and its seconds."""
    import torch

    import tunescope as ts
    from tunescope import peak_memory
    from tunescope.methods.registry import METHODS as KNOWN
    from tunescope.objectives.registry import OBJECTIVES

    base = ts.load_base(base_name)
    for parameter in base.model.parameters():
        torch.hash_tensor(parameter)
    peak_memory.reset_peak(base.device)
    before = peak_memory.peak_mb(base.device)
    given = ROUNDS | {"reward": ["words:30"]} if objective in POLICIES else {}
    with tempfile.TemporaryDirectory() as folder:
        trained = ts.train(
            base,
            KNOWN.load(method)(),
            OBJECTIVES.load(objective)(**given),
            data,
            settings=ts.TrainSettings(**TRAINING),
            pattern=pattern,
            out=Path(folder) / "bank" / "entry",
        )
        peak = peak_memory.peak_mb(base.device)
    result = trained.result
    return {"peak_memory_mb": peak - before, "seconds": result.seconds + result.prepare_seconds, "steps": result.steps}


def planned(base_name: str, objective: str, methods: list[str], data: Path, pattern: str | None) -> dict[str, Any]:
    """``tunescope plan`` of the same runs, by method."""
    from tunescope.commands.plan import PlanRequest

    own = ROUNDS if objective in POLICIES else {}
    asked = {"methods": methods, "objectives": [objective], "template": pattern, **own, **TRAINING}
    found = PlanRequest.flat({"base": base_name, "data": str(data), **asked}).run()
    return {row["method"]: row for row in found.values["rows"]}


def main() -> None:
    """Plan, measure, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--objectives", nargs="*", default=list(DATA))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        method, objective, data, pattern = given.cell
        print(json.dumps(measure(given.base, method, objective, data, pattern or None)))
        return
    import tunescope as ts

    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for objective in given.objectives:
            data = rows_of(objective, Path(folder))
            pattern = ts.read(DATA[objective], split="train").default_template
            plan = planned(given.base, objective, given.methods, data, pattern)
            for method in given.methods:
                command = [sys.executable, __file__, "--base", given.base, "--cell", method, objective, str(data)]
                done = subprocess.run([*command, pattern or ""], capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stderr)
                cells.append(_cell(method, objective, plan[method], json.loads(done.stdout.splitlines()[-1])))
                print(_line(cells[-1]), file=sys.stderr)
    found = {"base": given.base, **machine(), "cells": cells}
    print(json.dumps(found) if given.json else "\n".join(map(_line, cells)))


def _cell(method: str, objective: str, plan: dict[str, Any], real: dict[str, Any]) -> dict[str, Any]:
    gap = plan["peak_memory_mb"] - real["peak_memory_mb"]
    return {
        "method": method,
        "objective": objective,
        "planned_mb": round(plan["peak_memory_mb"]),
        "measured_mb": round(real["peak_memory_mb"]),
        "within": bool(abs(gap) <= max(150.0, 0.15 * real["peak_memory_mb"])),
        "planned_seconds": plan["seconds"],
        "measured_seconds": round(real["seconds"], 1),
        "parts": plan["parts"],
    }


def _line(cell: dict[str, Any]) -> str:
    return (
        f"{cell['method']:14}{cell['objective']:11}"
        f"{cell['planned_mb']:6d} MB planned {cell['measured_mb']:6d} measured {'ok ' if cell['within'] else 'OUT'} "
        f"{cell['planned_seconds']:7.1f} s planned {cell['measured_seconds']:7.1f} measured"
    )


if __name__ == "__main__":
    main()
