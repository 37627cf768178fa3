"""Search spaces: what a point is depends on its number alone, and every point can be made."""

from __future__ import annotations

from itertools import islice

import pytest

from tunescope.methods.registry import METHODS
from tunescope.methods.space import Between, OneOf, points, spaces_of


@pytest.mark.parametrize("name", [*METHODS.names(), "prompt-tuning+lora"])
def test_points_are_functions_of_their_number(name: str) -> None:
    kind = METHODS.load(name)
    first, again = (list(islice(points(kind, labels=True), 30)) for _ in range(2))
    assert first == again
    assert (first[0].number, first[0].settings, first[0].draw) == (0, {}, 0)
    assert first[0].lr == (kind.learning_rate or None)
    tried = [(point.settings, point.lr, point.draw) for point in first]
    assert all(tried.count(each) == 1 for each in tried)
    for point in first:
        method = kind.parse(point.settings)
        assert all(getattr(method, setting) == value for setting, value in point.settings.items())
        assert (point.lr is None) == (kind.trains == "nothing")
        assert kind.rates is None or kind.rates.low <= point.lr <= kind.rates.high


@pytest.mark.parametrize("name", [name for name in METHODS.names() if METHODS.load(name).trains != "nothing"])
def test_the_first_others_move_the_rate_alone_one_down_and_one_up(name: str) -> None:
    kind = METHODS.load(name)
    default, low, high = islice(points(kind, labels=True), 3)
    assert (low.settings, high.settings) == ({}, {})
    assert low.lr < default.lr < high.lr
    assert kind.rates.low < default.lr < kind.rates.high


def test_a_space_without_a_rate_ends_and_one_with_draws_does_not() -> None:
    assert [point.settings for point in points(METHODS.load("zero-shot"), labels=True)] == [{}, {"calibrate": True}]
    assert [point.settings for point in points(METHODS.load("zero-shot"), labels=False)] == [{}]
    drawn = list(islice(points(METHODS.load("few-shot"), labels=True), 50))
    assert len({point.draw for point in drawn}) == 50


def test_what_only_labels_have_is_not_tried_on_texts() -> None:
    for name in ("system", "few-shot"):
        for point in islice(points(METHODS.load(name), labels=False), 20):
            assert not point.settings.get("calibrate")
            assert "{labels}" not in (point.settings.get("instruction") or "")


def test_every_value_of_a_space_is_reached() -> None:
    kind = METHODS.load("lora")
    found = list(islice(points(kind, labels=True), 40))
    for name, space in spaces_of(kind).items():
        default = kind.model_fields[name].get_default()
        assert {point.settings.get(name, default) for point in found} == set(space.values)


def test_shares_become_values() -> None:
    assert [Between(1e-4, 1e-2).at(share) for share in (0, 0.5, 0.99999)] == [1e-4, 1e-3, 1e-2]
    assert [OneOf("a", "b", "c").at(share) for share in (0, 0.34, 0.99)] == ["a", "b", "c"]
