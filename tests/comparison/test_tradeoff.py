"""Each rule of the advice on a case made for it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tunescope.comparison.recommendation import advise
from tunescope.comparison.results import MethodResult, Probe
from tunescope.comparison.tradeoff import choose, difference, favorite_of, latency_ms, notable_forgetting, pareto
from tunescope.errors import DataError

from .fixtures import keys, make_row, realistic_rows


def test_a_clear_winner_is_taken_and_the_nearest_is_named() -> None:
    rows = [make_row("zero-shot", 0.5), make_row("few-shot", 0.6), make_row("lora", 0.9, trainable_parameters=10)]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "lora"
    assert advice.headline.startswith("Take lora: accuracy 90.0% (")
    assert "the nearest, few-shot, by 30.0 points" in advice.reasons[0]
    assert "lora gains 40.0 points" in advice.reasons[1]


def test_among_comparable_methods_the_one_without_training_is_taken() -> None:
    rows = [
        make_row("zero-shot", 0.5),
        make_row("few-shot", 0.795, seed=1, ttft_ms=300.0, forgetting_on=0.3),
        make_row("lora", 0.8, seed=2, trainable_parameters=10),
    ]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "few-shot"
    assert "lora has the highest score, 0.5 points" in advice.reasons[0]
    assert "no difference that this data can show" in advice.reasons[0]
    assert "needs no training" in advice.reasons[0]
    lora = advice.alternatives[0]
    assert (lora.name, lora.comparable, lora.ttft_ms) == ("lora", True, -250.0)
    assert lora.difference == pytest.approx(0.005)
    assert lora.forgetting == pytest.approx(-0.3)
    assert re.search(r"lora instead of few-shot: \+0\.5 points \[.*-0\.300 nats.*-250\.0 ms to the first", lora.text)


@pytest.mark.parametrize(
    ("cheap", "dear", "reason"),
    [
        ({"forgetting_on": 0.01}, {"forgetting_on": 0.09}, "it forgets least"),
        ({"ttft_ms": 50.0}, {"ttft_ms": 500.0}, "it answers fastest"),
        ({"extra_prompt_tokens": 0}, {"extra_prompt_tokens": 20}, "it adds the fewest prompt tokens"),
        ({"trainable_parameters": 10}, {"trainable_parameters": 1000}, "it trains the fewest parameters"),
    ],
)
def test_the_order_of_costs(cheap: dict[str, float], dear: dict[str, float], reason: str) -> None:
    common = {"trainable_parameters": 500}
    rows = [
        make_row("lora", 0.9, seed=1, **{**common, **dear}),
        make_row("adapter", 0.8975, seed=2, **{**common, **cheap}),
    ]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "adapter"
    assert reason in advice.reasons[0]


def test_costs_within_a_step_do_not_decide() -> None:
    rows = [
        make_row("lora", 0.9, seed=1, trainable_parameters=10, forgetting_on=0.004, ttft_ms=50.0),
        make_row("adapter", 0.8975, seed=2, trainable_parameters=20, forgetting_on=0.001, ttft_ms=51.0),
    ]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "lora"
    assert "adapter is not shown to be worse" in advice.reasons[0]


def test_an_unmeasured_cost_counts_as_worst() -> None:
    rows = [
        make_row("lora", 0.9, seed=1, trainable_parameters=10, forgetting_on=None),
        make_row("adapter", 0.8975, seed=2, trainable_parameters=20, forgetting_on=0.09),
    ]
    assert advise(rows, "accuracy").recommended == "adapter"


def test_nothing_beats_zero_shot() -> None:
    rows = [make_row("zero-shot", 0.8, seed=1), make_row("lora", 0.8025, seed=2), make_row("system", 0.7, seed=3)]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "zero-shot"
    assert "Nothing here is shown to beat zero-shot" in advice.text


def test_the_same_answers_on_every_row_are_said_to_be_so() -> None:
    rows = [make_row("lora", 0.8), make_row("zero-shot", 0.8)]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "zero-shot"
    assert "lora scored the same on every test row" in advice.text
    assert "too small" not in advice.text


def test_the_same_answers_on_few_rows_prove_nothing() -> None:
    advice = advise([make_row("lora", 0.0, rows=9), make_row("zero-shot", 0.0, rows=9)], "accuracy")
    assert advice.headline == "Take zero-shot: accuracy 0.0% (0.0% to 29.9%) on the test rows."
    assert "With 9 test rows the test set is too small to tell: lora may be up to 25.2 points better" in advice.text


def test_a_test_set_that_is_too_small_is_said_with_the_rows_needed() -> None:
    rows = [make_row("zero-shot", 0.6, rows=30, seed=1), make_row("lora", 0.7, rows=30, seed=2)]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "zero-shot"
    assert "With 30 test rows the test set is too small to tell: lora may be up to" in advice.text
    needed = re.search(r"difference of 10\.0 points, were it real, would take about ([\d,]+) test rows", advice.text)
    assert needed is not None
    assert 30 < int(needed[1].replace(",", "")) < 400


def test_notable_forgetting_of_a_comparable_method_is_said() -> None:
    rows = [
        make_row("lora", 0.9, seed=1, trainable_parameters=10, forgetting_on=0.02),
        make_row("full", 0.905, seed=2, trainable_parameters=1000, forgetting_on=0.4, forgetting_off=0.4),
    ]
    advice = advise(rows, "accuracy")
    assert advice.recommended == "lora"
    assert "Forgetting with lora on is small: 0.020 nats per token." in advice.reasons
    assert "Forgetting with full on is notable" in advice.text
    assert "rises by 0.40 nats per token (perplexity 49% higher)" in advice.text
    assert "cannot be switched off" in advice.text


def test_a_probe_that_falls_beyond_its_interval_is_notable_forgetting() -> None:
    def row(accuracy: float) -> MethodResult:
        probe = Probe(accuracy=accuracy, base_accuracy=0.6, rows=200)
        return make_row("lora", 0.9, forgetting_on=0.01, probes={"PIQA": probe})

    assert not notable_forgetting(row(0.55))
    assert notable_forgetting(row(0.45))
    text = advise([row(0.45)], "accuracy").text
    assert "accuracy falls on PIQA from 60.0% to 45.0%, more than chance explains" in text
    assert "switched off, the base is back exactly" in text


def test_full_fine_tuning_is_said_to_be_a_whole_model() -> None:
    advice = advise([make_row("zero-shot", 0.2), make_row("full", 0.9, artifact_mb=269.0)], "accuracy")
    assert "a whole model of its own (269 MB)" in advice.text


def test_failed_rows_are_named_with_their_note() -> None:
    advice = advise([make_row("lora", 0.9), make_row("full", note="skipped: needs 3.1 GB")], "accuracy")
    assert "full has no score: skipped: needs 3.1 GB." in advice.reasons
    nothing = advise([make_row("full", note="interrupted")], "accuracy")
    assert nothing.recommended is None
    assert "nothing to recommend" in nothing.headline
    assert "interrupted" in nothing.text


def test_scores_on_a_scale_of_their_own_are_written_so() -> None:
    values = list(np.random.default_rng(0).normal(50, 10, 100))
    better = [value + 5 for value in values]
    rows = [
        MethodResult(method="zero-shot", name="zero-shot", score=50.0, per_row=values, row_keys=keys(100)),
        MethodResult(
            method="lora",
            name="lora",
            score=55.2,
            score_low=53.0,
            score_high=57.0,
            per_row=better,
            row_keys=keys(100),
        ),
    ]
    advice = advise(rows, "chrf")
    assert advice.headline == "Take lora: chrF 55.2 (53.0 to 57.0) on the test rows."
    assert "gains 5.2 points (95% interval +4.9 to +5.2)" in advice.text


def test_without_per_row_scores_intervals_are_combined_and_without_those_nothing_is_known() -> None:
    a = MethodResult(method="lora", name="a", score=0.8, score_low=0.75, score_high=0.85)
    b = MethodResult(method="lora", name="b", score=0.6, score_low=0.55, score_high=0.65)
    bare = MethodResult(method="lora", name="c", score=0.1)
    assert difference(a, b, "accuracy").resolved
    assert not difference(a, bare, "accuracy").resolved
    assert "no difference can be told from chance" in advise([a, bare], "accuracy").text
    assert advise([a, bare], "accuracy").alternatives[0].low is None


def test_pareto_keeps_what_nothing_beats_on_both() -> None:
    rows = [
        make_row("zero-shot", 0.5),
        make_row("lora", 0.9, trainable_parameters=100, seconds=10.0),
        make_row("adapter", 0.85, trainable_parameters=200, seconds=5.0),
        make_row("full", 0.9, trainable_parameters=1000, seconds=10.0),
        make_row("ia3", note="failed"),
        make_row("p-tuning", 0.99, trainable_parameters=None),
    ]
    assert pareto(rows, "trainable_parameters") == ["zero-shot", "lora"]
    assert pareto(rows[:4], "seconds") == ["zero-shot", "adapter", "lora", "full"]
    assert pareto(rows[:4], "latency_ms") == ["lora", "full"]
    assert pareto([], "seconds") == []


def test_latency_counts_the_first_token_and_the_rest() -> None:
    assert latency_ms(make_row("lora", 0.5, ttft_ms=100.0, ms_per_token=10.0)) == pytest.approx(290.0)
    assert latency_ms(make_row("lora", 0.5, ttft_ms=None)) is None


def test_the_order_of_the_rows_changes_nothing() -> None:
    rows = realistic_rows()
    assert advise(rows, "accuracy") == advise(rows[::-1], "accuracy")


def _measured(name: str, scores: dict[str, float], **fields: float) -> MethodResult:
    """A row with these scores by key, in reversed order where its name asks for it."""
    score = sum(scores.values()) / len(scores)
    return MethodResult(
        method="lora", name=name, score=score, per_row=list(scores.values()), row_keys=list(scores), **fields
    )


def test_differences_pair_by_row_and_never_by_length() -> None:
    # Each was dropped another row, so the two lists have the same length and other rows; the last row is right in both.
    a = _measured("a", {"x": 1.0, "y": 0.0, "only-a": 1.0, "w": 1.0})
    b = _measured("b", {"only-b": 0.0, "w": 1.0, "y": 0.0, "x": 1.0})
    found = difference(a, b, "accuracy")
    assert found.mean == 0.0
    # Three shared rows, none of which differs: p = q = 1/5, reach 1.96 sqrt(0.4 / 5).
    assert found.high == pytest.approx(-found.low) == pytest.approx(1.959964 * (0.4 / 5) ** 0.5)
    text = advise([a, b], "accuracy").text
    assert "a has 4 test rows; set against it over the rows they share: b (3 rows)." in text
    with pytest.raises(DataError, match="no row in common"):
        difference(a, _measured("c", {"z": 1.0}), "accuracy")


def test_rows_in_another_order_are_the_same_rows() -> None:
    scores = {f"{i}": float(i % 3 > 0) for i in range(30)}
    one, other = _measured("a", scores), _measured("b", dict(reversed(scores.items())))
    assert difference(one, other, "accuracy").mean == 0.0
    assert "share" not in advise([one, other], "accuracy").text


def test_lists_of_scores_without_keys_are_not_paired() -> None:
    bounds = {"score_low": 0.4, "score_high": 0.6}
    a = MethodResult(method="lora", name="a", score=0.5, per_row=[1.0, 0.0], **bounds)
    b = MethodResult(method="ia3", name="b", score=0.5, per_row=[0.0, 1.0], **bounds)
    assert difference(a, b, "accuracy").high == pytest.approx(0.1 * 2**0.5)
    with pytest.raises(ValueError, match="2 scores of rows, but 1 keys"):
        MethodResult(method="lora", name="a", score=0.5, per_row=[1.0, 0.0], row_keys=["x"])


def test_many_comparisons_are_tested_together() -> None:
    """A difference that 95% shows alone is none among eight; one that is clear stays clear, and frees the others."""
    best, near = make_row("lora", 0.90), make_row("near", 0.8575, seed=1)
    alone = difference(best, near, "accuracy")
    assert alone.low > 0
    assert not difference(best, near, "accuracy", 1 - 0.05 / 8).low > 0
    pair = choose([best, near], "accuracy")
    assert pair is not None and pair.comparable == [best]
    many = choose([best, near, *(make_row(f"even {i}", 0.885, seed=2) for i in range(7))], "accuracy")
    assert many is not None and near in many.comparable
    clear = choose([best, near, *(make_row(f"far {i}", 0.3, seed=2) for i in range(7))], "accuracy")
    assert clear is not None and clear.comparable == [best]


def test_a_method_that_answers_one_label_whatever_the_text_is_named() -> None:
    stuck = make_row("zero-shot", 0.5, confusion={"acq": {"acq": 40}, "earn": {"acq": 55, "earn": 5}})
    fair = make_row("lora", 0.9, confusion={"acq": {"acq": 36, "earn": 4}, "earn": {"earn": 60}})
    assert favorite_of(stuck) == ("acq", 0.95, 0.4)
    assert favorite_of(fair) is None
    assert favorite_of(make_row("full", 0.9, confusion={"earn": {"earn": 95, "acq": 1}, "acq": {"acq": 4}})) is None
    text = advise([stuck, fair], "accuracy").text
    assert "zero-shot answers 'acq' for 95% of the rows (its share is 40%)" in text
