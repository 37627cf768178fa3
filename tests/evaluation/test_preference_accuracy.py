"""Held-out accuracy, margins and calibration of what was trained on pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.objectives.pairs import PAIRS, RANKINGS
from tests.tiny import tiny_base

from tunescope.data.pairs import Pair
from tunescope.data.rankings import Ranking
from tunescope.errors import DataError
from tunescope.evaluation.preference_accuracy import evaluate_preferences, plot_reliability, reliability
from tunescope.evaluation.statistics import wilson_interval
from tunescope.inference import reward_scores
from tunescope.methods import LoRA
from tunescope.objectives import DPO, PreferenceObjective, Reward
from tunescope.training import TrainSettings, train


@pytest.fixture(autouse=True)
def _own_cache(empty_cache: Path) -> None:
    """References are kept for the test alone."""


@pytest.mark.parametrize("objective", [DPO(beta=0.5), DPO(loss="simpo"), Reward()], ids=["dpo", "simpo", "reward"])
def test_better_after_training_and_exchanged_pairs_are_wrong(objective: PreferenceObjective) -> None:
    trained = train(tiny_base(), LoRA(), objective, PAIRS, settings=TrainSettings(max_steps=10, lr=1e-2))
    exchanged = [Pair(p.messages, p.rejected, p.chosen, p.number) for p in PAIRS[:3]]
    card = evaluate_preferences(trained.customized, objective, [*PAIRS, *exchanged])
    assert card["score"] == 12 / 15
    assert card["score_low"] < card["score"] < card["score_high"]
    assert card["margin"] == pytest.approx(card["reward_chosen"] - card["reward_rejected"], abs=1e-5)
    assert card["margin_low"] < card["margin"] < card["margin_high"]
    assert sum(b["pairs"] for b in card["reliability"]) == card["rows"] == 15


def test_margins_are_the_rewards_of_the_texts() -> None:
    customized = train(tiny_base(), LoRA(), Reward(), PAIRS, settings=TrainSettings(max_steps=5, lr=1e-2)).customized
    card = evaluate_preferences(customized, Reward(), PAIRS)
    messages = [p.messages for p in PAIRS]
    chosen = reward_scores(customized, messages, [p.chosen for p in PAIRS])
    rejected = reward_scores(customized, messages, [p.rejected for p in PAIRS])
    assert card["reward_chosen"] == pytest.approx(sum(chosen) / len(chosen), abs=1e-4)
    assert card["reward_rejected"] == pytest.approx(sum(rejected) / len(rejected), abs=1e-4)


def test_a_ranking_counts_once_with_the_mean_over_its_pairs() -> None:
    customized = train(tiny_base(), LoRA(), Reward(), PAIRS, settings=TrainSettings(max_steps=3, lr=1e-2)).customized
    rows = [*RANKINGS, Ranking(PAIRS[0].messages, ("yes", "no"), (2, 1), 99)]
    card = evaluate_preferences(customized, Reward(), rows)
    shares, margins, pooled = [], [], []
    for row in rows:
        rewards = reward_scores(customized, [row.messages] * len(row.responses), row.responses)
        own = [
            a - b
            for a, i in zip(rewards, row.ranks, strict=True)
            for b, j in zip(rewards, row.ranks, strict=True)
            if i < j
        ]
        shares.append(sum(margin > 0 for margin in own) / len(own))
        margins.append(sum(own) / len(own))
        pooled += own
    assert 0 < sum(shares) < len(shares)
    assert (card["rows"], card["pairs"]) == (len(rows), len(pooled))
    assert card["score"] == pytest.approx(sum(shares) / len(shares))
    low_and_high = wilson_interval(sum(shares), len(shares))  # a prompt is one trial
    assert (card["score_low"], card["score_high"]) == pytest.approx((low_and_high.low, low_and_high.high))
    assert card["margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-4)
    assert card["margin"] == pytest.approx(card["reward_chosen"] - card["reward_rejected"], abs=1e-5)
    assert card["calibration_error"] == pytest.approx(reliability(np.array(pooled))[0], abs=1e-3)
    assert sum(b["pairs"] for b in card["reliability"]) == len(pooled)


def test_no_pair_that_fits() -> None:
    customized = train(tiny_base(), LoRA(), Reward(), PAIRS, settings=TrainSettings(max_steps=1)).customized
    with pytest.raises(DataError, match="No pair fits"):
        evaluate_preferences(customized, Reward(), [Pair(PAIRS[0].messages, "a" * 600, "b", 1)])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60))
def test_reliability_against_the_slow_way(drawn: list[float]) -> None:
    margins = np.array(drawn)
    error, bins = reliability(margins)
    confidence = [1 / (1 + np.exp(-abs(m))) for m in drawn]
    total = 0.0
    for found in bins:
        last = found["high"] == 1
        inside = [
            (c, m > 0)
            for c, m in zip(confidence, drawn, strict=True)
            if found["low"] - 1e-9 <= c and (c < found["high"] - 1e-12 or last)
        ]
        assert found["pairs"] >= 1
        assert found["low"] - 1e-9 <= found["confidence"] <= found["high"] + 1e-9
        assert 0 <= found["accuracy"] <= 1
        assert abs(len(inside) - found["pairs"]) <= sum(
            abs(c - e) < 1e-9 for c in confidence for e in np.linspace(0.5, 1, 11)
        )
        total += found["pairs"] * abs(found["accuracy"] - found["confidence"])
    assert sum(found["pairs"] for found in bins) == len(drawn)
    assert error == pytest.approx(total / len(drawn))


def test_calibrated_rewards_have_a_small_error_and_overconfident_ones_a_large_one() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(size=20_000) * 2
    right = generator.random(20_000) < 1 / (1 + np.exp(-np.abs(true)))
    margins = np.where(right, 1, -1) * np.abs(true)
    assert reliability(margins)[0] < 0.02
    assert reliability(8 * margins)[0] > 0.15


def test_the_plot_needs_nothing_else(tmp_path: Path) -> None:
    error, bins = reliability(np.array([0.5, -0.2, 3.0]))
    path = tmp_path / "plot.html"
    plot_reliability({"reliability": bins, "calibration_error": error, "rows": 3}, path)
    page = path.read_text(encoding="utf-8")
    assert "plotly" in page and "confidence" in page and '<script src="http' not in page
