"""The comparison from rows to report: what is chosen by which rows, what is kept when it is killed, what it refuses."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.comparison import (
    CompareSettings,
    Comparison,
    Watcher,
    aim,
    compare,
    read_comparison,
    runner,
    search,
)
from tunescope.comparison.aim import AnswerAim
from tunescope.data.rows import Row
from tunescope.errors import Interrupted, TunescopeError, UnknownNameError
from tunescope.evaluation import Probes
from tunescope.training import StepMetrics

ROWS = [
    Row(({"role": "user", "content": f"the {('sun', 'rain')[i % 2]} number {i}"},), ("warm", "wet")[i % 2], i + 1)
    for i in range(120)
]
PROBES = Probes(["A text that is general. " * 8], {}, True)
# Enough for three settings of a trained method: 1,500 tokens a pass, and half of it again for those that stop early.
TOKENS = 8000


def run(
    out: Path, *, methods: str = "zero-shot,few-shot,lora,full", watcher: Watcher | None = None, **changes: Any
) -> Comparison:
    how = {name: changes.pop(name) for name in ("finish", "join", "restart") if name in changes}
    settings = CompareSettings(
        **{"budget_tokens": TOKENS, "methods": tuple(methods.split(",")), "generate_rows": 2, "epochs": 2.0, **changes}
    )
    torch.set_num_threads(1)
    return compare(tiny_base(), ROWS, out=out, settings=settings, probes=PROBES, name="weather", watcher=watcher, **how)


def known(found: Comparison) -> list[dict[str, Any]]:
    """What does not depend on the clock."""
    return [
        {
            "row": (row.method, row.score, row.per_row, row.scores, row.settings, row.trained_tokens, row.kl_task),
            "losses": [loss for _, loss, _ in row.curve],
            "search": [
                (each.number, each.settings, [(rung.steps, rung.score, rung.loss) for rung in each.rungs])
                for each in row.search
            ],
        }
        for row in found.rows
    ]


def test_rows_report_and_bank(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    assert [row.method for row in found.rows] == ["zero-shot", "few-shot", "lora", "full"]
    assert (found.data.train_rows, found.data.validation_rows, found.data.test_rows) == (77, 19, 24)
    assert (found.data.labels, found.split, found.test_seen) == (["warm", "wet"], "test", False)
    lora = found.row("lora")
    assert lora.forgetting_off == 0.0 and lora.forgetting_on is not None
    assert found.row("zero-shot").kl_task == 0.0 and lora.kl_task is not None and lora.kl_task > 0
    assert found.row("full").forgetting_off == found.row("full").forgetting_on
    assert found.row("full").trainable_parameters == tiny_base().parameters
    assert len(lora.per_row) == 24 and [row.key for row in found.tested] == lora.row_keys == list(lora.answers)
    assert lora.per_row == [float(lora.answers[row.key] == row.expected) for row in found.tested]
    assert read_comparison(tmp_path / "run") == found
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert bank.names_in(tmp_path / "run" / "bank") == sorted(row.name for row in found.rows)
    assert not list((tmp_path / "run" / "candidates").glob("*/")), "what candidates were trained to is not kept"
    assert found.first_table_seconds is not None
    assert found.first_table_seconds + found.evaluation_seconds <= found.seconds + 0.2


def test_a_method_is_searched_and_the_best_by_validation_is_taken(tmp_path: Path) -> None:
    lora = run(tmp_path / "run", methods="lora").row("lora")
    assert lora.candidates == 3 == len({each.lr for each in lora.search})
    first, last = lora.search[0].rungs[0].steps, lora.steps
    assert last is not None and first == last // 3
    went_on = [each for each in lora.search if len(each.rungs) == 2]
    assert len(went_on) == 1 and went_on[0].rungs[1].steps == last == went_on[0].steps
    assert went_on[0] is min(lora.search, key=lambda each: each.rungs[0].order)
    assert lora.settings["lr"] == went_on[0].lr
    assert lora.trained_tokens == went_on[0].rungs[1].trained_tokens
    entry = bank.read_record(tmp_path / "run" / "bank" / "lora")
    assert entry.train_settings is not None and entry.train_settings["lr"] == went_on[0].lr
    assert entry.card is not None and entry.card["accuracy"] == lora.accuracy


def test_settings_are_chosen_on_rows_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, validation and test share no row, and the test rows are asked once a method, after every search."""
    asked: list[tuple[str, frozenset[str]]] = []
    measure, card, train = AnswerAim.measure, AnswerAim.card, search.train

    def texts(rows: Any) -> frozenset[str]:
        return frozenset(row.prompt for row in rows)

    monkeypatch.setattr(
        AnswerAim, "measure", lambda self, c, rows: (asked.append(("choose", texts(rows))), measure(self, c, rows))[1]
    )
    monkeypatch.setattr(
        AnswerAim,
        "card",
        lambda self, c, rows, *how: (asked.append(("test", texts(rows))), card(self, c, rows, *how))[1],
    )
    monkeypatch.setattr(
        search, "train", lambda *a, data, **how: (asked.append(("learn", texts(data))), train(*a, data=data, **how))[1]
    )
    run(tmp_path / "run", methods="few-shot,lora")
    seen = {kind: frozenset().union(*(rows for each, rows in asked if each == kind)) for kind, _ in asked}
    assert not seen["learn"] & seen["choose"] and not seen["learn"] & seen["test"] and not seen["choose"] & seen["test"]
    kinds = [kind for kind, _ in asked]
    assert kinds.count("test") == 2
    assert "choose" not in kinds[kinds.index("test") :]


