"""Text as it comes: any cut into tokens gives the same text, and stop texts end it before they begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.test_encoding import KINDS, encoder, user
from tests.tiny import tiny_tokenizer

from tunescope.data.rows import Row, without_joint
from tunescope.inference.detokenizing import Detokenizer

TOKENIZER = tiny_tokenizer()  # a token a byte: a letter of several bytes comes in pieces


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_pieces_make_the_text(text: str) -> None:
    row = Detokenizer(TOKENIZER, ())
    said = without_joint(text)
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        row.add(token)
        assert said.startswith(row.text)
    row.close()
    assert row.text == said


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


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("prompt", ["def f(x):\n", "kind:"])
@pytest.mark.parametrize(
    "completion", ["    return x", "  two", "\n\nyes", "\ta", "complaint", "a , b . c", "😀", "12"]
)
@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("heal", [False, True])
def test_what_was_learned_reads_as_it_was_written(
    kind: str, prompt: str, completion: str, style: str, heal: bool
) -> None:
    """Indentation, and the space before a mark, whatever the tokenizer's decoder makes of a text's first word."""
    made = encoder(kind, style, heal=heal)
    found = made.encode(Row((user(prompt),), completion, 1))
    assert found is not None
    served = made.prompt([user(prompt)])
    ids = found.prompt + found.completion
    if ids[: len(served.ids)] != served.ids:
        assert not heal  # the answer begins with the prompt's last token, so only a healed prompt can be answered so
        return
    made.tokenizer.clean_up_tokenization_spaces = True  # as Llama 3's says
    text = Detokenizer(made.tokenizer, (), served.owed)
    for token in ids[len(served.ids) : -1]:
        text.add(token)
    text.close()
    made.tokenizer.clean_up_tokenization_spaces = False
    assert text.text == completion
