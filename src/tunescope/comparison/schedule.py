"""What a comparison does, in which order: first every method's first score, then the searches of all, rung by rung, and
at the end the measurements on the test rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tunescope import bank
from tunescope.comparison import formatting as form
from tunescope.comparison.aim import AnswerAim
from tunescope.comparison.candidate import Candidate
from tunescope.comparison.ledger import Clock, Ledger
from tunescope.comparison.plan import Bracket, Plan
from tunescope.comparison.planner import Planner
from tunescope.comparison.recipes import recipe_of
from tunescope.comparison.recommendation import advise
from tunescope.comparison.results import Advice, Measured, MethodResult, Probe, Repeat, Size
from tunescope.comparison.search import Search, Task
from tunescope.data.splitting import nested
from tunescope.errors import Interrupted, TunescopeError
from tunescope.evaluation import PER_ROW
from tunescope.evaluation.preferred import Scores
from tunescope.evaluation.statistics import PROPORTIONS, interval_of
from tunescope.methods import Method, System, ZeroShot
from tunescope.objectives import SFT
from tunescope.training.unfinished import kept_files, work_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunescope.comparison.runner import Given, Watcher

_NO_TIME = "the budget left no time to train it"
# Seconds between looks at what another process does.
_PATIENCE = 0.5


class Schedule:
    """The work of a comparison; all of it is kept by the ledger, and what is there already is not done again.

    Args:
        kinds: of the methods.
        given: data and settings.
        ledger: of the comparison.
        watcher: hears how it goes.
        publish: writes what is known by now.
    """

    def __init__(
        self,
        kinds: Sequence[type[Method]],
        given: Given,
        ledger: Ledger,
        watcher: Watcher,
        publish: Callable[[], object],
    ) -> None:
        self._kinds, self._given, self._ledger, self._watcher = kinds, given, ledger, watcher
        self._publish = publish
        self._failed: dict[str, str] = {}
        self._finished = False
        self._planner = Planner(len(kinds), given)

    # The search.

    def search(self) -> None:
        """Plan what is not planned, and take every candidate as far as its plan says.

        Another process may be at some of the candidates: they are left to it, and waited for where others depend on
        them.
        """
        for kind in self._kinds:
            self._plan(kind)
            self._rung([(search, search.plan.brackets[0]) for search in self._searches(kind)], 0, defaults_only=True)
        if not self._ledger.seconds("first_table"):
            self._ledger.spend("first_table", self._ledger.seconds())
        self._publish()
        searches = [search for kind in self._kinds for search in self._searches(kind)]
        for number in range(max((len(search.plan.brackets) for search in searches), default=0)):
            brackets = [(each, each.plan.brackets[number]) for each in searches if len(each.plan.brackets) > number]
            for level in range(max(len(bracket.rungs) for _, bracket in brackets)):
                if self._rung([(each, bracket) for each, bracket in brackets if level < len(bracket.rungs)], level):
                    self._publish()

    def _rung(self, brackets: Sequence[tuple[Search, Bracket]], level: int, *, defaults_only: bool = False) -> bool:
        """Have all candidates that may reach a rung reach it; returns whether there was anything to do."""
        done = False
        while due := [
            (search, bracket, candidate)
            for search, bracket in brackets
            for candidate in search.due(bracket, level)
            if candidate.number == 0 or not defaults_only
        ]:
            done = True
            if not any(self._advance(search, bracket, level, candidate) for search, bracket, candidate in due):
                time.sleep(_PATIENCE)
        if not defaults_only and not self._ledger.joins:
            for search, bracket in brackets:
                search.prune(bracket, level)
        return done

    def _advance(self, search: Search, bracket: Bracket, level: int, candidate: Candidate) -> bool:
        """Take a candidate to a rung; returns whether this process could."""
        with self._ledger.claimed(candidate) as own:
            if own is None:
                return False
            if len(own.rungs) > level or own.error is not None:
                return True  # another process did it meanwhile
            self._watcher.begin(search.kind.name, own.words + self._where(search, bracket, level))
            with self._timed("search"):
                notes = search.advance(own, bracket, level, self._watcher.step)
            self._note("training", notes)
            found = self._ledger.candidate(own.model_copy(update={"rungs": [], "error": None}))
        if found.error is not None:
            self._watcher.end(found.error)
        else:
            self._watcher.end(f"validation {form.metric_name(self._metric)} {self._shown(found.rungs[-1].score)}")
        return True

    @staticmethod
    def _where(search: Search, bracket: Bracket, level: int) -> str:
        return f", to step {bracket.rungs[level]} of {bracket.rungs[-1]}" if search.trains else ""

    # Plans.

    def _plan(self, kind: type[Method]) -> None:
        """See that a method's plan is there, and spends what the budget has become."""
        if self._ledger.joins:
            self._await_plan(kind)
            return
        plan, settings = self._ledger.plan(kind.name), self._given.settings
        unit = float(settings.budget_tokens or settings.budget)
        if plan is not None and plan.brackets and plan.budget >= unit:
            return
        self._watcher.begin(kind.name, "measuring its speed")
        try:
            with self._timed("search"):
                made = self._planner.plan(kind, plan, unit)
        except Interrupted:
            raise
        except TunescopeError as error:
            self._failed[kind.name] = str(error)
            failed = plan or Plan(budget=unit, step_seconds=0.0, step_tokens=0.0, brackets=[])
            self._ledger.keep_plan(kind.name, failed.model_copy(update={"asked": unit, "error": str(error)}))
            self._watcher.end(str(error))
            return
        self._ledger.keep_plan(kind.name, made)
        self._watcher.end(_plan_words(made, kind.trains != "nothing") if made.brackets else self._no_time(made))

    def _await_plan(self, kind: type[Method]) -> None:
        """Wait until the leading process has planned a method.

        Raises:
            TunescopeError: no process leads the comparison any more.
        """
        settings = self._given.settings
        unit = float(settings.budget_tokens or settings.budget)
        if (plan := self._ledger.plan(kind.name)) is None or max(plan.asked, plan.budget) < unit:
            self._watcher.begin(kind.name, "waiting for the plan of the process that leads")
        while plan is None or max(plan.asked, plan.budget) < unit:
            if not self._ledger.is_led:
                raise TunescopeError(
                    f"No process leads the comparison in {self._ledger.out} any more. Make the call without --join to "
                    "go on."
                )
            time.sleep(_PATIENCE)
            plan = self._ledger.plan(kind.name)

    def _searches(self, kind: type[Method]) -> list[Search]:
        """The method's search, where its plan has any candidates."""
        plan = self._ledger.plan(kind.name)
        if plan is None or not plan.brackets:
            return []
        return [Search(kind, plan, self._given.task, self._ledger)]

    # The end.

    def finish(self) -> None:
        """Open the test rows for the best candidate of each method, where that was not done."""
        chosen = [(search, best) for kind in self._kinds for search in self._searches(kind) if (best := search.best())]
        for search, best in chosen:
            name = search.kind.name
            try:
                measured = self._ledger.row(name)
                if measured is None or measured.candidate != best.state:
                    self._watcher.begin(name, f"{best.words}, on the test rows")
                    with self._held(best):
                        measured = self._measure(search, best)
                measured = self._repeat(search, best, measured)
                self._on_fewer_rows(search, best, measured)
            except Interrupted:
                raise
            except TunescopeError as error:
                self._failed[name] = str(error)
                self._watcher.end(str(error))
                continue
            if best.steps is None or best.progress == 1:  # else the search may go on from its checkpoints
                self._ledger.forget_all_work(name)
        self._finished = True

    @contextmanager
    def _held(self, candidate: Candidate) -> Iterator[None]:
        """Have a candidate to oneself, once a helper that is at it has ended."""
        while True:
            with self._ledger.claimed(candidate) as own:
                if own is not None:
                    yield
                    return
            time.sleep(_PATIENCE)

    def _measure(self, search: Search, best: Candidate) -> Measured:
        """Make the best candidate's entry the method's, and measure it on the test rows."""
        given, task, ledger, kind = self._given, self._given.task, self._ledger, search.kind
        entry, own = ledger.entry(kind.name), ledger.candidate_entry(best.name)
        with self._timed("evaluation"):
            customized, record, _ = task.train(kind, best, ledger, best.rungs[-1].steps or None, self._watcher.step)
            if (own / bank.RECORD).is_file():
                bank.copy(own, entry, overwrite=True)
            else:  # not trained to its end
                bank.save(customized, entry, record, extra=kept_files(work_folder(own)), overwrite=True)
            record = bank.read_record(entry)
            card = task.aim.card(customized, given.test_rows, given.probes, self._watcher.stage)
            bank.write_card(entry, {key: value for key, value in card.items() if key not in PER_ROW}, record)
        self._note("testing", card["notes"])
        row = _row(kind.name, ledger, card, record.training)
        ended = best.steps is None or best.rungs[-1].steps == best.steps
        repeatable = kind.trains != "nothing" or isinstance(task.aim.objective, SFT)  # prompts are made of rows
        if given.named and ended and repeatable:
            row = row.model_copy(update={"recipe": recipe_of(record, given.named, best.seed, str(ledger.out))})
        measured = Measured(candidate=best.state, row=row)
        ledger.keep_row(kind.name, measured)
        score = f"test {form.metric_name(self._metric)} {self._shown(measured.row.score)}"
        forgetting = measured.row.forgetting_on
        self._watcher.end(score if forgetting is None else f"{score}, forgetting {forgetting:.3f} nats/token")
        return measured

    def _repeat(self, search: Search, best: Candidate, measured: Measured) -> Measured:
        """Train the best again by other seeds, as often as the plan says, and measure these on the test rows, too."""
        if best.steps is None or best.rungs[-1].steps < best.steps:
            return measured
        seeds = search.bracket_of(best).seeds
        for number in range(len(measured.repeats) + 1, seeds):
            again = best.again(number)
            self._watcher.begin(search.kind.name, f"{best.words}, training {number + 1} of {seeds}")
            found = self._tested(search, again, self._given.task)
            if found is None:
                break
            repeat = Repeat(seed=again.seed, score=found.score, per_row=found.per_row, row_keys=found.row_keys)
            measured = measured.model_copy(update={"repeats": [*measured.repeats, repeat]})
            self._ledger.keep_row(search.kind.name, measured)
            self._watcher.end(f"test {form.metric_name(self._metric)} {self._shown(repeat.score)}")
        return measured

    def _on_fewer_rows(self, search: Search, best: Candidate, measured: Measured) -> None:
        """Train the best on fewer rows, and measure that on the test rows, too; what reads no rows stays as it is."""
        task, rows = self._given.task, self._given.task.rows
        if isinstance(best.make(search.kind), ZeroShot | System):
            return
        for size in self._given.sizes:
            if size in [each.rows for each in measured.sizes]:
                continue
            self._watcher.begin(search.kind.name, f"{best.words}, from {size} rows")
            subset = replace(task, rows=nested(rows, task.aim.labels, size, task.settings.seed))
            found = self._tested(search, best.on_fewer(size), subset, best.rungs[-1].steps or None)
            if found is None:
                continue
            interval = interval_of(found.per_row, self._metric)
            made = Size(rows=size, score=found.score, low=interval.low, high=interval.high)
            measured = measured.model_copy(update={"sizes": [*measured.sizes, made]})
            self._ledger.keep_row(search.kind.name, measured)
            self._watcher.end(f"test {form.metric_name(self._metric)} {self._shown(made.score)}")

    def _tested(self, search: Search, candidate: Candidate, task: Task, until: int | None = None) -> Scores | None:
        """A further training, measured on the test rows and thrown away; None, and a note, where it fails."""
        try:
            with self._timed("evaluation"):
                customized, _, _ = task.train(search.kind, candidate, self._ledger, until, self._watcher.step)
                found = task.aim.measure(customized, self._given.test_rows, test=True)
        except Interrupted:
            raise
        except TunescopeError as error:
            self._note("a further training", [f"{candidate.name} failed: {error}"])
            self._watcher.end(str(error))
            return None
        self._ledger.forget_work(candidate.name)
        return found

    # What is known by now.

    @property
    def split(self) -> Literal["test", "validation"]:
        """What the rows' scores are of: of the test rows once all that is to be measured on them was."""
        return "test" if self._finished and all(self._final(kind) for kind in self._kinds) else "validation"

    @property
    def test_seen(self) -> bool:
        """Whether a method's settings were searched further after the test rows had been opened for it."""
        tried = (each for kind in self._kinds for search in self._searches(kind) for each in search.all)
        return any(rung.test_seen for each in tried for rung in each.rungs)

    def rows(self) -> list[MethodResult]:
        """A row a method, on the rows that ``split`` says."""
        tested = self.split == "test"
        return [self._result(kind, tested) for kind in self._kinds]

    def advice(self, rows: Sequence[MethodResult], metric: str) -> Advice:
        """What to take by now."""
        return advise(rows, metric, self.split)

    def _final(self, kind: type[Method]) -> bool:
        """Whether nothing is left to measure of a method on the test rows."""
        best = next((search.best() for search in self._searches(kind)), None)
        if best is None:
            return kind.name in self._failed or self._ledger.plan(kind.name) is not None
        measured = self._ledger.row(kind.name)
        return kind.name in self._failed or (measured is not None and measured.candidate == best.state)

    def _result(self, kind: type[Method], tested: bool) -> MethodResult:
        search = next(iter(self._searches(kind)), None)
        tried = search.all if search is not None else []
        measured, best = self._ledger.row(kind.name), search.best() if search is not None else None
        if best is None or (tested and kind.name in self._failed):
            errors = [each.error for each in tried if each.error is not None]
            plan = self._ledger.plan(kind.name)
            note = (
                self._failed.get(kind.name) or (plan and plan.error) or (errors[0] if errors else self._no_time(plan))
            )
            if search is None and plan is None and kind.name not in self._failed:
                note = "not begun yet"
            return MethodResult(method=kind.name, name=kind.name, note=note, search=tried)
        known: dict[str, Any] = {
            "settings": best.settings | ({} if best.lr is None else {"lr": best.lr}),
            "candidates": sum(bool(each.rungs or each.error) for each in tried),
            "search": tried,
            "validation_score": best.rungs[-1].score,
            "trained_tokens": best.rungs[-1].trained_tokens,
        }
        if tested and measured is not None:
            known |= _over_seeds(measured, self._metric) | {"sizes": self._with_all(measured)}
            if best.steps is not None and best.rungs[-1].steps < best.steps:
                known["note"] = f"stopped after {best.rungs[-1].steps} of {best.steps} steps"
            return measured.row.model_copy(update=known)
        return self._interim(kind, best, known)

    def _with_all(self, measured: Measured) -> list[Size]:
        """What fewer rows gave, and behind it what all gave."""
        row = measured.row
        if not measured.sizes or row.score is None or row.score_low is None or row.score_high is None:
            return []
        every = Size(rows=len(self._given.task.rows), score=row.score, low=row.score_low, high=row.score_high)
        return [*sorted(measured.sizes, key=lambda each: each.rows), every]

    def _interim(self, kind: type[Method], best: Candidate, known: dict[str, Any]) -> MethodResult:
        """A row of what the validation rows say."""
        rung = best.rungs[-1]
        interval = (
            interval_of([1.0] * round(rung.score * rung.rows) + [0.0] * round((1 - rung.score) * rung.rows), "accuracy")
            if self._metric in PROPORTIONS
            else None
        )
        return MethodResult(
            method=kind.name,
            name=kind.name,
            score=rung.score,
            score_low=interval and min(interval.low, rung.score),
            score_high=interval and max(interval.high, rung.score),
            nll_per_token=rung.loss if isinstance(self._given.task.aim, AnswerAim) else None,
            seconds=rung.seconds,
            steps=rung.steps or None,
            seeds=1,
            scores=[rung.score],
            **known,
        )

    # Small things.

    def _no_time(self, plan: Plan | None) -> str:
        """Why nothing was tried, and what would be enough."""
        if plan is None or plan.least is None:
            return _NO_TIME
        if self._given.settings.budget_tokens is not None:
            return f"{_NO_TIME}; --budget-tokens {math.ceil(plan.least)} would do"
        return f"{_NO_TIME}; about --budget {math.ceil(plan.least / 60)}m would do"

    @property
    def _metric(self) -> str:
        return self._given.task.aim.metric

    def _shown(self, score: float | None) -> str:
        return "none" if score is None else form.score(score, self._metric)

    def _note(self, stage: str, notes: Sequence[str]) -> None:
        known = self._given.notes
        new = [note for each in notes if (note := f"In {stage}: {each}") not in known]
        known += new
        if new:
            self._ledger.add_notes(new)

    @contextmanager
    def _timed(self, clock: Clock) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._ledger.spend(clock, time.monotonic() - started)