@pytest.mark.parametrize("place", ["first rung", "later rung", "test rows"])
def test_killed_comparison_goes_on(place: str, tmp_path: Path) -> None:
    """A child is killed while LoRA trains, or while it is measured; the next call repeats nothing that was done."""

    class Killer(Watcher):
        what = ""

        def begin(self, method: str, what: str) -> None:
            self.what = f"{method}: {what}"

        def stage(self, stage: str) -> None:
            if place == "test rows" and self.what.startswith("lora") and stage == "latency":
                os.kill(os.getpid(), signal.SIGKILL)

        def step(self, metrics: StepMetrics) -> None:
            at = {"first rung": 2, "later rung": metrics.steps - 2}.get(place)
            if self.what.startswith("lora") and metrics.step == at:
                os.kill(os.getpid(), signal.SIGKILL)

    class Recorder(Watcher):
        def __init__(self) -> None:
            self.done: list[str] = []

        def begin(self, method: str, what: str) -> None:
            self.done.append(f"{method}: {what}")

    whole, recorder = Recorder(), Recorder()
    expected = run(tmp_path / "whole", watcher=whole)
    if (child := os.fork()) == 0:
        run(tmp_path / "killed", watcher=Killer())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = run(tmp_path / "killed", watcher=recorder)
    assert known(again) == known(expected)
    assert recorder.done == whole.done[-len(recorder.done) :]
    assert len(recorder.done) < len(whole.done)


def test_control_c_leaves_a_report_that_says_what_it_is(tmp_path: Path) -> None:
    class Stopper(Watcher):
        tables = 0

        def table(self, comparison: Comparison) -> None:
            self.tables += 1
            assert comparison.split == "validation"
            assert all(row.score is not None for row in comparison.rows)  # the first table already has every method

        def step(self, metrics: StepMetrics) -> None:
            if self.tables:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"report\.html.*--finish"):
        run(tmp_path / "run", watcher=Stopper())
    found = read_comparison(tmp_path / "run")
    assert found.split == "validation" and "So far" in found.advice.headline and "search goes on" in found.advice.text
    assert found.row("lora").validation_score == found.row("lora").score
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'http-equiv="refresh"' in page
    tested = run(tmp_path / "run", finish=True)  # no further search: what is there is measured
    assert tested.split == "test" and "Take" in tested.advice.headline
    lora = tested.row("lora")
    assert lora.note is not None and "stopped after" in lora.note
    assert lora.steps == lora.search[0].rungs[-1].steps < (lora.search[0].steps or 0)
    assert 'http-equiv="refresh"' not in (tmp_path / "run" / "report.html").read_text()
    # The search goes on after that: to what it would have chosen, measured anew, and says that the test was seen.
    further, whole = run(tmp_path / "run"), run(tmp_path / "whole")
    assert further.test_seen and not whole.test_seen
    assert known(further) == known(whole)


def test_finished_comparison_is_read_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path / "run", methods="zero-shot")
    wider = run(tmp_path / "run", methods="zero-shot,few-shot")
    assert wider.rows[0] == first.rows[0]
    assert len(wider.rows) == 2


