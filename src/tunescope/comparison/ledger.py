"""The ledger of a comparison: what it keeps in its folder. Nothing else reads or writes there, but for the bank.

A comparison that was stopped finds here the time it used, each method's plan, every candidate with what was measured of
it, and the rows that the test data were opened for.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from tunescope import bank, storage
from tunescope.comparison.candidate import Candidate
from tunescope.comparison.plan import Plan
from tunescope.comparison.recipes import LEARNED
from tunescope.comparison.report.page import render_report
from tunescope.comparison.report.tables import as_csv, as_markdown
from tunescope.comparison.results import Comparison, Measured
from tunescope.errors import BusyError, TunescopeError
from tunescope.locks import locked, writing
from tunescope.methods.registry import METHODS
from tunescope.training.metrics import METRICS
from tunescope.training.unfinished import forget_run

_STATE, _CALL, _TIMES, _NOTES = "state.json", "call.json", "times.json", "notes.json"
_PLANS, _CANDIDATES, _ROWS, _RECIPES = "plans", "candidates", "rows", "recipes"
COMPARISON = storage.Kind(
    "comparison",
    unsealed=(
        _STATE,
        _CALL,
        _TIMES,
        _NOTES,
        *(f"comparison.{kind}" for kind in ("json", "md", "csv")),
        "report.html",
        LEARNED,
        f"{_RECIPES}/*.yaml",
        f"{_CANDIDATES}/*-[0-9]*.json",
        *(f"{folder}/*.json" for folder in (_PLANS, _ROWS)),
    ),
)
_RESTART = "--restart begins anew."
_AGAIN = "Delete this file to measure it again, or begin anew with --restart."
_T = TypeVar("_T")

Clock = Literal["total", "search", "evaluation", "first_table"]
"""What time is counted for: all, choosing settings, measuring on the test rows, until the first table."""


class Ledger:
    """What the comparison in one folder keeps between calls. The caller holds the folder's lock.

    Args:
        out: the comparison's folder.
        conditions: all that makes rows comparable, by name.
        call: the methods and the budget, which may change from call to call, but not between those that join.
        restart: forget what the folder holds.
        joins: another process leads the comparison and holds the lock; this one only takes candidates further.

    Raises:
        TunescopeError: the folder holds something else, a comparison under other conditions, nothing that could be
            joined, or a damaged file.
    """

    def __init__(
        self,
        out: Path,
        conditions: dict[str, Any],
        call: dict[str, Any],
        *,
        restart: bool = False,
        joins: bool = False,
    ) -> None:
        self.out, self.joins = out, joins
        self._conditions, self._call = conditions, call
        methods: Sequence[str] = call["methods"]
        self.report = out / "report.html"
        if joins:
            self._join()
        else:
            self._claim(methods, restart)
        self._times = self._read(out / _TIMES, _times, _RESTART) or {}
        self._start = time.monotonic()
        for method in methods:  # damage stops the comparison now, and is no failure of a method
            self.plan(method)
            self.row(method)

    def entry(self, method: str) -> Path:
        """Where the method's entry stands in the comparison's bank."""
        return self.out / "bank" / method

    # Plans and candidates.

    def plan(self, method: str) -> Plan | None:
        """What the method may spend; None if that was not planned yet."""
        return self._read(self._file(_PLANS, method), Plan.model_validate_json, _RESTART)

    def keep_plan(self, method: str, plan: Plan) -> None:
        """Keep what the method may spend."""
        storage.atomic_write(self._file(_PLANS, method), plan.model_dump_json(indent=2))

    def candidate(self, fresh: Candidate) -> Candidate:
        """What is known of a candidate; ``fresh`` itself where nothing is."""
        path = self._file(_CANDIDATES, fresh.name)
        found = self._read(path, Candidate.model_validate_json, _AGAIN)
        if found is None:
            return fresh
        if found.model_copy(update={"rungs": [], "error": None}) != fresh:
            raise TunescopeError(f"{path} is of another candidate than this comparison's {fresh.name}. {_RESTART}")
        return found

    def keep_candidate(self, candidate: Candidate) -> None:
        """Keep what is known of a candidate."""
        storage.atomic_write(self._file(_CANDIDATES, candidate.name), candidate.model_dump_json(indent=2))

    @contextmanager
    def claimed(self, candidate: Candidate) -> Iterator[Candidate | None]:
        """Take a candidate for this process alone, as it is known once it is; None where another process is at it.

        Raises:
            TunescopeError: this process joined, and the leading one has begun something else here.
        """
        with ExitStack() as held:
            try:
                held.enter_context(writing(self._file(_CANDIDATES, candidate.name), wait=0))
            except BusyError:
                yield None
                return
            if self.joins:
                self._join()
            yield self.candidate(candidate.model_copy(update={"rungs": [], "error": None}))

    def candidate_entry(self, name: str) -> Path:
        """Where a candidate is trained, and its entry until it is the method's."""
        return self.out / _CANDIDATES / name

    def forget_work(self, name: str) -> None:
        """Delete what a candidate was trained to, not what was measured of it."""
        entry = self.candidate_entry(name)
        forget_run(entry)
        storage.remove_folder(entry, bank.ENTRY)

    def forget_all_work(self, method: str) -> None:
        """Delete what any candidate of a method was trained to: also what a stopped call left of further trainings."""
        own = re.compile(rf"{re.escape(method)}-\d+(-\d+)?(-of-\d+)?")
        folder = self.out / _CANDIDATES
        for path in [*folder.glob("*/"), *(folder / ".training").glob("*/")]:
            if own.fullmatch(path.name):
                with suppress(BusyError), writing(self._file(_CANDIDATES, path.name), wait=0):  # a helper is at it
                    self.forget_work(path.name)

    def notes(self) -> list[str]:
        """What a reader must know of how it went."""
        return self._read(self.out / _NOTES, lambda text: list(map(str, json.loads(text))), _RESTART) or []

    def add_notes(self, notes: Sequence[str]) -> None:
        """Keep what a reader must know, beside what is kept."""
        with locked(self.out / _NOTES):
            kept = self.notes()
            kept += [note for note in notes if note not in kept]
            storage.atomic_write(self.out / _NOTES, json.dumps(kept, ensure_ascii=False))

    def keep_lines(self, lines: Sequence[int]) -> None:
        """Keep which lines of the data are learned from."""
        storage.atomic_write(self.out / LEARNED, "".join(f"{line}\n" for line in lines))

    # What was measured on the test rows.

    def row(self, method: str) -> Measured | None:
        """What was measured of the method; None if it was not measured yet."""
        return self._read(self._file(_ROWS, method), Measured.model_validate_json, _AGAIN)

    def keep_row(self, method: str, row: Measured) -> None:
        """Keep what was measured of a method."""
        storage.atomic_write(self._file(_ROWS, method), row.model_dump_json())

    # Time.

    def seconds(self, clock: Clock = "total") -> float:
        """Time used so far, over all calls; the total is also remembered on disk."""
        if clock != "total":
            return self._times.get(clock, 0.0)
        now = time.monotonic()
        self._times["total"] = self._times.get("total", 0.0) + now - self._start
        self._start = now
        self._keep_times()
        return self._times["total"]

    @property
    def is_led(self) -> bool:
        """Whether a process leads the comparison."""
        try:
            with writing(self.out, wait=0):
                return False
        except BusyError:
            return True

    def spend(self, clock: Clock, seconds: float) -> None:
        """Count time."""
        self._times[clock] = self._times.get(clock, 0.0) + seconds
        self._keep_times()

    def curve(self, method: str, most: int = 200) -> list[tuple[int, float, float]]:
        """Training losses of the method's entry (step, loss, seconds), thinned to at most ``most`` points."""
        path = self.entry(method) / METRICS
        if not path.is_file():
            return []
        steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        every = -(-len(steps) // most)
        return [(step["step"], step["loss"], round(step["seconds"], 2)) for step in steps[::every]]

    def publish(self, comparison: Comparison) -> None:
        """Write what is known by now: ``report.html``, and ``comparison`` as JSON, Markdown and CSV."""
        storage.atomic_write(self.out / "comparison.json", comparison.to_json())
        storage.atomic_write(self.out / "comparison.md", as_markdown(comparison))
        storage.atomic_write(self.out / "comparison.csv", as_csv(comparison))
        for row in comparison.rows:
            if row.recipe is not None:
                again = f"# {row.name} as {self.out} chose it: tunescope run {self.out}/{_RECIPES}/{row.name}.yaml\n"
                storage.atomic_write(self.out / _RECIPES / f"{row.name}.yaml", again + row.recipe)
        storage.atomic_write(self.report, render_report(comparison))

    def _claim(self, methods: Sequence[str], restart: bool) -> None:
        """Make the folder this comparison's, or check that it is."""
        if restart and storage.is_marked(self.out):
            self._refuse_others(methods)
            for lock in (self.out / _CANDIDATES).glob(".*.json.lock"):
                with writing(lock.with_name(lock.name.removeprefix(".").removesuffix(".lock")), wait=0):
                    pass  # no helper is at this candidate
            storage.remove_folder(self.out, COMPARISON)
        storage.claim_folder(self.out, COMPARISON)
        self._check()
        storage.atomic_write(self.out / _CALL, json.dumps(self._call))
        storage.atomic_write(self.out / _STATE, json.dumps(self._conditions, indent=2))

    def _join(self) -> None:
        """Check that a process leads this comparison, by the same call."""
        if not (self.out / _STATE).exists() or not (self.out / _CALL).exists():
            raise TunescopeError(f"{self.out} holds no comparison that could be joined. Begin one without --join.")
        self._check()
        led = storage.read_state(self.out / _CALL, lambda text: dict(json.loads(text)), _RESTART)
        if differing := [f"--{name.replace('_', '-')}" for name in self._call if led.get(name) != self._call[name]]:
            raise TunescopeError(
                f"The comparison in {self.out} is led with another {', '.join(differing)}: give --join the same."
            )

    def _check(self) -> None:
        """Refuse a comparison under other conditions."""
        path = self.out / _STATE
        if path.exists() or (self.out / _PLANS).exists():
            before, now = storage.read_state(path, lambda text: dict(json.loads(text)), _RESTART), self._conditions
            if differing := [
                _differing(key, before.get(key), now.get(key))
                for key in {**before, **now}
                if before.get(key) != now.get(key)
            ]:
                raise TunescopeError(
                    f"{self.out} holds a comparison with another {', '.join(differing)}. Choose another --out, or "
                    "--restart to replace it."
                )

    def _refuse_others(self, methods: Sequence[str]) -> None:
        """Keep the entries that someone trained into a comparison's bank: they are no part of it."""
        own = {*methods, *METHODS.names(), *(path.stem for path in (self.out / _PLANS).glob("*"))}
        if others := [entry for entry in bank.list_entries(self.out / "bank") if entry.name not in own]:
            raise TunescopeError(
                f"{others[0]} is no entry of the comparison in {self.out}, so nothing was deleted. Move it away, or "
                "choose another --out."
            )

    def _keep_times(self) -> None:
        if self.joins:
            return  # time is the leading process's
        shown = {clock: round(seconds, 3) for clock, seconds in self._times.items()}
        storage.atomic_write(self.out / _TIMES, json.dumps(shown))

    def _file(self, folder: str, name: str) -> Path:
        return self.out / folder / f"{name}.json"

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


def _times(text: str) -> dict[str, float]:
    found = {str(clock): float(seconds) for clock, seconds in dict(json.loads(text)).items()}
    if not all(0 <= seconds < math.inf for seconds in found.values()):
        raise ValueError("holds a number that is no time")
    return found
