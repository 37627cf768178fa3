"""Text as it comes: any cut into tokens gives the same text, and stop texts end it before they begin."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny_tokenizer

from tunescope.inference.detokenizing import Detokenizer

TOKENIZER = tiny_tokenizer()  # a token a byte: a letter of several bytes comes in pieces


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_pieces_make_the_text(text: str) -> None:
    row = Detokenizer(TOKENIZER, ())
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        row.add(token)
        assert text.startswith(row.text)
    row.close()
    assert row.text == text


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_a_stop_text_ends_it_wherever_it_is_cut(text: str, stop: list[str]) -> None:
    row = Detokenizer(TOKENIZER, stop)
    shown = ""
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        row.add(token)
        assert row.text.startswith(shown)  # what was shown is never taken back
        shown = row.text
        if row.stopped:
            break
    row.close()
    # The stop text that is complete first ends it; of those complete at once, the one that begins first.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert row.text == (text[: min(ends)[1]] if ends else text)
    assert row.stopped == bool(ends)
