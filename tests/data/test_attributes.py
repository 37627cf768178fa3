"""Attributes: how rows get them, the line that asks for them, and that it is never learned."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import tiny_tokenizer

from tunescope.data.attributes import Attribute, Columns, Steering, check_names, parse_steer
from tunescope.data.encoding import Encoder
from tunescope.data.reading import table_of
from tunescope.data.rows import Row, to_rows
from tunescope.data.template import Template, default_template
from tunescope.errors import DataError, TunescopeError

NAMES = ("quality", "verbosity")


def template(style: str = "chat", place: Any = "answer", **defaults: int) -> Template:
    attributes = tuple(Attribute(name=name, default=defaults.get(name)) for name in NAMES)
    steering = Steering(attributes=attributes, place=place)
    return default_template(tiny_tokenizer(), style=style).model_copy(update={"steering": steering})


def encoded(made: Template, attributes: dict[str, float] | None = None, **more: Any) -> tuple[str, str]:
    """Prompt and completion of a row, as texts."""
    row = Row(({"role": "user", "content": "hi"},), "fine", 1, **more)
    tokenizer = tiny_tokenizer()
    found = Encoder(tokenizer, made, 512).encode(row if attributes is None else row.with_attributes(attributes))
    assert found is not None
    return tokenizer.decode(found.prompt), tokenizer.decode(found.completion)


def test_the_line_is_that_of_nemo_aligner() -> None:
    """As its guide of SteerLM shows it: one line, names and values by colons, attributes by commas, no spaces."""
    names = [
        "quality",
        "toxicity",
        "humor",
        "creativity",
        "helpfulness",
        "correctness",
        "coherence",
        "complexity",
        "verbosity",
    ]
    steering = Steering(attributes=tuple(Attribute(name=name) for name in names))
    values = dict(zip(names, (4, 0, 0, 0, 4, 4, 4, 4, 4), strict=True))
    assert steering.line({"attributes": values}) == (
        "quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,verbosity:4"
    )


@pytest.mark.parametrize("place", ["answer", "system"])
@pytest.mark.parametrize("style", ["chat", "plain"])
def test_the_line_stands_in_the_prompt_and_is_not_learned(style: str, place: str) -> None:
    prompt, completion = encoded(template(style, place), {"verbosity": 1, "quality": 4})
    assert prompt.count("quality:4,verbosity:1\n") == 1 or "quality:4,verbosity:1<|im_end|>" in prompt
    assert (
        prompt.index("quality") > prompt.index("hi")
        if place == "answer"
        else prompt.index("quality") < prompt.index("hi")
    )
    assert completion.strip().startswith("fine") and "quality" not in completion


def test_values_that_are_missing_are_left_out_and_defaults_fill_in_where_nothing_is_known() -> None:
    made = template(quality=3)
    assert encoded(made, {"verbosity": 2})[0].endswith("verbosity:2\n")
    assert encoded(made)[0].endswith("quality:3\n")
    assert encoded(template())[0].endswith("assistant\n")  # no defaults, no line
    assert encoded(default_template(tiny_tokenizer()), {"verbosity": 2})[0].endswith("assistant\n")


def test_a_row_is_cut_alike_with_and_without_the_line() -> None:
    long = Row(({"role": "user", "content": "x" * 300},), "fine", 1)
    for made in (template(), default_template(tiny_tokenizer())):
        found = Encoder(tiny_tokenizer(), made, 512, max_length=100).encode(long.with_attributes({"quality": 4}))
        assert found is not None
        assert tiny_tokenizer().decode(found.prompt).count("x") == 100 - len("fine") - 1 - len(
            tiny_tokenizer()("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        )


def test_columns_objects_and_other_ranges() -> None:
    rows = [
        {"prompt": "a", "response": "b", "quality": 4, "attributes": {"verbosity": 1}, "other": 1},
        {"prompt": "a", "response": "b", "quality": "2", "attributes": {}},
        {"prompt": "a", "response": "b", "quality": None, "attributes": {"verbosity": 0.0}},
    ]
    notes: list[str] = []
    found = to_rows(table_of(rows), attributes=Columns(NAMES), on_note=notes.append)
    assert [row.attributes for row in found] == [{"quality": 4, "verbosity": 1}, {"quality": 2}, {"verbosity": 0}]
    assert "other" in " ".join(notes) and "quality" not in " ".join(notes)
    scaled = to_rows(table_of(rows), attributes=Columns(("quality",), scale_from=(0, 8)), skip_bad=1)
    assert [row.attributes for row in scaled] == [{"quality": 2}, {"quality": 1}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "quality is 7, out of the range 0 to 4"),
        ("good", "quality is str 'good', expected a number"),
        (True, "bool"),
    ],
)
def test_values_that_are_none_are_named(value: Any, message: str) -> None:
    rows = [{"prompt": "a", "completion": "b", "quality": value}]
    with pytest.raises(DataError, match=message):
        to_rows(table_of(rows), attributes=Columns(("quality",)))


def test_what_cannot_be_an_attribute_is_refused() -> None:
    with pytest.raises(DataError, match=r"no values for tone.*The columns are"):
        to_rows(table_of([{"prompt": "a", "completion": "b"}]), attributes=Columns(("tone",)))
    for names in (("a:b",), ("a,b",), ("",), ("a ",), ("a", "a")):
        with pytest.raises(DataError):
            check_names(names)
        with pytest.raises(TunescopeError):
            Steering(attributes=tuple(Attribute(name=name) for name in names))


def test_what_is_asked_for_is_checked() -> None:
    steering = template(quality=3).steering
    assert steering is not None
    assert steering.asked({"verbosity": 0}) == {"quality": 3, "verbosity": 0}
    for values, message in (
        ({"tone": 1}, "Unknown attribute"),
        ({"quality": 5}, "0 to 4"),
        ({"quality": 1.5}, "whole"),
    ):
        with pytest.raises(DataError, match=message):
            steering.asked(values)
    assert parse_steer("quality=4, verbosity=-1") == {"quality": 4, "verbosity": -1}
    for text in ("", "quality", "quality=", "=4", "quality=4.5", "quality=4,quality=3"):
        with pytest.raises(DataError, match="write quality=4"):
            parse_steer(text)


@given(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4), min_size=1), st.sampled_from(["chat", "plain"]))
def test_training_and_service_see_the_same_prompt(values: dict[str, int], style: str) -> None:
    made = template(style)
    encoder = Encoder(tiny_tokenizer(), made, 512)
    row = Row(({"role": "user", "content": "hi"},), "fine", 1).with_attributes(values)
    trained = encoder.encode(row)
    assert trained is not None and made.steering is not None
    assert encoder.prompt(made.steering.steered([{"role": "user", "content": "hi"}], values)).ids == trained.prompt
