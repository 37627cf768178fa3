"""Numbers as people read them."""

from __future__ import annotations

import pytest

from tunescope.comparison import formatting as form


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (form.count(0), "0"),
        (form.count(999), "999"),
        (form.count(11_520), "11.5k"),
        (form.count(460_800), "461k"),
        (form.count(999_900), "1.0M"),
        (form.count(134_515_008), "134.5M"),
        (form.count(None), form.MISSING),
        (form.duration(0), "0 s"),
        (form.duration(4.25), "4.2 s"),
        (form.duration(59.7), "1 m 00 s"),
        (form.duration(4320), "1 h 12 m"),
        (form.milliseconds(8.44), "8.4"),
        (form.milliseconds(1240), "1,240"),
        (form.megabytes(1234), "1.2 GB"),
        (form.score(0.9125, "accuracy"), "91.2%"),
        (form.score(54.3, "chrf"), "54.3"),
        (form.score_interval(0.5, None, None, "accuracy"), "50.0"),
        (form.points(-0.0002, "accuracy", signed=True), "+0.0"),
        (form.number(-0.0001, 3), "0.000"),
        (form.listing(["a"]), "a"),
        (form.listing(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_spelling(shown: str, expected: str) -> None:
    assert shown == expected