def test_more_budget_goes_on_and_says_that_the_test_rows_were_seen(tmp_path: Path) -> None:
    first = run(tmp_path / "run", methods="lora")
    more = run(tmp_path / "run", methods="lora", budget_tokens=2 * TOKENS)
    assert more.test_seen and not first.test_seen
    before, after = first.row("lora").search, more.row("lora").search
    assert after[: len(before)] == before
    numbers = [each.number for each in after]
    assert len(numbers) == len(set(numbers)) > len(before)


def test_the_best_is_trained_by_several_seeds_where_the_budget_pays(tmp_path: Path) -> None:
    found = run(tmp_path / "run", methods="lora,zero-shot", budget_tokens=40 * TOKENS).row("lora")
    assert found.seeds == 3 == len(found.scores)
    assert found.score == pytest.approx(sum(found.scores) / 3)
    assert found.score == pytest.approx(sum(found.per_row) / len(found.per_row))
    assert found.score_low <= found.score <= found.score_high
    assert found.candidates == 27


def test_fewer_rows_show_what_more_would_buy(tmp_path: Path) -> None:
    methods = "zero-shot,few-shot,lora"
    first = run(tmp_path / "run", methods=methods)
    found = run(tmp_path / "run", methods=methods, sizes=(16, 4, 4, 1000))  # asked for later; more than all is all
    assert not found.test_seen and found.row("zero-shot").sizes == []
    for name in ("few-shot", "lora"):
        row = found.row(name)
        assert [size.rows for size in row.sizes] == [4, 16, 77]
        assert row.sizes[-1].score == row.score == first.row(name).score
        assert all(size.low <= size.score <= size.high for size in row.sizes)
    assert run(tmp_path / "run", methods=methods, sizes=(4, 16)).rows == found.rows