def _plan_words(plan: Plan, trains: bool) -> str:
    bracket = plan.brackets[-1]
    tries = f"{bracket.count} setting{'s' if bracket.count > 1 else ''}"
    if not trains:
        return f"up to {tries}"
    again = f", the best {bracket.seeds} times" if bracket.seeds > 1 else ""
    return f"{tries}, measured at step {', '.join(map(str, bracket.rungs))}{again}"


def _row(method: str, ledger: Ledger, card: dict[str, Any], training: dict[str, Any]) -> MethodResult:
    """What a card says, as a row."""
    shared = set(MethodResult.model_fields) & set(card)
    values = {key: card[key] for key in shared if card[key] is not None}
    values |= {
        key: training[key] for key in ("steps", "rows_per_s", "tokens_per_s", "pad_fraction", "loss") if key in training
    }
    values["peak_memory_mb"] = max(card["peak_memory_mb"], training.get("peak_memory_mb", 0.0))
    values["probes"] = {
        name: {key: probe[key] for key in Probe.model_fields} for name, probe in values.get("probes", {}).items()
    }
    if "extra_prompt_tokens" in card:
        values["extra_prompt_tokens"] = round(card["extra_prompt_tokens"])
    values["answers"] = dict(zip(card["row_keys"], card["answers"], strict=True)) if card["answers"] else {}
    return MethodResult(
        method=method,
        name=method,
        seconds=training.get("seconds", 0.0),
        artifact_mb=bank.size_mb(ledger.entry(method)),
        path=str(ledger.entry(method)),
        curve=ledger.curve(method),
        **values,
    )


def _over_seeds(measured: Measured, metric: str) -> dict[str, Any]:
    """Score, interval and per-row scores as means over the trainings, over the rows that all were measured on."""
    row, repeats = measured.row, measured.repeats
    if not repeats or row.score is None:
        return {"seeds": 1, "scores": [] if row.score is None else [row.score]}
    trainings = [(row.row_keys, row.per_row), *((each.row_keys, each.per_row) for each in repeats)]
    by_seed = [dict(zip(keys, scores, strict=True)) for keys, scores in trainings]
    keys = [key for key in row.row_keys if all(key in found for found in by_seed)]
    per_row = [sum(found[key] for found in by_seed) / len(by_seed) for key in keys]
    interval = interval_of(per_row, metric)
    scores = [row.score, *(each.score for each in repeats)]
    return {
        "seeds": len(scores),
        "scores": scores,
        "score": sum(scores) / len(scores),
        "score_low": interval.low,
        "score_high": interval.high,
        "per_row": per_row,
        "row_keys": keys,
    }
