"""Conversations of any shape are read or refused in words, and never raise."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tunescope.data.messages import messages_of, tools_of, unread_keys

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool", "odd"]) | values
speakers = st.sampled_from(["human", "gpt", "system", "function_call", "observation", "odd"]) | values
calls = st.lists(
    st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": texts}, optional={"arguments": values})})
    | values,
    max_size=2,
)
parts = st.lists(st.fixed_dictionaries({"type": st.just("text") | values}, optional={"text": values}), max_size=2)
messages = st.fixed_dictionaries(
    {"role": roles, "content": texts | parts | values},
    optional={"weight": values, "tool_calls": calls | values, "tool_call_id": values, "name": values, "odd": values},
)
turns = st.fixed_dictionaries({"from": speakers, "value": texts | values}, optional={"weight": values})
conversations = st.lists(messages | turns | values, max_size=4) | values


@given(value=conversations, as_text=st.booleans(), whole=st.booleans())
def test_what_is_read_is_whole(value: Any, as_text: bool, whole: bool) -> None:
    found = messages_of(json.dumps(value) if as_text else value, "messages", whole=whole)
    unread_keys([value])
    if isinstance(found, str):
        assert found.startswith(("message", "messages is "))
        return
    assert len(found) == len(value)
    for message in found:
        assert message["role"] in ("system", "user", "assistant", "tool")
        assert isinstance(message["content"], str)
        assert message.keys() <= {"role", "content", "weight", "tool_calls", "tool_call_id", "name"}
        assert message.get("weight", 0) == 0
        assert all(isinstance(call["function"]["arguments"], dict) for call in message.get("tool_calls", ()))
    assert messages_of(list(found), "messages", whole=whole) == found


@given(value=st.lists(values, max_size=2) | values, as_text=st.booleans())
def test_tools_are_objects(value: Any, as_text: bool) -> None:
    found = tools_of(json.dumps(value) if as_text else value)
    assert found.startswith("tools is ") if isinstance(found, str) else all(isinstance(tool, dict) for tool in found)