def test_other_data_or_settings_in_the_folder_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", methods="zero-shot")
    with pytest.raises(TunescopeError, match=r"another settings.*--restart"):
        run(tmp_path / "run", methods="zero-shot", batch_size=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(TunescopeError, match="exists and is no comparison"):
        run(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


CONDITIONS = {
    "style": ({"style": "plain"}, r"style \(chat; now plain\)"),
    "probes": ({"probes": Probes(["Another general text. " * 8], {}, True)}, "probes"),
    "no probes": ({"probes": None}, "probes"),
    "training rows": ({"data": ROWS[1:]}, "training rows"),
    "dtype": ({"base": tiny_base(dtype=torch.bfloat16)}, r"dtype \(float32; now bfloat16\)"),
    "unit": ({"settings": CompareSettings(methods=("zero-shot",), generate_rows=2)}, "budget's unit"),
    "seed": (
        {"settings": CompareSettings(methods=("zero-shot",), generate_rows=2, budget_tokens=9, seed=1)},
        r"settings \(seed\)",
    ),
}


@pytest.mark.parametrize("what", [*CONDITIONS, "version", "device"])
def test_rows_of_other_conditions_do_not_share_a_table(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CompareSettings(methods=("zero-shot",), generate_rows=2, budget_tokens=9)
    given: dict[str, Any] = {"settings": settings, "probes": PROBES}
    given |= {"base": tiny_base(), "data": ROWS, "test": ROWS[:9], "out": tmp_path / "run"}
    compare(**given)
    before = (tmp_path / "run" / "comparison.json").read_bytes()
    change, named = CONDITIONS.get(what, ({}, rf"{what} \(.*; now .*\)"))
    if what == "version":
        monkeypatch.setattr(runner.metadata, "version", lambda name: "0.0")
    if what == "device":
        monkeypatch.setattr(runner, "device_name", lambda device: "Another CPU")
    with pytest.raises(TunescopeError, match=rf"holds a comparison with another {named}\. .*--restart"):
        compare(**given | change)
    assert (tmp_path / "run" / "comparison.json").read_bytes() == before
    assert compare(**given | change, restart=True).rows[0].score is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", "{"),
        ("state.json", "[1, 2]"),
        ("state.json", None),
        ("times.json", ""),
        ("times.json", '{"total": NaN}'),
        ("plans/lora.json", '{"budget": 1}'),
        ("plans/zero-shot.json", "many"),
        ("rows/zero-shot.json", '{"method": "zero-shot"'),
        ("candidates/zero-shot-0.json", "[]"),
    ],
)
def test_damaged_state_is_named_with_the_remedy(name: str, content: str | None, tmp_path: Path) -> None:
    run(tmp_path / "run", methods="zero-shot")
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True) if content is None else path.write_text(content)
    with pytest.raises(TunescopeError, match=rf"{path.name} is damaged \(.*--restart"):
        run(tmp_path / "run", methods="zero-shot,lora")


def test_unknown_method_stops_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean lora"):
        run(tmp_path / "run", methods="zero-shot,lorra")
    assert not (tmp_path / "run").exists()


def test_a_method_that_fails_is_a_row_that_says_why(tmp_path: Path) -> None:
    found = compare(
        tiny_base(),
        [Row(({"role": "user", "content": "y" * 1300},), r.completion, r.number) for r in ROWS],
        out=tmp_path / "run",
        settings=CompareSettings(methods=("zero-shot", "few-shot"), generate_rows=1, budget=30),
    )
    assert found.row("few-shot").score is None
    assert "single prompts" in (found.row("few-shot").note or "")
    assert found.advice.recommended == "zero-shot"


def test_a_candidate_that_diverges_stops_itself_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = search.train

    def diverging(base: Any, method: Any, **how: Any) -> Any:
        if how["settings"].lr > 1e-3:
            raise TunescopeError("The loss is not finite at step 3.")
        return train(base, method, **how)

    monkeypatch.setattr(search, "train", diverging)
    lora = run(tmp_path / "run", methods="lora").row("lora")
    errors = {each.number: each.error for each in lora.search}
    assert errors == {0: None, 1: None, 2: "The loss is not finite at step 3."}
    assert lora.score is not None


def test_further_trainings_that_fail_leave_the_row_as_it_is(tmp_path: Path) -> None:
    found = run(tmp_path / "run", methods="few-shot,zero-shot", sizes=(2, 20))  # four shots cannot come of two rows
    row = found.row("few-shot")
    assert row.score is not None and [size.rows for size in row.sizes] in ([20, 77], [2, 20, 77])
    if len(row.sizes) == 2:
        assert any("few-shot-" in note and "shots" in note for note in found.data.notes)


def test_rows_that_do_not_fit_are_said(tmp_path: Path) -> None:
    with pytest.raises(TunescopeError, match=r"No method could be measured.*[Rr]aise --max-length"):
        run(tmp_path / "run", methods="zero-shot,lora", max_length=2)


def test_no_time_left_is_said(tmp_path: Path) -> None:
    found = run(tmp_path / "run", methods="zero-shot,lora", budget_tokens=9)
    assert "no time" in (found.row("lora").note or "")
    assert json.loads((tmp_path / "run" / "comparison.json").read_text())["rows"][1]["score"] is None
    again = run(tmp_path / "run", methods="zero-shot,lora")  # a larger budget reaches it
    assert again.row("lora").score is not None


def test_free_texts_are_chosen_by_loss_and_shown_by_chrf(tmp_path: Path) -> None:
    rows = [Row(r.messages, f"{r.completion} {i} {i + 1}", r.number) for i, r in enumerate(ROWS)]
    settings = CompareSettings(
        budget_tokens=TOKENS, methods=("system", "lora"), generate_rows=2, epochs=2.0, max_new_tokens=4
    )
    found = compare(tiny_base(), rows, out=tmp_path / "run", settings=settings)
    assert found.metric == "chrf" and found.data.task == "text"
    assert all(row.score is not None and row.settings.get("calibrate") is None for row in found.rows)


def test_a_candidate_that_fails_on_its_way_leaves_its_place_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, failed = search.train, []

    def diverging(base: Any, method: Any, **how: Any) -> Any:
        if how["until"] is None and not failed:
            failed.append(how["settings"].lr)
            raise TunescopeError("The loss is not finite at step 17.")
        return train(base, method, **how)

    monkeypatch.setattr(search, "train", diverging)
    lora = run(tmp_path / "run", methods="lora").row("lora")
    (broken,) = [each for each in lora.search if each.error is not None]
    ended = [each for each in lora.search if each.progress == 1]
    assert [broken.lr] == failed and len(ended) == 1 and ended[0] is not broken
    assert lora.settings["lr"] == ended[0].lr and lora.note is None


def test_a_loss_that_is_not_finite_is_the_candidates_own_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = aim.measure_task, []

    def broken(*given: Any, **how: Any) -> Any:
        calls.append(1)
        found = measure(*given, **how)
        return replace(found, nll_per_token=float("nan")) if len(calls) == 1 else found

    monkeypatch.setattr(aim, "measure_task", broken)
    lora = run(tmp_path / "run", methods="lora").row("lora")
    assert "not finite" in (lora.search[0].error or "") and lora.score is not None


def test_finalists_among_prompts_are_measured_on_all_validation_rows(tmp_path: Path) -> None:
    rows = [Row(r.messages, r.completion, i + 1) for i, r in enumerate(ROWS * 4)]
    for budget in (100, 60_000):
        settings = CompareSettings(methods=("few-shot",), budget_tokens=budget, generate_rows=1, test_rows=8)
        found = compare(tiny_base(), rows, out=tmp_path / "run", settings=settings)
        finalists = [each for each in found.rows[0].search if len(each.rungs) == 2]
        assert finalists
        assert all([rung.rows for rung in each.rungs] == [64, found.data.validation_rows] for each in finalists)


def test_a_budget_that_grows_in_small_steps_is_not_lost(tmp_path: Path) -> None:
    for budget in range(TOKENS, 2 * TOKENS + 1, TOKENS // 4):
        found = run(tmp_path / "run", methods="lora", budget_tokens=budget)
    assert len(found.row("lora").search) > 3
    assert (found.budget_seconds, found.budget_tokens) == (None, 2 * TOKENS)


def test_notes_stay_when_the_call_is_repeated(tmp_path: Path) -> None:
    rows = [
        Row(({"role": "user", "content": f"{r.prompt} " + "long " * 30},), r.completion, r.number) for r in ROWS[:60]
    ]
    settings = CompareSettings(methods=("lora",), budget_tokens=TOKENS, generate_rows=1, max_length=60)
    first, again = (compare(tiny_base(), rows, out=tmp_path / "run", settings=settings) for _ in range(2))
    assert any("cut" in note for note in first.data.notes)
    assert again.data.notes == first.data.notes


def test_stopped_in_a_further_training(tmp_path: Path) -> None:
    """What is there is no final table yet; without the further training in the next call, nothing of it is left."""

    class Stopper(Watcher):
        what = ""

        def begin(self, method: str, what: str) -> None:
            self.what = what

        def step(self, metrics: StepMetrics) -> None:
            if "from 16 rows" in self.what and metrics.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run(tmp_path / "run", methods="lora", sizes=(16,), watcher=Stopper())
    assert read_comparison(tmp_path / "run").split == "validation"
    assert list((tmp_path / "run" / "candidates" / ".training").glob("lora-*-of-16"))
    assert run(tmp_path / "run", methods="lora").split == "test"
    assert not list((tmp_path / "run" / "candidates").glob("*/")), "nothing is left, hidden folders neither"
    assert not (tmp_path / "run" / "candidates" / ".training").exists()


def test_fewer_rows_are_trained_as_far_as_all_were(tmp_path: Path) -> None:
    class Stopper(Watcher):
        what, steps, tables = "", 0, 0

        def begin(self, method: str, what: str) -> None:
            self.what = what

        def table(self, comparison: Comparison) -> None:
            self.tables += 1
            if self.tables == 1:
                raise KeyboardInterrupt

        def step(self, metrics: StepMetrics) -> None:
            if "from 16 rows" in self.what:
                self.steps = metrics.step

    with pytest.raises(Interrupted):
        run(tmp_path / "run", methods="lora", watcher=Stopper())
    watcher = Stopper()
    watcher.tables = 1
    found = run(tmp_path / "run", methods="lora", finish=True, sizes=(16,), watcher=watcher).row("lora")
    assert watcher.steps == found.steps < (found.search[0].steps or 0)


def test_a_budget_that_pays_for_nothing_says_what_would(tmp_path: Path) -> None:
    """The least that is named is the least: it trains, and one token less does not."""
    with pytest.raises(TunescopeError, match="the budget left no time to train it; --budget-tokens") as refused:
        run(tmp_path / "run", methods="lora", budget_tokens=10)
    least = int(str(refused.value).split("--budget-tokens ")[1].split()[0])
    with pytest.raises(TunescopeError, match=f"--budget-tokens {least} would do"):
        run(tmp_path / "less", methods="lora", budget_tokens=least - 1)
    assert run(tmp_path / "run", methods="lora", budget_tokens=least).row("lora").steps == 10
