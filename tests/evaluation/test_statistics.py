"""Intervals: what holds for every input (hypothesis), and nominal coverage on simulated data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.errors import DataError
from tunescope.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_interval,
    common_rows,
    interval_of,
    paired_difference,
    paired_difference_of,
    paired_proportions,
    rows_needed,
    unpaired_difference,
    wilson_interval,
    without_width,
)

scores = st.lists(st.floats(-1e3, 1e3).map(lambda value: round(value, 3)), min_size=1, max_size=120)
pairs = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=120)
slow = settings(max_examples=60, deadline=None)


@slow
@given(scores)
def test_the_interval_contains_the_mean_and_stays_inside_the_values(values: list[float]) -> None:
    found = bootstrap_interval(values, resamples=2000)
    mean = float(np.mean(values))
    assert found.low - 1e-6 <= mean <= found.high + 1e-6
    assert min(values) - 1e-6 <= found.low <= found.high <= max(values) + 1e-6


@slow
@given(st.floats(-1e6, 1e6), st.integers(1, 200))
def test_constant_scores_without_a_span_have_no_width_and_say_so(value: float, n: int) -> None:
    found = bootstrap_interval([value] * n)
    assert found == Interval(value, value) and found.degenerate
    said = without_width({"margin": found, "kl": Interval(0, 1), "score": found})
    assert len(said) == 1 and said[0].startswith("margin and score: the same on every row")
    assert without_width({"kl": Interval(0, 1)}) == []


# z = 1.959964. Wilson at 0 of n: z² / (n + z²); Bonett and Price with no row that differs: z sqrt(2) / (n + 2).
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(20, 20, 0.8388748, 1.0), (0, 9, 0.0, 0.2991450), (9, 9, 0.7008550, 1.0), (0, 1, 0.0, 0.7934507)],
)
def test_at_the_boundary_an_accuracy_keeps_its_width(correct: int, n: int, low: float, high: float) -> None:
    rows = [1.0] * correct + [0.0] * (n - correct)
    for metric, unit in (("accuracy", 1.0), ("exact_match", 1.0), ("chrf", 100.0)):
        found = interval_of([unit * value for value in rows], metric)
        assert (found.low, found.high) == (pytest.approx(unit * low, abs=1e-5), pytest.approx(unit * high, abs=1e-5))
        same = paired_difference_of([unit * value for value in rows], [unit * value for value in rows], metric)
        reach = unit * 1.959964 * 2**0.5 / (n + 2)
        assert (same.mean, same.low, same.high) == (0.0, pytest.approx(-reach), pytest.approx(reach))


def test_paired_proportions_match_values_computed_by_hand() -> None:
    # Only a right on 12 rows, only b on 2, of 50: p = 13/52, q = 3/52; 10/52 ± z sqrt((16/52 - (10/52)²) / 52).
    a, b = [1] * 12 + [0] * 2 + [1] * 36, [0] * 12 + [1] * 2 + [1] * 36
    found = paired_proportions(a, b)
    assert (found.mean, found.low, found.high) == (
        0.2,
        pytest.approx(0.0509, abs=1e-4),
        pytest.approx(0.3337, abs=1e-4),
    )
    assert paired_proportions(b, a) == -found
    with pytest.raises(ValueError, match="a 1 or a 0"):
        paired_proportions([0.5], [1])


@slow
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_paired_proportions_stay_inside_mirror_and_have_a_width(rows: list[tuple[bool, bool]]) -> None:
    a, b = [float(row[0]) for row in rows], [float(row[1]) for row in rows]
    found = paired_proportions(a, b)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    assert not found.degenerate
    mirrored = paired_proportions(b, a)
    assert (mirrored.low, mirrored.high) == (pytest.approx(-found.high), pytest.approx(-found.low))


def test_common_rows_are_found_by_key() -> None:
    assert common_rows(["a", "b", "c"], ["c", "x", "a"]) == ([0, 2], [2, 0])
    with pytest.raises(DataError, match="no row in common"):
        common_rows(["a"], ["b"])


@slow
@given(pairs)
def test_differences_are_antisymmetric_and_contain_their_mean(rows: list[tuple[float, float]]) -> None:
    a, b = [row[0] for row in rows], [row[1] for row in rows]
    found = paired_difference(a, b, resamples=1000)
    assert paired_difference(b, a, resamples=1000) == -found
    assert found.low <= found.mean <= found.high


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_inside_and_mirrors(case: tuple[int, int]) -> None:
    correct, n = case
    found, mirrored = wilson_interval(correct, n), wilson_interval(n - correct, n)
    assert 0 <= found.low <= correct / n <= found.high <= 1
    assert found.width > 0
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-9)


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, table I, method 3: 81/263 and 0/20.
    assert wilson_interval(81, 263).low == pytest.approx(0.2553, abs=1e-4)
    assert wilson_interval(81, 263).high == pytest.approx(0.3662, abs=1e-4)
    assert wilson_interval(0, 20).high == pytest.approx(0.1611, abs=1e-4)


def test_the_seed_decides_the_result() -> None:
    values = np.random.default_rng(3).normal(size=300)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


@pytest.mark.parametrize("share", [0.3, 0.85])
def test_coverage_on_bernoulli_rows_is_about_nominal(share: float) -> None:
    generator = np.random.default_rng(7)
    trials, rows = 400, 200
    covered = {"bootstrap": 0, "wilson": 0}
    for _ in range(trials):
        values = (generator.random(rows) < share).astype(float)
        bootstrap, wilson = bootstrap_interval(values, resamples=1000), wilson_interval(values.sum(), rows)
        covered["bootstrap"] += bootstrap.low <= share <= bootstrap.high
        covered["wilson"] += wilson.low <= share <= wilson.high
    assert all(0.92 <= hits / trials <= 0.98 for hits in covered.values()), covered


def test_two_methods_that_are_equal_are_rarely_told_apart() -> None:
    generator = np.random.default_rng(11)
    wrong = sum(
        paired_proportions(generator.random(100) < 0.8, generator.random(100) < 0.8).resolved for _ in range(2000)
    )
    assert wrong / 2000 <= 0.06


def test_a_handful_of_rows_in_one_direction_is_no_proof() -> None:
    a, b = np.ones(200), np.ones(200)
    b[:4] = 0  # the exact sign test of 4 against 0 gives p = 0.125
    assert not paired_difference(a, b).resolved and not paired_proportions(a, b).resolved
    b[:12] = 0
    assert paired_difference(a, b).resolved and paired_proportions(a, b).resolved


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    generator = np.random.default_rng(5)
    hard = generator.normal(50, 20, size=150)
    better = hard + 2 + generator.normal(0, 1, size=150)
    assert paired_difference(better, hard).low > 1.5
    apart = unpaired_difference(
        float(better.mean()), bootstrap_interval(better), float(hard.mean()), bootstrap_interval(hard)
    )
    assert not apart.resolved


def test_unpaired_difference_matches_newcombe() -> None:
    # Newcombe 1998 (interval estimation for the difference), table II: 56/70 - 48/80, method 10.
    found = unpaired_difference(56 / 70, wilson_interval(56, 70), 48 / 80, wilson_interval(48, 80))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=1e-4), pytest.approx(0.3339, abs=1e-4))


def test_many_distinct_values_go_through_in_chunks() -> None:
    values = np.random.default_rng(0).normal(10, 1, size=50_000)
    found = bootstrap_interval(values, resamples=200)
    assert found.width == pytest.approx(2 * 1.96 / np.sqrt(50_000), rel=0.25)


def test_rows_needed_grows_with_the_inverse_square_of_the_difference() -> None:
    wide = rows_needed(Difference(0.01, -0.03, 0.05), 200)
    narrow = rows_needed(Difference(0.02, -0.02, 0.06), 200)
    assert wide == pytest.approx(4 * narrow)
    assert rows_needed(Difference(0.0, -0.1, 0.1), 200) == float("inf")
    # When the interval ends at zero exactly, half of the repetitions would show it; 80% need about twice the rows.
    assert rows_needed(Difference(0.04, 0.0, 0.08), 100, power=0.5) == pytest.approx(100)
    assert rows_needed(Difference(0.04, 0.0, 0.08), 100) == pytest.approx(204, rel=0.01)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")]])
def test_unusable_scores_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="per-row scores"):
        bootstrap_interval(values)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="same rows"):
        paired_difference([1, 0], [1])
    with pytest.raises(ValueError, match="not an accuracy"):
        wilson_interval(5, 4)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1, 2], confidence=1.0)


def test_accuracies_over_several_trainings_lie_between_and_take_the_bootstrap() -> None:
    """Means of three trainings: an interval around the mean, differences paired, nothing refused."""
    one, two = [1.0, 1 / 3, 0.0, 2 / 3] * 20, [1.0, 0.0, 0.0, 1 / 3] * 20
    found = interval_of(one, "accuracy")
    assert found == bootstrap_interval(one, span=1.0)
    assert found.low < 0.5 < found.high
    assert paired_difference_of(one, two, "accuracy") == paired_difference(one, two, span=1.0)
    whole = [1.0, 0.0] * 40
    assert interval_of(whole, "accuracy") == wilson_interval(40, 80)
    wider = paired_difference_of(whole, two, "accuracy", confidence=0.99)
    narrow = paired_difference_of(whole, two, "accuracy")
    assert wider.low < narrow.low and wider.high > narrow.high
