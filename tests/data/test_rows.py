"""What rows say under each convention, and why a row that fits none is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunescope.data.reading import read
from tunescope.data.rows import Row, label_set, to_rows
from tunescope.errors import DataError


def rows_of(path: Path, *rows: Any, pattern: str | None = None, skip_bad: int = 0, need: bool = True) -> list[Row]:
    return noted(path, *rows, pattern=pattern, skip_bad=skip_bad, need=need)[0]


def noted(
    path: Path, *rows: Any, pattern: str | None = None, skip_bad: int = 0, need: bool = True
) -> tuple[list[Row], list[str]]:
    """The rows, and what is said of them without the file's name."""
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes: list[str] = []
    found = to_rows(read(file), pattern, skip_bad=skip_bad, need_completion=need, on_note=notes.append)
    return found, [note.removeprefix(f"{file}: ") for note in notes]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def called(arguments: Any, content: str | None = None) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


# Conventions


def test_prompt_and_completion(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"prompt": "2+2?", "completion": "4"}) == [Row((user("2+2?"),), "4", 1)]


def test_lines_are_counted_from_one_with_blank_ones(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "c", "completion": "d"}\n')
    assert [row.number for row in to_rows(read(file))] == [1, 3]


@pytest.mark.parametrize(
    ("written", "completion"),
    [
        (" yes", "yes"),  # GPT-style data writes it so; it is the same label as "yes" and becomes the same tokens
        ("yes\t ", "yes"),
        ("    return 1", "    return 1"),
        ("  yes", "  yes"),
        ("\tyes", "\tyes"),
        (" \tyes", " \tyes"),
        ("\nyes\n", "\nyes\n"),
    ],
)
def test_white_space_before_a_completion_is_content_but_for_one_space(
    written: str, completion: str, tmp_path: Path
) -> None:
    """Indentation is code; the last space of a pattern, or one before a label, only separates."""
    kinds: list[tuple[dict[str, Any], str | None]] = [
        ({"prompt": "def one():\n", "completion": written}, None),
        ({"prompt": "def one():\n", "completion": [assistant(written)]}, None),
        ({"messages": [user("def one():\n"), assistant(written)]}, None),
        ({"instruction": "def one():\n", "output": written}, None),
        ({"text": "def one():\n", "label": written}, "{text} {label}"),
    ]
    for row, pattern in kinds:
        (found,) = rows_of(tmp_path, row, pattern=pattern)
        assert found.completion == completion
        assert found.prompt.startswith("def one():\n")


def test_white_space_around_a_prompt_is_kept(tmp_path: Path) -> None:
    (found,) = rows_of(tmp_path, {"prompt": "    x =", "completion": "1"})
    assert found.prompt == "    x ="


def test_messages(tmp_path: Path) -> None:
    turns = [system("be brief"), user("hi"), assistant("ho"), user("more"), assistant("done")]
    (row,) = rows_of(tmp_path, {"messages": turns})
    assert row == Row(tuple(turns[:-1]), "done", 1)
    assert row.prompt == "more"


def test_an_empty_system_message_is_common_and_harmless(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"messages": [system(""), user("hi"), assistant("ho")]})
    assert row.messages == (system(""), user("hi"))


def test_keys_of_messages_that_nothing_reads_are_said(tmp_path: Path) -> None:
    odd = {**user("hi"), "train": True, "name": "Ann", "id": None}
    (row,), notes = noted(tmp_path, {"messages": [odd, {**assistant("ho"), "mood": "well"}], "source": "x"})
    assert row.messages == ({**user("hi"), "name": "Ann"},)
    assert notes == ["messages: not read: mood, train.", "not read: source."]


def test_turns_of_weight_0_are_shown_and_not_learned(tmp_path: Path) -> None:
    turns = [user("2+2?"), {**assistant("Five."), "weight": 0}, user("No. Again?"), {**assistant("Four."), "weight": 1}]
    (row,), notes = noted(tmp_path, {"messages": turns})
    assert row == Row((turns[0], turns[1], turns[2]), "Four.", 1)
    assert notes == []


def test_turns_after_the_last_that_is_learned_are_left_out_and_said(tmp_path: Path) -> None:
    turns = [user("a"), assistant("b"), user("c"), {**assistant("d"), "weight": 0}]
    found, notes = noted(tmp_path, {"messages": turns}, {"messages": turns[:2]}, {"messages": turns})
    assert found == [Row((user("a"),), "b", i) for i in (1, 2, 3)]
    assert notes == ["2 rows end in turns of weight 0, which are left out with what stands between them."]


