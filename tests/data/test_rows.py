"""What rows say under each convention, and why a row that fits none is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunescope.data.reading import read
from tunescope.data.rows import Row, label_set, pattern_fields, to_rows
from tunescope.errors import DataError


def rows_of(path: Path, *rows: Any, pattern: str | None = None, skip_bad: int = 0, need: bool = True) -> list[Row]:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return to_rows(read(file), pattern, skip_bad=skip_bad, need_completion=need)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


# Conventions


def test_prompt_and_completion(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"prompt": "2+2?", "completion": "4"}) == [Row((user("2+2?"),), "4", 1)]


def test_lines_are_counted_from_one_with_blank_ones(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "c", "completion": "d"}\n')
    assert [row.number for row in to_rows(read(file))] == [1, 3]


def test_spaces_around_a_completion_are_not_part_of_it(tmp_path: Path) -> None:
    """GPT-style data writes " yes"; it is the same label as "yes" and becomes the same tokens."""
    rows = rows_of(tmp_path, {"prompt": "a", "completion": " yes"}, {"prompt": "b", "completion": "yes\t "})
    assert [row.completion for row in rows] == ["yes", "yes"]


def test_messages(tmp_path: Path) -> None:
    turns = [system("be brief"), user("hi"), assistant("ho"), user("more"), assistant("done")]
    (row,) = rows_of(tmp_path, {"messages": turns})
    assert row == Row(tuple(turns[:-1]), "done", 1)
    assert row.prompt == "more"


def test_messages_keep_role_and_content_alone(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"messages": [{**user("hi"), "weight": 1}, assistant("ho")]})
    assert row.messages == (user("hi"),)


def test_an_empty_system_message_is_common_and_harmless(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"messages": [system(""), user("hi"), assistant("ho")]})
    assert row.messages == (system(""), user("hi"))


@pytest.mark.parametrize("completion", ["4", [{"role": "assistant", "content": "4"}]])
@pytest.mark.parametrize("prompt", ["2+2?", [{"role": "user", "content": "2+2?"}]])
def test_trl_conversational_forms(prompt: Any, completion: Any, tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"prompt": prompt, "completion": completion}) == [Row((user("2+2?"),), "4", 1)]


def test_prompt_alone(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"prompt": "a"}, need=False) == [Row((user("a"),), None, 1)]
    assert rows_of(tmp_path, {"messages": [user("a")]}, need=False) == [Row((user("a"),), None, 1)]
    with pytest.raises(DataError, match="expected prompt and completion, or messages"):
        rows_of(tmp_path, {"prompt": "a"})


@pytest.mark.parametrize("completion", [5, ["x"], {"a": 1}])
def test_prompt_alone_does_not_hide_a_broken_completion(completion: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: "):
        rows_of(tmp_path, {"prompt": "a", "completion": completion}, need=False)


def test_pattern(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, {"text": "sun", "n": 3, "label": "warm"}, pattern="{n}: {text} ({text})\nlabel: {label}")
    assert rows == [Row((user("3: sun (sun)\nlabel: "),), "warm", 1)]


def test_pattern_takes_numbers_and_no_completion(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"text": "a", "label": 1}, pattern="{text} {label}")[0].completion == "1"
    assert rows_of(tmp_path, {"text": "a"}, pattern="{text} {label}", need=False)[0].completion is None
    assert rows_of(tmp_path, {"text": "a", "label": None}, pattern="{text} {label}", need=False)[0].completion is None


def test_pattern_fills_no_field_from_a_value(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"text": "{label} {other}", "label": "x"}, pattern="{text} -> {label}")
    assert row.prompt == "{label} {other} -> "


@pytest.mark.parametrize("extra", ["prompt", "messages", "completion"])
def test_a_given_pattern_comes_before_conventional_columns(extra: str, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"text": "t", "label": "x", extra: "p"}, pattern="{text} -> {label}")
    assert (row.prompt, row.completion) == ("t -> ", "x")
    (row,) = rows_of(tmp_path, {"prompt": "p", "label": "x"}, pattern="{prompt} -> {label}")
    assert (row.prompt, row.completion) == ("p -> ", "x")


def test_pattern_of_columns_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the template names txt, but the columns are label, text"):
        rows_of(tmp_path, {"text": "a", "label": "b"}, pattern="{txt} {label}")


def test_columns_that_no_convention_fits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)the columns are label, text; expected prompt and completion.*--template"):
        rows_of(tmp_path, {"text": "a", "label": "b"})


def test_pattern_fields() -> None:
    assert pattern_fields("{a} and {b}: {c} ") == (["a", "b"], "c")


@pytest.mark.parametrize("pattern", ["", "no field", "{label}", "{text} {label}.", "{} {label}", "{text} {la bel}"])
def test_patterns_that_cannot_be(pattern: str) -> None:
    with pytest.raises(DataError, match=r"must name at least one input field and end in the field to learn"):
        pattern_fields(pattern)


# Bad rows

BAD = {
    "missing completion": ({"prompt": "a", "completion": None}, "completion is missing, expected text"),
    "number": ({"prompt": "a", "completion": 5}, "completion is int '5', expected text"),
    "empty completion": ({"prompt": "a", "completion": " \n"}, "completion is empty"),
    "empty prompt": ({"prompt": " ", "completion": "b"}, "prompt is empty"),
    "missing prompt": (
        {"prompt": None, "completion": "b"},
        "prompt is missing, expected text, or a list of {role, content}",
    ),
    "prompt by the assistant": (
        {"prompt": [assistant("a")], "completion": "b"},
        "prompt does not end in a user's turn",
    ),
    "completion by the user": (
        {"prompt": "a", "completion": [user("b")]},
        "completion is a list, but not of one message by the assistant",
    ),
    "completion of two": (
        {"prompt": "a", "completion": [assistant("b"), assistant("c")]},
        "completion is a list, but not of one message by the assistant",
    ),
    "completion of texts": (
        {"prompt": "a", "completion": ["b"]},
        "message 1 of completion is not an object with text under content",
    ),
    "messages as text": ({"messages": "hi"}, "messages is str 'hi', expected a list of {role, content}"),
    "no messages": ({"messages": []}, "messages is list '[]', expected a list of {role, content}"),
    "message without content": (
        {"messages": [{"role": "user"}, assistant("a")]},
        "message 1 of messages is not an object with text under content",
    ),
    "message of parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, assistant("a")]},
        "message 1 of messages is not an object with text under content",
    ),
    "role": (
        {"messages": [{"role": "human", "content": "a"}, assistant("b")]},
        "message 1 of messages has role 'human', expected one of system, user, assistant",
    ),
    "ends with the user": ({"messages": [user("a")]}, "messages does not end in an assistant's turn"),
    "begins with the assistant": (
        {"messages": [assistant("a"), user("b"), assistant("c")]},
        "message 1 of messages is by the assistant, with no user's turn before it",
    ),
    "system and assistant": (
        {"messages": [system("a"), assistant("b")]},
        "message 2 of messages is by the assistant, with no user's turn before it",
    ),
    "twice the assistant": (
        {"messages": [user("a"), assistant("b"), assistant("c")]},
        "messages has no user's turn right before the last one",
    ),
    "late system": (
        {"messages": [user("a"), system("b"), user("c"), assistant("d")]},
        "message 2 of messages has role 'system', which can only stand first",
    ),
    "empty turn": ({"messages": [user("a"), assistant(" ")]}, "message 2 of messages is empty"),
}
GOOD = {
    "prompt": {"prompt": "x", "completion": "y"},
    "messages": {"messages": [user("x"), assistant("y")]},
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_line_and_reason(case: str, tmp_path: Path) -> None:
    row, reason = BAD[case]
    good = GOOD["messages" if "messages" in row else "prompt"]
    with pytest.raises(DataError) as raised:
        rows_of(tmp_path, good, row, good)
    assert str(raised.value) == (
        f"{tmp_path}/rows.jsonl: 1 bad row.\n  line 2: {reason}\n"
        "Mend the data, or leave such rows out with --skip-bad 1."
    )
    assert [found.number for found in rows_of(tmp_path, good, row, good, skip_bad=1)] == [1, 3]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": None, "label": "a"}, "text is missing, expected text"),
        ({"text": ["a"], "label": "a"}, "text is list"),
        ({"text": "a", "label": {"b": 1}}, "label is dict"),
        ({"text": "a", "label": ""}, "label is empty"),
        ({"text": " ", "label": "a"}, "text is empty"),
    ],
)
def test_bad_rows_of_a_pattern(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"line 1: {reason}"):
        rows_of(tmp_path, row, {"text": "a", "label": "b"}, pattern="{text}: {label}")


def test_one_of_several_inputs_may_be_empty(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"a": "", "b": "x", "label": "y"}, pattern="{a}{b} {label}")[0].prompt == "x "
    with pytest.raises(DataError, match="a and b are empty"):
        rows_of(tmp_path, {"a": "", "b": " ", "label": "y"}, pattern="{a}{b} {label}")


def test_all_bad_rows_at_once(tmp_path: Path) -> None:
    bad = [{"prompt": f"{i}", "completion": ""} for i in range(25)]
    with pytest.raises(DataError) as raised:
        rows_of(tmp_path, *bad, GOOD["prompt"], skip_bad=24)
    message = str(raised.value)
    assert "25 bad rows" in message and "line 20:" in message and "line 21:" not in message
    assert "and 5 more" in message and "--skip-bad 25" in message
    assert len(rows_of(tmp_path, *bad, GOOD["prompt"], skip_bad=25)) == 1


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable rows"):
        rows_of(tmp_path, {"prompt": "a", "completion": ""}, skip_bad=1)


# Labels


def labelled(*completions: str | None) -> list[Row]:
    return [Row((user("a"),), completion, i) for i, completion in enumerate(completions)]


def test_labels() -> None:
    assert label_set(labelled(*["b", "a"] * 4)) == ("a", "b")
    assert label_set(labelled(*["b", "a"] * 4, None)) == ("a", "b")


@pytest.mark.parametrize(
    "completions",
    [
        [],
        [None, None],
        ["a"] * 20,  # one answer is no choice
        ["a", "b"],  # two rows that differ are two texts
        ["a", "b", "a", "b", "a", "b", "c"],  # fewer than four rows a label
        ["x" * 61, "b"] * 10,
        ["two\nlines", "b"] * 10,
        [f"{i}" for i in range(51)] * 10,
    ],
)
def test_texts_are_no_labels(completions: list[str | None]) -> None:
    assert label_set(labelled(*completions)) is None


def test_most_labels_and_longest_label() -> None:
    assert len(label_set(labelled(*[f"{i}" for i in range(50)] * 4)) or ()) == 50
    assert label_set(labelled(*["x" * 60, "b"] * 10)) == ("b", "x" * 60)
