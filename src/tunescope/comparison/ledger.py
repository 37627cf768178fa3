"""The ledger of a comparison: what it keeps in its folder. Nothing else reads or writes there, but for the bank.

A comparison that was stopped finds here the time it used, the methods it measured and the steps it gave them.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tunescope import bank, storage
from tunescope.comparison.report.page import render_report
from tunescope.comparison.results import Comparison, MethodResult
from tunescope.errors import TunescopeError
from tunescope.methods.registry import METHODS
from tunescope.training.metrics import METRICS

_STATE, _ROWS, _SECONDS, _COSTS = "state.json", "rows", "seconds", "evaluation_seconds"
COMPARISON = storage.Kind(
    "comparison",
    unsealed=(_STATE, _SECONDS, _COSTS, "comparison.json", "report.html", f"{_ROWS}/*.json", f"{_ROWS}/*.steps"),
)
_RESTART = "--restart begins anew."
_T = TypeVar("_T")


class Ledger:
    """What the comparison in one folder keeps between calls. The caller holds the folder's lock.

    Args:
        out: the comparison's folder.
        conditions: all that makes rows comparable, by name.
        methods: names of the methods that are compared.
        restart: forget what the folder holds.

    Raises:
        TunescopeError: the folder holds something else, a comparison under other conditions, or a damaged file.
    """

    def __init__(self, out: Path, conditions: dict[str, Any], methods: Sequence[str], *, restart: bool = False) -> None:
        self.out = out
        self.report = out / "report.html"
        self._claim(conditions, methods, restart)
        self._before = self._read(out / _SECONDS, _seconds, _RESTART) or 0.0
        self._start = time.monotonic()
        self._check(methods)

    def entry(self, method: str) -> Path:
        """Where the method's entry stands in the comparison's bank."""
        return self.out / "bank" / method

    def row(self, method: str) -> MethodResult | None:
        """What was measured of the method; None if it was not measured yet."""
        remedy = "Delete this file to measure the method again, or begin anew with --restart."
        return self._read(self._row_file(method), MethodResult.model_validate_json, remedy)

    def keep_row(self, row: MethodResult) -> None:
        """Keep what was measured of a method."""
        storage.atomic_write(self._row_file(row.method), row.model_dump_json())

    def steps(self, method: str) -> int | None:
        """The optimizer steps that the method was given; None if it was given none yet."""
        return self._read(self._steps_file(method), int, _RESTART)

    def keep_steps(self, method: str, steps: int) -> None:
        """Keep the steps given, so that a training that was interrupted goes on with the same number."""
        storage.atomic_write(self._steps_file(method), str(steps))

    def seconds(self) -> float:
        """Time used so far, over all calls; also remembered on disk."""
        used = self._before + time.monotonic() - self._start
        storage.atomic_write(self.out / _SECONDS, f"{used:.3f}")
        return used

    def cost(self) -> float:
        """What evaluating a method takes, in seconds: the part of the budget that training must leave.

        The median of those done, which one slow method (few-shot and its long prompts) does not move.
        """
        return statistics.median(self._costs() or [0.0])

    def keep_cost(self, seconds: float) -> None:
        """Keep what evaluating one more method took."""
        storage.atomic_write(self.out / _COSTS, "".join(f"{each:.1f}\n" for each in [*self._costs(), seconds]))

    def curve(self, method: str, most: int = 200) -> list[tuple[int, float, float]]:
        """Training losses (step, loss, seconds), thinned to at most ``most`` points."""
        path = self.entry(method) / METRICS
        if not path.is_file():
            return []
        steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        every = -(-len(steps) // most)
        return [(step["step"], step["loss"], round(step["seconds"], 2)) for step in steps[::every]]

    def close(self, comparison: Comparison) -> None:
        """Write what came out: ``comparison.json`` and ``report.html``."""
        storage.atomic_write(self.out / "comparison.json", comparison.to_json())
        storage.atomic_write(self.report, render_report(comparison))

    def _claim(self, conditions: dict[str, Any], methods: Sequence[str], restart: bool) -> None:
        """Make the folder this comparison's, or check that it is."""
        if restart and storage.is_marked(self.out):
            self._refuse_others(methods)
            storage.remove_folder(self.out, COMPARISON)
        storage.claim_folder(self.out, COMPARISON)
        path = self.out / _STATE
        if path.exists() or (self.out / _ROWS).exists():
            before = storage.read_state(path, lambda text: dict(json.loads(text)), _RESTART)
            if differing := [
                _differing(key, before.get(key), now) for key, now in conditions.items() if before.get(key) != now
            ]:
                raise TunescopeError(
                    f"{self.out} holds a comparison with another {', '.join(differing)}. Choose another --out, or "
                    "--restart to replace it."
                )
        storage.atomic_write(path, json.dumps(conditions, indent=2))

    def _refuse_others(self, methods: Sequence[str]) -> None:
        """Keep the entries that someone trained into a comparison's bank: they are no part of it."""
        own = {*methods, *METHODS.names(), *(path.stem for path in (self.out / _ROWS).glob("*"))}
        if others := [entry for entry in bank.list_entries(self.out / "bank") if entry.name not in own]:
            raise TunescopeError(
                f"{others[0]} is no entry of the comparison in {self.out}, so nothing was deleted. Move it away, or "
                "choose another --out."
            )

    def _check(self, methods: Iterable[str]) -> None:
        """Read once what is kept of an earlier call: damage stops the comparison, and is no failure of a method."""
        self._costs()
        for method in methods:
            self.row(method)
            self.steps(method)

    def _costs(self) -> list[float]:
        return self._read(self.out / _COSTS, lambda text: list(map(_seconds, text.split())), _RESTART) or []

    def _row_file(self, method: str) -> Path:
        return self.out / _ROWS / f"{method}.json"

    def _steps_file(self, method: str) -> Path:
        return self.out / _ROWS / f"{method}.steps"

    @staticmethod
    def _read(path: Path, parse: Callable[[str], _T], remedy: str) -> _T | None:
        return storage.read_state(path, parse, remedy) if path.is_file() else None


def _differing(name: str, before: Any, now: Any) -> str:
    """A condition that changed, with what it was where that is readable."""
    if isinstance(before, dict) and isinstance(now, dict) and name == "settings":
        return f"settings ({', '.join(key for key in now if before.get(key) != now[key])})"
    if name in ("version", "device", "dtype", "style") and before is not None:
        return f"{name} ({before}; now {now})"
    return name


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(f"{text.strip()} is no time")
    return value
