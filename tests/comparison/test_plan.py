"""A method's plan: never more than its share, never so little that it tells nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.comparison.plan import Bracket, Costs, bracket_of, cost_of, prompting_bracket

ROWS = (64, 200, 100)
seconds = st.floats(0.001, 10)


@given(st.floats(-10, 1e5), st.builds(Costs, seconds, seconds, st.floats(0.0001, 0.5)), st.integers(1, 5000))
def test_a_bracket_costs_at_most_its_share(share: float, costs: Costs, most: int) -> None:
    made = bracket_of(share, costs, most, ROWS)
    least = Bracket(first=0, count=1, rungs=[min(10, most)], seeds=1)
    if made is None:
        assert cost_of(least, costs, ROWS) > share - costs.stage - ROWS[0] * costs.row
        return
    assert cost_of(made, costs, ROWS) <= share
    assert made.rungs[-1] <= most
    assert all(a < b for a, b in pairwise(made.rungs))
    assert made.rungs[-1] >= min(10, most)
    alive = [made.alive(level) for level in range(len(made.rungs))]
    assert alive == sorted(alive, reverse=True)


@given(st.floats(1, 1e4), st.floats(1, 4))
def test_more_never_buys_fewer_settings_or_seeds(share: float, more: float) -> None:
    costs = Costs(1.0, 2.0, 0.05)
    less, much = (bracket_of(each, costs, 400, ROWS) for each in (share, share * more))
    if less is not None:
        assert much is not None
        assert (much.count * much.seeds, much.count) >= (less.count, min(less.count, much.count))


def test_the_cost_is_the_sum_of_its_parts() -> None:
    """Nine settings to step 10, three on to 30, one on to 90, and that twice more from the start, by hand."""
    made = Bracket(first=0, count=9, rungs=[10, 30, 90], seeds=3)
    steps = 9 * 10 + 3 * 20 + 1 * 60 + 2 * 90
    stages = 9 + 3 + 1 + 2
    rows = 9 * 64 + 3 * 200 + 1 * 64 + 2 * 100
    assert cost_of(made, Costs(1.0, 0.0, 0.0), ROWS) == steps
    assert cost_of(made, Costs(0.0, 1.0, 0.0), ROWS) == stages
    assert cost_of(made, Costs(0.0, 0.0, 1.0), ROWS) == rows


@pytest.mark.parametrize(("share", "settings"), [(5, None), (20, 1), (120, 3), (400, 9), (5000, 27)])
def test_what_a_share_buys(share: float, settings: int | None) -> None:
    made = bracket_of(share, Costs(1.0, 1.0, 0.02), 600, ROWS)
    assert (made.count if made is not None else None) == settings


def test_small_data_are_not_cut_into_rungs_that_tell_nothing() -> None:
    made = bracket_of(1000, Costs(1.0, 0.0, 0.0), 6, ROWS)
    assert made is not None
    assert made.rungs == [6]
    assert made.on_all_rows(0)


def test_a_prompt_is_always_tried() -> None:
    assert prompting_bracket(0.0, 0.1, ROWS).count == 1
    assert prompting_bracket(1e6, 0.1, ROWS).count == 27
    made = prompting_bracket((9 * 64 + 3 * 200) * 0.1, 0.1, ROWS, first=4)
    assert (made.count, made.first, made.rungs) == (9, 4, [64, 200])


def test_prompts_that_read_more_are_fewer() -> None:
    """Nine prompts of which two read nine rows for each: 25 rows' texts a row, 64 rows; then three on 200."""
    read = [1, 9, 9, 1, 1, 1, 1, 1, 1]
    cost = (25 * ROWS[0] + 3 * 25 / 9 * ROWS[1]) * 0.1
    assert prompting_bracket(cost + 0.01, 0.1, ROWS, read=read).count == 9
    assert prompting_bracket(cost - 0.01, 0.1, ROWS, read=read).count == 3
    assert prompting_bracket(cost - 0.01, 0.1, ROWS).count == 9
