"""``generate --batch``: any mix of a bank's entries, an answer a row, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.conftest import Ended, Place, jsonl

Cli = Callable[..., Ended]


def lines(ended: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.out.splitlines()]


def test_a_batch_of_any_mix_answers_in_order(place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    rows = [
        {"prompt": "one", "customization": "lora", "max_new_tokens": 9},
        {"prompt": "two"},
        {"messages": [{"role": "user", "content": "three"}], "customization": "zero-shot", "max_new_tokens": 1},
        {"prompt": "four", "customization": "lora", "choices": ["warm", "wet"]},
        {"prompt": "five", "temperature": 1.0, "n": 2, "seed": 4, "logprobs": True},
    ]
    path = jsonl(Path("rows.jsonl"), rows)
    ended = cli("generate", "--bank", place.bank, "--batch", path, "--max-new-tokens", 4, "--json")
    assert ended.code == 0, ended.err
    *answers, totals = lines(ended)
    assert [answer["customization"] for answer in answers] == ["lora", None, "zero-shot", "lora", None]
    assert answers[3]["text"] in ("warm", "wet") and answers[3].keys() >= {"choice_logprobs"}
    assert len(answers[4]["samples"]) == 2 and len(answers[4]["logprobs"]) == answers[4]["tokens"]
    assert (totals["rows"], totals["failed"]) == (5, 0) and totals["tokens_per_s"] > 0
    alone = cli("generate", place.bank / "lora", "one", "--max-new-tokens", 9, "--json").json
    assert answers[0]["text"] == alone["text"]
    people = cli("generate", "--bank", place.bank, "--batch", path, "--max-new-tokens", 4)
    assert people.out.startswith("[1] ") and "tokens" in people.err


def test_a_bad_row_fails_alone(place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    rows = [
        {"prompt": "good", "max_new_tokens": 2},
        {"prompt": "x", "customization": "lorra"},
        {"prompt": "x", "customization": "full"},
        {"prompt": "x", "temprature": 1},
        {"prompt": "x", "top_p": 0.5},
        {"prompt": ""},
        {"text": "x"},
        {"prompt": 3},
        {"messages": []},
        [1],
        {"prompt": "last", "max_new_tokens": 2},
    ]
    path = jsonl(Path("rows.jsonl"), rows)
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    ended = cli("generate", "--bank", place.bank, "--batch", path, "--json")
    assert ended.code == 2
    assert "rows.jsonl: 10 of 12 rows could not be answered; each says why." in ended.err
    *answers, totals = lines(ended)
    said = [str(answer.get("error", "")) for answer in answers]
    assert said[0] == said[10] == "" and totals["failed"] == 10
    for number, words in {
        1: "Did you mean lora",
        2: "has weights of its own",
        3: "'temprature'",
        4: "top_p has no meaning at temperature 0",
        5: "empty",
        6: "needs prompt",
        7: "prompt is int, expected text",
        8: "messages is list",
        9: "expected an object",
        11: "not valid JSON",
    }.items():
        assert words in said[number], (number, said[number])


def test_what_does_not_go_together(place: Place, trained: dict[str, Ended], cli: Cli) -> None:
    rows = jsonl(Path("rows.jsonl"), [{"prompt": "x", "customization": "lora"}])
    empty = jsonl(Path("empty.jsonl"), [])
    for arguments, words in (
        (["hi", "--batch", rows, "--base", place.base], "not both"),
        (["hi", "--bank", place.bank], "--bank goes with --batch"),
        (["--base", place.base], "Give at least one prompt"),
        (["--batch", rows], "Name a base with --base"),
        (["--batch", empty, "--base", place.base], "has no rows"),
        (["--batch", "rows.txt", "--base", place.base], "expected a .jsonl file"),
        (["--batch", "none.jsonl", "--base", place.base], "cannot be read"),
        (["--batch", rows, "--bank", "nothing", "--base", place.base], "has no entries"),
        (["hi", "--base", place.base, "--choice", "a", "--choice", "a"], "must be texts that all differ"),
        (["hi", "--base", place.base, "--stop", ""], "empty text"),
    ):
        ended = cli("generate", *arguments)
        assert ended.code == 2 and words in ended.err, (arguments, ended.err)
    ended = cli("generate", "--batch", rows, "--base", place.base, "--json")
    assert ended.code == 2 and "no bank was given" in str(lines(ended)[0]["error"])
