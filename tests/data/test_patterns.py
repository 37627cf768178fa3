"""Patterns: every brace pair is a column, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.patterns import Pattern
from tunescope.data.reading import Table
from tunescope.data.rows import to_rows
from tunescope.errors import DataError

names = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
texts = st.text(st.characters(exclude_categories=["Cs"]))


def test_fields() -> None:
    found = Pattern.parse("{a} and {b}, {a}: {c} ")
    assert (found.fields, found.target) == (("a", "b"), "c")


@given(columns=st.lists(names, min_size=2, max_size=4, unique=True), said=st.lists(texts, min_size=4, max_size=4))
def test_any_column_name_and_any_text(columns: list[str], said: list[str]) -> None:
    *fields, target = columns
    between = [text.replace("{", "{{").replace("}", "}}") for text in said]
    written = "".join(text + "{" + name + "}" for text, name in zip(between, columns, strict=False))
    found = Pattern.parse(written)
    assert (found.fields, found.target) == (tuple(fields), target)
    values = {name: f"<{i}>" for i, name in enumerate(fields)}
    expected = "".join(text + values.get(name, "") for text, name in zip(said, columns, strict=False))
    assert found.render(values) == expected


@pytest.mark.parametrize(
    "name", ["Message Body", "message-body", "message.body", "Текст", "0", "a:b", " label", "a\nb"]
)
def test_columns_as_spreadsheets_have_them(name: str) -> None:
    row = {"Subject": "parcel", name: "it never came", "Category": "complaint"}
    table = Table([row], [2], "t", "t.csv", "", tuple(row))
    (found,) = to_rows(table, "{Subject}: {" + name + "} category: {Category}")
    assert (found.prompt, found.completion) == ("parcel: it never came category: ", "complaint")


def test_braces_that_are_text() -> None:
    found = Pattern.parse('{{"text": "{text}"}} {{label}}: {label}')
    assert found.fields == ("text",)
    assert found.render({"text": "{other} }}"}) == '{"text": "{other} }}"} {label}: '


@pytest.mark.parametrize(
    "pattern", ["", "no field", "{label}", "{text} {label}.", "{} {label}", "{text} {label}}}", "{ } {label}"]
)
def test_patterns_that_cannot_be(pattern: str) -> None:
    with pytest.raises(DataError, match=r"must name at least one input field and end in the field to learn"):
        Pattern.parse(pattern)


@pytest.mark.parametrize(
    ("pattern", "at"), [("{text {label}", 1), ("{text}} {label}", 7), ("{text} {label", 8), ("} {text} {label}", 1)]
)
def test_a_brace_without_its_partner(pattern: str, at: int) -> None:
    with pytest.raises(DataError, match=rf"without its partner \(character {at}\).*\{{\{{ and \}}\}} for braces"):
        Pattern.parse(pattern)


@pytest.mark.parametrize("asked", ["Message body", "MessageBody", "message_body"])
def test_a_column_that_is_not_there_is_answered_with_the_nearest(asked: str) -> None:
    with pytest.raises(DataError, match=rf"names {asked}, but the columns are .* Did you mean \{{Message Body\}}\?"):
        Pattern.parse("{" + asked + "} {Category}").check(["Subject", "Message Body", "Category"], target=True)


def test_the_column_to_learn_may_be_missing_from_new_rows() -> None:
    found = Pattern.parse("{text}: {label}")
    found.check(["text"], target=False)
    with pytest.raises(DataError, match="names label"):
        found.check(["text"], target=True)