@pytest.mark.parametrize("content", [None, "", "I look it up."])
@pytest.mark.parametrize("as_text", [True, False])
def test_tool_calls_and_tools(content: str | None, as_text: bool, tmp_path: Path) -> None:
    arguments = {"city": "Lima"}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    turn = called(json.dumps(arguments) if as_text else arguments, content)
    row = {"messages": [user("Weather?"), turn], "tools": json.dumps(tools) if as_text else tools}
    (found,), notes = noted(tmp_path, row)
    calls = ({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}},)
    assert found == Row((user("Weather?"),), content or "", 1, calls, tuple(tools))
    assert notes == []
    assert noted(tmp_path, {**row, "tools": []})[0] == [Row((user("Weather?"),), content or "", 1, calls)]


def test_an_answer_after_a_tools_result(tmp_path: Path) -> None:
    result = {"role": "tool", "content": "", "tool_call_id": "c1", "name": "weather"}
    (row,) = rows_of(tmp_path, {"messages": [user("Weather?"), called({}), result, assistant("Sun.")]})
    assert row.messages == (user("Weather?"), called({}, ""), result)
    assert (row.completion, row.tool_calls) == ("Sun.", ())


def test_contents_of_parts_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    (row,) = rows_of(tmp_path, {"messages": [{"role": "user", "content": parts}, assistant("yo")]})
    assert row == Row((user("hi"),), "yo", 1)


def test_a_developers_message_is_a_system_message(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path, {"messages": [{"role": "developer", "content": "s"}, user("hi"), assistant("yo")]})
    assert row.messages == (system("s"), user("hi"))


def test_messages_as_json_text(tmp_path: Path) -> None:
    (row,), notes = noted(tmp_path, {"messages": json.dumps([user("hi"), {**assistant("yo"), "odd": 1}])})
    assert row == Row((user("hi"),), "yo", 1)
    assert notes == ["messages: lists of messages, read from JSON text.", "messages: not read: odd."]


def test_prompts_and_completions_as_json_text(tmp_path: Path) -> None:
    (row,), notes = noted(tmp_path, {"prompt": json.dumps([user("hi")]), "completion": [{**assistant("yo"), "odd": 1}]})
    assert row == Row((user("hi"),), "yo", 1)
    assert notes == ["prompt: lists of messages, read from JSON text.", "completion: not read: odd."]


@pytest.mark.parametrize("text", ['[{"role": "user"', "[1, 2]", "[]", "hi", '[{"role": "user", "content": "\\ud800"}]'])
def test_text_that_is_no_list_of_messages(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"messages is str .* expected a list of \{role, content\}"):
        rows_of(tmp_path, {"messages": text})
    assert rows_of(tmp_path, {"prompt": text, "completion": "a"})[0].prompt == text


@pytest.mark.parametrize("column", ["conversations", "messages"])
@pytest.mark.parametrize("as_text", [True, False])
def test_sharegpt(column: str, as_text: bool, tmp_path: Path) -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Lima"}}'},
        {"from": "observation", "value": "sun"},
        {"from": "gpt", "value": "Sun.", "weight": 1},
    ]
    (row,), notes = noted(tmp_path, {column: json.dumps(turns) if as_text else turns})
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Lima"}}}
    assert row.messages == (
        system("Be brief."),
        user("Weather?"),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sun"},
    )
    assert row.completion == "Sun."
    assert notes[0] == "read as ShareGPT conversations."
    assert notes[1:] == ([f"{column}: lists of messages, read from JSON text."] if as_text else [])


def test_an_unknown_speaker_of_sharegpt(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="message 1 of conversations is from 'narrator', expected one of human, user"):
        rows_of(tmp_path, {"conversations": [{"from": "narrator", "value": "a"}, {"from": "gpt", "value": "b"}]})


def test_alpaca(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "text": "all"},
        {"instruction": "Name a tree.", "input": "", "output": "Oak", "text": "all"},
        {"instruction": "Name a fish.", "input": None, "output": "Cod", "text": "all"},
    ]
    found, notes = noted(tmp_path, *rows)
    assert [(row.prompt, row.completion) for row in found] == [
        ("Add.\n1 2", "3"),
        ("Name a tree.", "Oak"),
        ("Name a fish.", "Cod"),
    ]
    assert notes == [
        "read as Alpaca's rows: instruction, a line break and input make the prompt, output is learned.",
        "not read: text.",
    ]
    assert rows_of(tmp_path, {"instruction": "Add.", "input": "1 2"}, need=False)[0] == Row(
        (user("Add.\n1 2"),), None, 1
    )
    for row in (
        {"instruction": "", "output": "a"},
        {"instruction": "a", "output": ""},
        {"instruction": "a", "output": 1},
    ):
        with pytest.raises(DataError, match=r"line 1: (instruction|output) is"):
            rows_of(tmp_path, row)


