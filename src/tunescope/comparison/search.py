"""The search within one method: which settings are tried, how far each goes, and which one is taken.

Every step of it is kept by the ledger as soon as it is done, and depends on nothing but the plan, the data and what was
measured before, so that a search that was killed goes on to the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tunescope import bank
from tunescope.base import Base
from tunescope.comparison.aim import Aim
from tunescope.comparison.candidate import Candidate, Rung
from tunescope.comparison.ledger import Ledger
from tunescope.comparison.plan import Bracket, Plan
from tunescope.errors import BusyError, Interrupted, TrainingError, TunescopeError
from tunescope.methods import Customized, Method
from tunescope.methods.space import points
from tunescope.training import StepMetrics, TrainSettings, train


@dataclass(frozen=True)
class Task:
    """What every method's candidates learn and are measured on.

    Attributes:
        base: frozen.
        rows: to learn from.
        validation: rows to choose by: those of the first rung, and all of them.
        aim: what for, and how that is measured.
        pattern: how columns became rows.
        style: of the template.
        name: of the data.
        settings: of the loop, but for what a candidate brings.
    """

    base: Base
    rows: list[Any]
    validation: tuple[list[Any], list[Any]]
    aim: Aim
    pattern: str | None
    style: str
    name: str
    settings: TrainSettings

    def train(
        self,
        kind: type[Method],
        candidate: Candidate,
        ledger: Ledger,
        until: int | None,
        on_step: Callable[[StepMetrics], object],
    ) -> tuple[Customized, bank.Record, list[str]]:
        """A candidate, trained up to a step, or to its end and then an entry; with its record, and notes.

        Raises:
            TunescopeError: it cannot be trained.
            Interrupted: after Ctrl-C.
        """
        entry = ledger.candidate_entry(candidate.name)
        if (entry / bank.RECORD).is_file():
            return bank.load(entry, self.base), bank.read_record(entry), []
        changes = {"lr": candidate.lr, "seed": candidate.seed, "max_steps": candidate.steps}
        objective, rows = self.aim.learned(kind, self.rows)
        trained = train(
            self.base, candidate.make(kind), objective=objective, data=rows,
            settings=self.settings.model_copy(update=changes), out=entry, pattern=self.pattern, style=self.style,
            labels=self.aim.labels, name=self.name, until=until, on_step=on_step,
        )  # fmt: skip
        return trained.customized, trained.record, trained.notes


class Search:
    """The search within one method.

    Args:
        kind: of the method.
        plan: what it may spend.
        task: what its candidates learn.
        ledger: keeps them.
    """

    def __init__(self, kind: type[Method], plan: Plan, task: Task, ledger: Ledger) -> None:
        self.kind, self.plan, self.task, self.ledger = kind, plan, task, ledger

    @property
    def trains(self) -> bool:
        """Whether its candidates are trained."""
        return self.kind.trains != "nothing"

    def candidates(self, bracket: Bracket) -> list[Candidate]:
        """Those of a bracket, with what is known of them; the space may have fewer than the bracket could take."""
        found = points(self.kind, labels=self.task.aim.labels is not None)
        steps = bracket.rungs[-1] if self.trains else None
        chosen = islice(found, bracket.first, bracket.first + bracket.count)
        return [
            self.ledger.candidate(Candidate.at(point, self.kind.name, self.task.settings.seed, steps))
            for point in chosen
        ]

    def bracket_of(self, candidate: Candidate) -> Bracket:
        """The bracket that a candidate competes in."""
        return next(b for b in self.plan.brackets if candidate.name in [each.name for each in self.candidates(b)])

    @property
    def all(self) -> list[Candidate]:
        """Every candidate, with what is known of it."""
        return [candidate for bracket in self.plan.brackets for candidate in self.candidates(bracket)]

    def due(self, bracket: Bracket, level: int) -> Iterator[Candidate]:
        """Candidates that are to reach a rung and have not: the best of the rung before it, one after the other."""
        for candidate in self._alive(bracket, level):
            if len(candidate.rungs) == level and candidate.error is None:
                yield candidate

    def advance(
        self, candidate: Candidate, bracket: Bracket, level: int, on_step: Callable[[StepMetrics], object]
    ) -> list[str]:
        """Take a candidate to a rung, measure it there, and keep that; returns notes.

        A candidate that fails is kept as one that failed.

        Raises:
            Interrupted: after Ctrl-C.
        """
        last = level == len(bracket.rungs) - 1
        until = bracket.rungs[level] if self.trains and not last else None
        try:
            customized, record, notes = self.task.train(self.kind, candidate, self.ledger, until, on_step)
            all_rows = bracket.on_all_rows(level) if self.trains else last
            rows = self.task.validation[all_rows]
            found = self.task.aim.measure(customized, rows)
            if not math.isfinite(found.score + (found.loss or 0.0)):
                raise TrainingError("Its loss on the validation rows is not finite.")
        except (Interrupted, BusyError):
            raise
        except TunescopeError as error:
            self.ledger.keep_candidate(candidate.model_copy(update={"error": str(error)}))
            return []
        training = record.training
        rung = Rung(
            steps=int(training.get("steps", 0)),
            trained_tokens=int(training.get("tokens", 0)),
            seconds=training.get("seconds", 0.0),
            rows=len(rows),
            score=found.score,
            loss=found.loss,
            test_seen=self.ledger.row(self.kind.name) is not None,
        )
        self.ledger.keep_candidate(candidate.model_copy(update={"rungs": [*candidate.rungs, rung]}))
        return [*notes, *found.notes]

    def prune(self, bracket: Bracket, level: int) -> None:
        """Delete the checkpoints and entries of candidates that went no further than a rung."""
        kept = {candidate.name for candidate in self._alive(bracket, level + 1)}
        if level + 1 == len(bracket.rungs):
            kept = {best.name} if (best := self.best()) else set()
        for candidate in self.candidates(bracket):
            if candidate.name not in kept:
                self.ledger.forget_work(candidate.name)

    def best(self) -> Candidate | None:
        """The best so far: of those that came furthest, by the validation rows; None where none was measured."""
        measured = [candidate for candidate in self.all if candidate.rungs and candidate.error is None]
        furthest = max((candidate.progress for candidate in measured), default=0)
        pool = [candidate for candidate in measured if candidate.progress == furthest]
        return min(pool, key=lambda candidate: (candidate.rungs[-1].order, candidate.number), default=None)

    def _alive(self, bracket: Bracket, level: int) -> list[Candidate]:
        """Candidates that may reach a rung, best first; all of them may reach the first.

        One that fails on its way leaves its place to the next.
        """
        candidates = self.candidates(bracket)
        if level == 0:
            return candidates
        passed = [each for each in candidates if len(each.rungs) >= level and each.error is None]
        passed.sort(key=lambda each: (each.rungs[level - 1].order, each.number))
        return passed[: bracket.alive(level)]
