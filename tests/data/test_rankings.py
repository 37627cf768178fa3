"""Ranked responses: which columns are understood, which rows are refused, and what becomes of them as tokens."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny_tokenizer

from tunescope.data.encoding import EncodedRanking, Encoder
from tunescope.data.pairs import Pair
from tunescope.data.rankings import Ranking, is_preferences, repeated, to_preferences, to_rankings, untied
from tunescope.data.reading import Table, read, table_of
from tunescope.data.template import default_template
from tunescope.errors import DataError

USER = {"role": "user", "content": "What is it?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TEXT: dict[str, Any] = {"prompt": "What is it?", "responses": ["a dog", "a cat", "no idea"], "ranks": [2, 1, 3]}
FOUND = Ranking((USER,), ("a cat", "a dog", "no idea"), (1, 2, 3), 1)


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def table(tmp_path: Path, *rows: dict[str, Any], **options: Any) -> Table:
    path = tmp_path / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read(path, **options)


UNDERSTOOD: dict[str, tuple[dict[str, Any], Ranking]] = {
    "texts": (TEXT, FOUND),
    "spaces": ({**TEXT, "responses": [" a dog ", "a cat ", " no idea"]}, FOUND),
    "messages": ({**TEXT, "prompt": [USER], "responses": [[said("a dog")], said("a cat"), "no idea"]}, FOUND),
    "a system text": ({**TEXT, "prompt": [SYSTEM, USER]}, Ranking((SYSTEM, USER), FOUND.responses, (1, 2, 3), 1)),
    "whole conversations": (
        {"responses": [[USER, said(text)] for text in TEXT["responses"]], "ranks": [2, 1, 3]},
        FOUND,
    ),
    "whole texts": (
        {"responses": [f"Q: What? A: {text}" for text in TEXT["responses"]], "ranks": [2, 1, 3]},
        Ranking(({"role": "user", "content": "Q: What? A:"},), FOUND.responses, (1, 2, 3), 1),
    ),
    "a repeated prompt": ({**TEXT, "responses": [f"What is it? {text}" for text in TEXT["responses"]]}, FOUND),
    "transcripts": (
        {**TEXT, "responses": [f"Human: What is it?\n\nAssistant: {text}" for text in TEXT["responses"]]},
        FOUND,
    ),
    "ties by competition": (
        {**TEXT, "ranks": [1, 1, 3]},
        Ranking((USER,), ("a dog", "a cat", "no idea"), (1, 1, 2), 1),
    ),
    "ties by mean place": (
        {**TEXT, "ranks": [1.5, 3, 1.5]},
        Ranking((USER,), ("a dog", "no idea", "a cat"), (1, 1, 2), 1),
    ),
    "numbers as text": ({**TEXT, "ranks": ["2", "1.0", "3"]}, FOUND),
    "lists as text": ({**TEXT, "responses": json.dumps(TEXT["responses"]), "ranks": "[2, 1, 3]"}, FOUND),
    "two": ({**TEXT, "responses": ["b", "a"], "ranks": [2, 1]}, Ranking((USER,), ("a", "b"), (1, 2), 1)),
    "equal texts that are tied": (
        {**TEXT, "responses": ["a", "b", "a"], "ranks": [1, 2, 1]},
        Ranking((USER,), ("a", "a", "b"), (1, 1, 2), 1),
    ),
}


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_understood(name: str, tmp_path: Path) -> None:
    row, expected = UNDERSTOOD[name]
    notes: list[str] = []
    made = table(tmp_path, row)
    assert is_preferences(made)
    assert to_preferences(made, on_note=notes.append) == [expected]
    conventions = {"a repeated prompt": "1 row whose responses repeat the prompt", "transcripts": "read as transcripts"}
    assert [conventions[name] in note for note in notes] == ([True] if name in conventions else [])


def test_a_csv_file_holds_lists_as_json(tmp_path: Path) -> None:
    path = tmp_path / "ranked.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(TEXT)
        writer.writerows([["What is it?", json.dumps(TEXT["responses"]), "[2, 1, 3]"]] * 2)
    assert [row.content for row in to_rankings(read(path))] == [FOUND.content] * 2


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"responses": "a dog"}, "responses is str 'a dog', expected a list of texts"),
    "null": ({"responses": None}, "responses is missing, expected a list of texts"),
    "one response": ({"responses": ["a"], "ranks": [1]}, "responses has 1 text, expected 2 or more"),
    "none": ({"responses": [], "ranks": []}, "responses has 0 texts, expected 2 or more"),
    "a number": ({"responses": ["a", 3, "c"]}, "response 2 is int '3', expected text"),
    "an empty one": ({"responses": ["a", "b", " "]}, "response 3 is empty"),
    "fewer ranks": ({"ranks": [1, 2]}, "ranks has 2 numbers for 3 responses"),
    "one rank": ({"ranks": [1]}, "ranks has 1 number for 3 responses"),
    "ranks no list": ({"ranks": 1}, "ranks is int '1', expected a list of numbers"),
    "no number": ({"ranks": [1, "best", 3]}, "rank 2 is str 'best', expected a number"),
    "true": ({"ranks": [1, True, 3]}, "rank 2 is bool 'True', expected a number"),
    "null rank": ({"ranks": [1, None, 3]}, "rank 2 is missing, expected a number"),
    "zero": ({"ranks": [0, 1, 2]}, "rank 1 is 0, expected 1 (the best) or more"),
    "scores": ({"ranks": [0.9, 0.1, 0.3]}, "rank 1 is 0.9, expected 1 (the best) or more"),
    "all tied": ({"ranks": [1, 1, 1]}, "all ranks are equal, so none of the responses is better than another"),
    "equal texts": ({"responses": ["a", "b", " a"]}, "responses 1 and 3 are equal, but their ranks are not"),
    "empty prompt": ({"prompt": ""}, "prompt is empty"),
    "prompt of the assistant": ({"prompt": [USER, said("x")]}, "prompt does not end in a user's turn"),
    "conversations that part early": (
        {"responses": [[USER, said("x")], [SYSTEM, USER, said("y")], [USER, said("z")]]},
        "responses are conversations that differ before their last message",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(name: str, tmp_path: Path) -> None:
    changes, reason = BAD[name]
    made = table(tmp_path, TEXT, {**TEXT, **changes})
    with pytest.raises(DataError, match="1 bad row") as caught:
        to_rankings(made)
    assert f"line 2: {reason}" in str(caught.value)
    assert to_rankings(made, skip_bad=1) == [FOUND]


def test_columns_that_are_neither(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"chosen and rejected are missing.*ranked responses have prompt, responses, ranks"
    ):
        to_preferences(table(tmp_path, {"prompt": "p", "responses": ["a", "b"]}))
    both = table(tmp_path, {**TEXT, "chosen": "a", "rejected": "b"})
    notes: list[str] = []
    assert isinstance(to_preferences(both, on_note=notes.append)[0], Pair)
    assert ["not read: ranks, responses" in note for note in notes] == [True]


def test_scores_that_look_like_ranks_are_said(tmp_path: Path) -> None:
    notes: list[str] = []
    made = table(tmp_path, TEXT, {**TEXT, "ranks": [5, 2, 4]}, {**TEXT, "ranks": [2, 2, 2.5]})
    assert [row.ranks for row in to_rankings(made, on_note=notes.append)] == [(1, 2, 3), (1, 2, 3), (1, 1, 2)]
    (note,) = notes
    assert "2 rows have no rank of 1 (the first on line 2); the lowest rank is taken for the best" in note


def test_repeated_rows_are_said() -> None:
    found = to_rankings(table_of([TEXT, {**TEXT, "prompt": "b"}, {**TEXT, "ranks": [4, 1, 9]}]))
    assert repeated(found) == ["1 row repeats an earlier one word for word and counts again (line 3)."]


@pytest.mark.parametrize(("ranks", "reason"), [((1, 2, 3), "3 ranks for 2 responses"), ((2, 2), "of different rank")])
def test_a_ranking_made_in_memory_is_checked(ranks: tuple[int, ...], reason: str) -> None:
    with pytest.raises(DataError, match=f"Ranking 7 has .*{reason}"):
        Ranking((USER,), ("a", "b"), ranks, 7)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_untied(ranks: list[int]) -> None:
    found = untied(ranks)
    assert len(set(found)) == len(found)
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            assert ((i, j) in found) == (ranks[i] < ranks[j])


@pytest.mark.parametrize("style", ["chat", "plain"])
def test_as_tokens_a_ranking_of_two_is_a_pair_and_the_longest_response_sets_the_cut(style: str) -> None:
    tokenizer = tiny_tokenizer()
    encoder = Encoder(tokenizer, default_template(tokenizer, style=style), 512, 60, "start")
    prompt = ({"role": "user", "content": "".join(chr(97 + i % 26) for i in range(60))},)
    (pair,) = encoder.encode_pairs([Pair(prompt, "yes", "no, " * 5, 4)])
    (two,) = encoder.encode_pairs([Ranking(prompt, ("yes", "no, " * 5), (1, 2), 4)])
    (more,) = encoder.encode_pairs([Ranking(prompt, ("yes", "no, " * 5, "hm"), (1, 3, 2), 4)])
    assert isinstance(two, EncodedRanking) and isinstance(more, EncodedRanking)
    for name in ("prompt", "completions", "ranks", "dropped", "number", "margin", "reference"):
        assert getattr(pair, name) == getattr(two, name), name
    assert len(pair) == len(two) and pair.dropped > 0
    assert (more.prompt, more.completions[:2], more.ranks) == (two.prompt, two.completions, (1, 3, 2))
    assert {ids[-1] for ids in more.completions} == {encoder.template.stop[0]}
    assert len(more) == len(more.prompt) + sum(map(len, more.completions))
    assert encoder.encode_pairs([Ranking(prompt, ("yes", "n" * 99, "hm"), (1, 2, 3), 9)]) == []
    assert encoder.dropped_rows == [9]
