"""A row keeps its key whatever its line, file or order."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.identity import row_keys
from tunescope.data.rows import Row


def _row(text: str, label: str, number: int = 1) -> Row:
    return Row(({"role": "user", "content": text},), label, number)


@given(st.lists(st.tuples(st.text("ab", max_size=2), st.text("xy", max_size=1)), max_size=12), st.randoms())
def test_keys_are_unique_and_follow_the_row(texts: list[tuple[str, str]], chance: random.Random) -> None:
    rows = [_row(text, label, number) for number, (text, label) in enumerate(texts, start=1)]
    keys = row_keys(rows)
    assert len(set(keys)) == len(rows)
    shuffled = [_row(row.prompt, row.completion or "", 7) for row in chance.sample(rows, len(rows))]  # of another file
    assert sorted(row_keys(shuffled)) == sorted(keys)
    of = dict(zip(row_keys(shuffled), shuffled, strict=True))
    assert all(of[key].content == row.content for key, row in zip(keys, rows, strict=True))