def test_rows_that_are_left_out_are_counted(tmp_path: Path) -> None:
    bad = {"prompt": "a", "completion": ""}
    assert noted(tmp_path, GOOD["prompt"], bad, skip_bad=1)[1] == ["left out 1 bad row, as --skip-bad allows."]


@pytest.mark.parametrize("completion", ["4", [{"role": "assistant", "content": "4"}]])
@pytest.mark.parametrize("prompt", ["2+2?", [{"role": "user", "content": "2+2?"}]])
def test_trl_conversational_forms(prompt: Any, completion: Any, tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"prompt": prompt, "completion": completion}) == [Row((user("2+2?"),), "4", 1)]


def test_prompt_alone(tmp_path: Path) -> None:
    assert rows_of(tmp_path, {"prompt": "a"}, need=False) == [Row((user("a"),), None, 1)]
    assert rows_of(tmp_path, {"messages": [user("a")]}, need=False) == [Row((user("a"),), None, 1)]
    with pytest.raises(DataError, match="expected prompt and completion, messages, conv"):
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
    for unlabelled in (None, "", " "):
        row = {"text": "a", "label": unlabelled}
        assert rows_of(tmp_path, row, pattern="{text} {label}", need=False)[0].completion is None


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
    with pytest.raises(
        DataError, match=r"(?s)the columns are label, text; expected prompt and completion, messages.*--template"
    ):
        rows_of(tmp_path, {"text": "a", "label": "b"})


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
    "message with a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, assistant("a")]},
        "message 1 of messages has a part of type 'image_url' in its content; only text is read",
    ),
    "message of other parts": (
        {"messages": [{"role": "user", "content": ["a"]}, assistant("a")]},
        "message 1 of messages is not an object with text under content",
    ),
    "weight": (
        {"messages": [user("a"), {**assistant("b"), "weight": 0.5}]},
        "message 2 of messages has weight 0.5, expected 0 or 1",
    ),
    "weight of truth": (
        {"messages": [user("a"), {**assistant("b"), "weight": True}]},
        "message 2 of messages has weight True, expected 0 or 1",
    ),
    "nothing to learn": (
        {"messages": [user("a"), {**assistant("b"), "weight": 0}]},
        "messages has no turn to learn: those of the assistant have weight 0",
    ),
    "arguments that are no JSON": (
        {"messages": [user("a"), called("{city")]},
        "message 2 of messages calls weather with arguments that are not valid JSON",
    ),
    "arguments that are no object": (
        {"messages": [user("a"), called("[1]")]},
        "message 2 of messages calls weather with arguments that are no object",
    ),
    "arguments that are no text": (
        {"messages": [user("a"), called('{"a": "\\ud800"}')]},
        "message 2 of messages calls weather with arguments that are not valid JSON",
    ),
    "call without a name": (
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [{"id": "c1"}]}]},
        "message 2 of messages has a tool call without function.name",
    ),
    "call by the user": (
        {"messages": [{**called("{}"), "role": "user", "content": "a"}, assistant("b")]},
        "message 1 of messages is by the user and has tool_calls, which only the assistant's turns can have",
    ),
    "call without a list": (
        {"messages": [user("a"), {"role": "assistant", "content": "b", "tool_calls": "c"}]},
        "message 2 of messages has tool_calls str 'c', expected a list",
    ),
    "tools": (
        {"messages": [user("a"), assistant("b")], "tools": ["weather"]},
        "tools is list \"['weather']\", expected a list of objects that describe functions",
    ),
    "tools that are no JSON": (
        {"messages": [user("a"), assistant("b")], "tools": "[{"},
        "tools is not valid JSON: Expecting property name enclosed in double quotes at column 3",
    ),
    "result without a question": (
        {"messages": [{"role": "tool", "content": "a"}, user("b"), assistant("c")]},
        "message 1 of messages is by the tool, with no user's turn before it",
    ),
    "role": (
        {"messages": [{"role": "human", "content": "a"}, assistant("b")]},
        "message 1 of messages has role 'human', expected one of system, user, assistant, tool",
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


def test_answers_that_call_functions_are_no_labels() -> None:
    rows = labelled(*["", "Sun."] * 8)
    calling = Row(rows[0].messages, "", 1, ({"type": "function", "function": {"name": "f", "arguments": {}}},))
    assert label_set([calling, *rows[1:]]) is None


def test_most_labels_and_longest_label() -> None:
    assert len(label_set(labelled(*[f"{i}" for i in range(50)] * 4)) or ()) == 50
    assert label_set(labelled(*["x" * 60, "b"] * 10)) == ("b", "x" * 60)
