"""Choosing under constraints and weights, against cases worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.conftest import command
from tests.comparison.fixtures import make_row, realistic_rows

from tunescope.comparison.constrained import Constraints, decide
from tunescope.comparison.recommendation import advise
from tunescope.comparison.results import BaseInfo, Comparison, DataInfo, MachineInfo, MethodResult
from tunescope.errors import TunescopeError


def comparison(rows: Sequence[MethodResult]) -> Comparison:
    return Comparison(
        tunescope="0", base=BaseInfo(name="b", fingerprint="f", parameters=1),
        data=DataInfo(name="d", sha256="0", train_rows=1, test_rows=1, template="t", task="classification"),
        machine=MachineInfo(device_name="cpu", cores=1, torch="2", dtype="float32"), budget_seconds=1, seed=0,
        metric="accuracy", rows=list(rows), advice=advise(list(rows), "accuracy"), seconds=1,
    )  # fmt: skip


def three() -> list[MethodResult]:
    """Prompting is quick and poor; LoRA good, slower in training; full the best, and forgets."""
    return [
        make_row("zero-shot", 0.5, artifact_mb=0.0, peak_memory_mb=900.0),
        make_row("lora", 0.8, trainable_parameters=460_800, seconds=60.0, forgetting_on=0.05, artifact_mb=2.0,
                 peak_memory_mb=1500.0),
        make_row("full", 0.9, trainable_parameters=134_000_000, seconds=120.0, forgetting_on=0.3, artifact_mb=270.0,
                 peak_memory_mb=3000.0),
    ]  # fmt: skip


def test_without_constraints_it_is_the_comparisons_own_choice() -> None:
    for rows in (three(), realistic_rows()):
        decision = decide(comparison(rows), Constraints())
        assert decision.chosen.name == advise(rows, "accuracy").recommended and not decision.excluded


def test_a_limit_keeps_out_and_says_what_it_costs() -> None:
    decision = decide(comparison(three()), Constraints(max_forgetting=0.1))
    assert decision.chosen.name == "lora" and decision.runner_up is not None and decision.runner_up.name == "zero-shot"
    assert decision.excluded == {"full": "forgetting 0.300 nats/token, and at most 0.100 nats/token is allowed"}
    (change,) = decision.changes
    assert change == "Allowing forgetting 0.300 nats/token, full would be possible: +10.0 points of accuracy."


def test_where_only_prompting_is_left_prompting_is_kept() -> None:
    decision = decide(comparison(three()), Constraints(max_parameters=0))
    assert decision.chosen.name == "zero-shot" and any("keep prompting" in reason for reason in decision.reasons)
    assert len(decision.changes) == 2 and decision.runner_up is None


def test_many_tasks_share_a_base_and_need_room() -> None:
    decision = decide(comparison(three()), Constraints(many_tasks=200))
    assert decision.chosen.name == "lora" and "200 whole models" in decision.excluded["full"]
    assert not any("full" in change for change in decision.changes)  # nothing that could be allowed
    small = decide(comparison(three()), Constraints(many_tasks=200, max_size_mb=100))
    assert small.chosen.name == "zero-shot" and "400 MB" in small.excluded["lora"]


def test_where_nothing_fits_the_nearest_is_named() -> None:
    with pytest.raises(TunescopeError, match="nearest is zero-shot: latency 430 ms, and at most 400 ms is allowed"):
        decide(comparison(three()), Constraints(max_latency_ms=400, max_parameters=0))
    with pytest.raises(TunescopeError, match="nothing to choose"):
        decide(comparison([make_row("lora")]), Constraints())


def test_weights_by_hand() -> None:
    """Heights of accuracy 0, 3/4, 1; of forgetting, by log(x + 0.01): 1, log(.31/.06)/log(31), 0."""
    constraints = Constraints(weights={"accuracy": 3, "forgetting": 1})
    decision = decide(comparison(three()), constraints)
    lora = (3 * 0.75 + math.log(0.31 / 0.06) / math.log(31)) / 4
    assert decision.utilities == {"full": 0.75, "lora": pytest.approx(lora, abs=1e-4), "zero-shot": 0.25}
    assert decision.chosen.name == "full" and decision.runner_up is not None and decision.runner_up.name == "lora"
    # full is ahead by 3 · 1/4 and behind by the height of lora's forgetting: the weights at which these are equal.
    height = math.log(0.31 / 0.06) / math.log(31)
    assert decision.changes == [
        f"With a weight of accuracy below {4 * height:.2g} (now 3) it would be lora.",
        f"With a weight of forgetting above {0.75 / height:.2g} (now 1) it would be lora.",
    ]


@settings(max_examples=60, deadline=None)
@given(
    weights=st.dictionaries(
        st.sampled_from(["accuracy", "latency", "forgetting", "training", "parameters"]), st.floats(0.1, 10), min_size=1
    ),
    many=st.integers(1, 5),
)
def test_what_would_change_it_does(weights: dict[str, float], many: int) -> None:
    rows = comparison(realistic_rows())
    decision = decide(rows, Constraints(weights=weights, many_tasks=many))
    best = max(decision.utilities.values())
    assert decision.utilities[decision.chosen.name] == best
    for change in decision.changes:
        if not change.startswith("With a weight of "):
            continue
        axis, side, value = change.split()[4], change.split()[5], float(change.split()[6])
        if value == 0 and side == "below":
            continue
        moved = value * (0.9 if side == "below" else 1.1)
        other = decide(rows, Constraints(weights=weights | {axis: moved}, many_tasks=many))
        assert other.chosen.name != decision.chosen.name or abs(value - weights[axis]) < 0.06 * weights[axis]


@pytest.mark.parametrize(
    ("weights", "why"),
    [({"accuracy": -1.0}, "0 or more"), ({"speed": 1.0}, "Unknown weight"), ({"latency": 0.0}, "all weights are 0")],
)
def test_weights_that_are_none(weights: dict[str, float], why: str) -> None:
    with pytest.raises(TunescopeError, match=why):
        Constraints(weights=weights)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(comparison(three()).to_json())
    values = command("advise", tmp_path, "--max-latency", "900ms", "--max-forgetting", 0.1, "--json").json
    assert values["choice"] == "lora" and values["runner_up"] == "zero-shot" and values["score"] == 0.8
    said = command("advise", tmp_path, "--weights", "accuracy=3,latency=1", "--many-tasks", 3)
    assert said.code == 0 and "Take" in said.out
    for arguments, why in (
        (("--max-latency", "fast"), "80ms"), (("--weights", "accuracy"), "key=value"),
        (("--weights", "acuracy=1"), "Did you mean accuracy"), (("--max-latency", "1ms"), "nearest is"),
    ):  # fmt: skip
        ended = command("advise", tmp_path, *arguments)
        assert ended.code == 2 and why in ended.err.replace("\n", " "), ended.err
    assert "compare ... --out RUN" in command("advise", tmp_path / "none").err.replace("\n", " ")
