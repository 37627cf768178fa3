"""Pairs: which columns are understood, which rows are refused, and how they are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny_tokenizer

from tunescope.data.compared import _split_texts
from tunescope.data.encoding import Encoder
from tunescope.data.pairs import Pair, to_pairs
from tunescope.data.rankings import repeated
from tunescope.data.reading import read
from tunescope.data.template import default_template
from tunescope.errors import DataError

USER = {"role": "user", "content": "What is it?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pairs(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> list[Pair]:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return to_pairs(read(path, skip_bad=options.get("skip_bad", 0)), **options)


UNDERSTOOD: dict[str, tuple[dict[str, Any], tuple[dict[str, str], ...]]] = {
    "texts": ({"prompt": "What is it?", "chosen": " a cat ", "rejected": "a dog"}, (USER,)),
    "messages": ({"prompt": [SYSTEM, USER], "chosen": [said("a cat")], "rejected": [said("a dog")]}, (SYSTEM, USER)),
    "a message": ({"prompt": "What is it?", "chosen": said("a cat"), "rejected": said("a dog")}, (USER,)),
    "whole conversations": ({"chosen": [USER, said("a cat")], "rejected": [USER, said("a dog")]}, (USER,)),
    "prompt and whole conversations": (
        {"prompt": "What is it?", "chosen": [SYSTEM, USER, said("a cat")], "rejected": [SYSTEM, USER, said("a dog")]},
        (SYSTEM, USER),
    ),
    "whole texts": (
        {"chosen": "Q: What? A: a cat", "rejected": "Q: What? A: a dog"},
        ({"role": "user", "content": "Q: What? A:"},),
    ),
    "whole texts of sentences": (
        {"chosen": "It mews. It is a cat", "rejected": "It mews. It is a dog"},
        ({"role": "user", "content": "It mews."},),
    ),
    "transcripts": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: What is it?\n\nAssistant: a cat",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: What is it?\n\nAssistant: a dog",
        },
        ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, USER),
    ),
    "transcripts line by line": (
        {
            "chosen": "Human: What is it?\nAssistant: a cat",
            "rejected": "Human: What is it?\nAssistant: a dog",
        },
        (USER,),
    ),
    "transcripts and their prompt": (
        {
            "prompt": "What is it?",
            "chosen": "\n\nHuman: What is it?\n\nAssistant: a cat",
            "rejected": "\n\nHuman: What is it?\n\nAssistant: a dog",
        },
        (USER,),
    ),
    "a transcript as the prompt": (
        {"prompt": "\n\nHuman: What is it?\n\nAssistant:", "chosen": " a cat", "rejected": " a dog"},
        (USER,),
    ),
    "a transcript as a repeated prompt": (
        {
            "prompt": "\n\nHuman: What is it?\n\nAssistant:",
            "chosen": "\n\nHuman: What is it?\n\nAssistant: a cat",
            "rejected": "\n\nHuman: What is it?\n\nAssistant: a dog",
        },
        (USER,),
    ),
    "a repeated prompt": (
        {"prompt": "What is it? ", "chosen": "What is it? a cat", "rejected": "What is it? a dog"},
        ({"role": "user", "content": "What is it? "},),
    ),
    "messages as JSON text": (
        {"prompt": json.dumps([USER]), "chosen": json.dumps([said("a cat")]), "rejected": json.dumps([said("a dog")])},
        (USER,),
    ),
    "llama-factory": (
        {
            "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "What is it?"}],
            "chosen": {"from": "gpt", "value": "a cat"},
            "rejected": {"from": "gpt", "value": "a dog"},
        },
        (SYSTEM, USER),
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_understood(name: str, tmp_path: Path) -> None:
    row, messages = UNDERSTOOD[name]
    expected = ("It is a cat", "It is a dog") if name == "whole texts of sentences" else ("a cat", "a dog")
    (found,) = pairs(tmp_path, row)
    assert found == Pair(messages, *expected, 1)


TEXT = {"prompt": "p", "chosen": "a", "rejected": "b"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "equal": ({**TEXT, "rejected": " a "}, "chosen and rejected are equal"),
    "empty": ({**TEXT, "rejected": " "}, "rejected is empty"),
    "empty message": ({**TEXT, "chosen": [said("")]}, "message 1 of chosen is empty"),
    "null": ({**TEXT, "chosen": None}, "chosen is missing"),
    "number": ({**TEXT, "chosen": 3}, "chosen is int '3'"),
    "empty prompt": ({**TEXT, "prompt": ""}, "prompt is empty"),
    "prompt of the assistant": ({**TEXT, "prompt": [USER, said("x")]}, "does not end in a user's turn"),
    "chosen by the user": ({**TEXT, "chosen": [USER]}, "chosen does not end in an assistant's turn"),
    "no common prefix": ({"chosen": "yes sir", "rejected": "no sir"}, "share no prefix"),
    "only a beginning": ({"chosen": "Yes sir. ", "rejected": "Yes sir. No"}, "chosen is empty after the common"),
    "parted in a sentence": ({"chosen": "It is a cat", "rejected": "It is a dog"}, "share no prefix that ends with"),
    "transcripts that part early": (
        {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: c\n\nAssistant: d"},
        "differ before their last",
    ),
    "calls": (
        {**TEXT, "chosen": {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}},
        "calls functions",
    ),
    "conversations that part early": (
        {"chosen": [USER, said("x")], "rejected": [{**USER, "content": "Hm?"}, said("y")]},
        "differ before their last message",
    ),
    "conversations without a prompt": ({"chosen": [said("x")], "rejected": [said("y")]}, "no common prefix"),
    "another prompt": (
        {"prompt": "Who?", "chosen": [USER, said("x")], "rejected": [USER, said("y")]},
        "prompt is not what the conversations",
    ),
    "unknown speaker": (
        {**TEXT, "chosen": {"from": "narrator", "value": "x"}},
        "message 1 of chosen is from 'narrator'",
    ),
    "margin text": ({**TEXT, "margin": "much"}, "margin is str 'much', expected a number"),
    "margin null": ({**TEXT, "margin": None}, "margin is missing, expected a number"),
    "margin truth": ({**TEXT, "margin": True}, "margin is bool"),
    "margin negative": ({**TEXT, "margin": -1}, "margin is -1, expected 0 or more"),
    "rewards exchanged": ({**TEXT, "reward_chosen": 1, "reward_rejected": 2}, "look exchanged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named_with_their_reason(name: str, tmp_path: Path) -> None:
    row, reason = BAD[name]
    good = {key: value for key, value in row.items() if key in ("margin", "reward_chosen", "reward_rejected")}
    good = {key: float(i == 1) for i, key in enumerate(sorted(good, reverse=True))}
    whole = {"chosen": "One. Two", "rejected": "One. Three"} if "prompt" not in row else TEXT
    with pytest.raises(DataError, match=r"1 bad row") as caught:
        pairs(tmp_path, {**whole, **good}, row)
    assert "line 2: " in str(caught.value) and reason in str(caught.value)
    assert len(pairs(tmp_path, {**whole, **good}, row, skip_bad=1)) == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, "rejected is missing; the columns are chosen, prompt"),
        ({"prompt": "p", "completion": "a"}, "chosen and rejected are missing"),
        ({**TEXT, "reward_chosen": 1.0}, "here stand reward_chosen"),
        ({**TEXT, "margin": 1, "reward_chosen": 1, "reward_rejected": 0}, "here stand margin, reward_chosen"),
    ],
)
def test_columns_that_make_no_pairs(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        pairs(tmp_path, row)


@pytest.mark.parametrize("columns", [("reward_rejected",), ("margin", "reward_chosen", "reward_rejected")])
def test_one_row_whose_margin_is_unclear(columns: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"line 3: how much better .* here stand {', '.join(columns)}"):
        pairs(tmp_path, TEXT, TEXT, {**TEXT, **dict.fromkeys(columns, 1)})


@pytest.mark.parametrize(
    ("columns", "margin"),
    [({}, None), ({"margin": 0}, 0.0), ({"margin": "1.5"}, 1.5), ({"reward_chosen": 3, "reward_rejected": 1.5}, 1.5)],
)
def test_margins(columns: dict[str, Any], margin: float | None, tmp_path: Path) -> None:
    assert pairs(tmp_path, {**TEXT, **columns})[0].margin == margin


def test_repeated_pairs_are_kept_and_said(tmp_path: Path) -> None:
    found = pairs(tmp_path, TEXT, {**TEXT, "chosen": "c"}, TEXT)
    assert len(found) == 3
    assert repeated(found) == ["1 pair repeats an earlier one word for word and counts again (line 3)."]
    assert repeated(found[:2]) == []


@given(
    prompt=st.text("abc. \n", min_size=1).filter(str.strip),
    border=st.sampled_from([". ", "! ", "?” ", "\n", " \n\n", "。"]),
    chosen=st.text("abc ", max_size=9),
    rejected=st.text("xyz ", max_size=9),
)
def test_whole_texts_are_cut_between_sentences(prompt: str, border: str, chosen: str, rejected: str) -> None:
    whole = (f"{prompt}{border}{chosen}", f"{prompt}{border}{rejected}")
    found = _split_texts({"chosen": whole[0], "rejected": whole[1]})
    assert not isinstance(found, str)
    messages, completions = found
    text = messages[0]["content"]
    assert text.rstrip(" \t\n”")[-1:] in ".!?。" or text.endswith("\n")
    for completion, expected in zip(completions, whole, strict=True):
        assert expected.startswith(text) and expected.endswith(completion)
        assert expected[len(text) : len(expected) - len(completion)].strip(" \t") == ""


def test_indentation_behind_a_common_beginning_is_content(tmp_path: Path) -> None:
    (found,) = pairs(tmp_path, {"chosen": "def f():\n    return 1", "rejected": "def f():\n    return 2"})
    assert found.messages[0]["content"] == "def f():\n"
    assert (found.chosen, found.rejected) == ("    return 1", "    return 2")


def notes_of(tmp_path: Path, *rows: dict[str, Any]) -> list[str]:
    notes: list[str] = []
    pairs(tmp_path, *rows, on_note=notes.append)
    return [note.removeprefix(f"{tmp_path}/pairs.jsonl: ") for note in notes]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("texts", []),
        ("transcripts", ["2 rows read as transcripts (Human: … Assistant: …)."]),
        ("a repeated prompt", ["2 rows whose chosen and rejected repeat the prompt, which is left out there."]),
        (
            "messages as JSON text",
            [f"{column}: lists of messages, read from JSON text." for column in ("prompt", "chosen", "rejected")],
        ),
    ],
)
def test_conventions_are_said(name: str, said: list[str], tmp_path: Path) -> None:
    row = UNDERSTOOD[name][0]
    assert notes_of(tmp_path, row, row) == said


def test_keys_and_columns_that_nothing_reads_are_said(tmp_path: Path) -> None:
    row = {**TEXT, "chosen": [{**said("a"), "odd": 1}], "source": "x"}
    assert notes_of(tmp_path, row) == ["chosen: not read: odd.", "not read: source."]


def test_an_answer_that_begins_like_its_prompt_by_chance_is_kept(tmp_path: Path) -> None:
    chance = {"prompt": "Hello", "chosen": "Hello you!", "rejected": "Hello."}
    found = pairs(tmp_path, chance, TEXT, {**TEXT, "chosen": "c"})
    assert (found[0].chosen, found[0].rejected) == ("Hello you!", "Hello.")


@pytest.mark.parametrize(("written", "kept"), [(" a", "a"), ("    a", "    a"), ("\ta ", "\ta"), ("\na", "\na")])
def test_white_space_before_a_completion_is_content_but_for_one_space(written: str, kept: str, tmp_path: Path) -> None:
    (found,) = pairs(tmp_path, {"prompt": "p", "chosen": written, "rejected": "b"})
    assert found.chosen == kept


def encoder(style: str = "chat", **limits: Any) -> Encoder:
    tokenizer = tiny_tokenizer()
    return Encoder(tokenizer, default_template(tokenizer, style=style), **{"context": 512, **limits}, cut="start")


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_both_completions_end_in_the_stop_token_and_share_the_prompt(style: str) -> None:
    made, pair = encoder(style), Pair((USER,), "a cat", "a dog or so", 7, 0.5)
    found = made.encode_pair(pair)
    assert found is not None
    assert (found.number, found.margin, found.dropped) == (7, 0.5, 0)
    assert found.prompt == made.prompt(pair.messages).ids
    assert found.chosen == made.candidates(pair.messages, ["a cat"])[1][0]
    assert found.rejected == made.candidates(pair.messages, ["a dog or so"])[1][0]
    assert found.chosen[-1] == found.rejected[-1] == made.template.stop[0]
    assert len(found) == len(found.prompt) + len(found.chosen) + len(found.rejected)


@given(length=st.integers(1, 200), chosen=st.integers(1, 60), rejected=st.integers(1, 60), limit=st.integers(60, 150))
def test_a_long_prompt_loses_its_start_and_nothing_else(length: int, chosen: int, rejected: int, limit: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    made = encoder(max_length=limit)
    pair = Pair(({"role": "user", "content": text},), "y" * chosen, "n" * rejected, 3)
    found, whole = made.encode_pair(pair), made.prompt(pair.messages).ids
    longest = max(chosen, rejected) + 1
    around = len(whole) - length
    if around + longest >= limit:
        assert found is None
        assert made.dropped_rows == [3]
        return
    assert found is not None
    assert len(found.prompt) == min(len(whole), limit - longest)
    assert (len(found.chosen), len(found.rejected)) == (chosen + 1, rejected + 1)
    kept = made.tokenizer.decode(found.prompt)
    cut = len(whole) - len(found.prompt)
    assert kept == made.tokenizer.decode(whole).replace(text, text[cut:])
    assert (found.dropped, made.truncated) == (cut, int(cut > 0))
    assert any("the start of the text" in note for note in made.notes()) == (cut > 0)
