"""Conversations as data sets write them: OpenAI's messages (roles, tool calls, weights, parts of text) and ShareGPT's
turns (``from``, ``value``), also as JSON text. All become the same checked messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunescope.data.json_rows import strict_json

# ``role`` and ``content``; where they stand in the row also ``tool_calls``, ``tool_call_id``, ``name``, and ``weight``
# (0 on an assistant's turn: shown, but not learned).
Message = dict[str, Any]
_ROLES = ("system", "user", "assistant", "tool")
_READ = frozenset(("role", "content", "weight", "tool_calls", "tool_call_id", "name"))
_READ_TURN = frozenset(("from", "value", "weight"))
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "function_response": "tool",
    "function": "tool",
    "observation": "tool",
    "tool": "tool",
}


def messages_of(value: Any, column: str, expected: str = "a list", *, whole: bool = True) -> tuple[Message, ...] | str:
    """The messages of a column's value, checked, or why they are not usable.

    Args:
        value: a list of messages or of ShareGPT's turns, or such a list as JSON text.
        column: for the reason.
        expected: what else the column may hold, for the reason.
        whole: whether this is a whole conversation, which begins with the user's turn or a system message.
    """
    value = from_json(value)
    if not isinstance(value, list) or not value:
        return f"{column} is {describe(value)}, expected {expected} of {{role, content}}"
    turns: list[Message] = []
    begun = False
    for i, given in enumerate(value, start=1):
        made = _message(given)
        if isinstance(made, str):
            return f"message {i} of {column} {made}"
        role = made["role"]
        if begun and role == "system":
            return f"message {i} of {column} has role 'system', which can only stand first"
        if not begun and role in ("assistant", "tool") and whole:
            return f"message {i} of {column} is by the {role}, with no user's turn before it"
        begun = begun or role != "system"
        turns.append(made)
    return tuple(turns)


def from_json(value: Any) -> Any:
    """A list of objects that is written as JSON text, read; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = strict_json(value)
    except ValueError:
        return value
    talk = isinstance(found, list) and found and all(isinstance(turn, dict) and is_turn(turn) for turn in found)
    return found if talk else value


def is_turn(value: Mapping[str, Any]) -> bool:
    """Whether an object is a message or a ShareGPT turn."""
    return "role" in value or ("from" in value and "value" in value)


def tools_of(value: Any) -> tuple[dict[str, Any], ...] | str:
    """Descriptions of functions, from a list of objects or its JSON text, or why they are not usable."""
    if isinstance(value, str) and value.strip():
        try:
            value = strict_json(value)
        except ValueError as error:
            return f"tools {error}"
    if value is None or value == "":
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        return f"tools is {describe(value)}, expected a list of objects that describe functions"
    return tuple(value)


def unread_keys(values: Iterable[Any]) -> list[str]:
    """Keys of the messages in a column's ``values`` that nothing reads, sorted; without those that only hold null."""
    found: set[str] = set()
    for value in map(from_json, values):
        for message in value if isinstance(value, list) else [value]:
            if isinstance(message, dict):
                read = _READ_TURN if _is_sharegpt(message) else _READ
                found |= {str(key) for key, held in message.items() if key not in read and held is not None}
    return sorted(found)


def describe(value: Any) -> str:
    """A value in a few words, for the reason why a row is bad."""
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _is_sharegpt(message: Mapping[str, Any]) -> bool:
    return "from" in message and "role" not in message


def _message(given: Any) -> Message | str:
    """One message, or what is wrong with it."""
    if isinstance(given, dict) and _is_sharegpt(given):
        given = _from_sharegpt(given)
        if isinstance(given, str):
            return given
    if not isinstance(given, dict):
        return "is not an object with text under content"
    role = "system" if given.get("role") == "developer" else given.get("role")
    calls = _tool_calls(given.get("tool_calls"))
    if isinstance(calls, str):
        return calls
    content = _text(given.get("content"), calls)
    if content is None:
        return "is not an object with text under content"
    if role not in _ROLES:
        return f"has role {role!r}, expected one of {', '.join(_ROLES)}"
    if isinstance(content, list):
        return f"has a part of type {content[0]!r} in its content; only text is read"
    if calls and role != "assistant":
        return f"is by the {role} and has tool_calls, which only the assistant's turns can have"
    if role in ("user", "assistant") and not content.strip() and not calls:
        return "is empty"
    made = {"role": role, "content": content} | ({"tool_calls": list(calls)} if calls else {})
    for key in ("tool_call_id", "name"):
        if given.get(key) is not None:
            if not isinstance(given[key], str):
                return f"has {key} {given[key]!r}, expected text"
            made[key] = given[key]
    weight = given.get("weight")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        return f"has weight {weight!r}, expected 0 or 1"
    return made | ({"weight": 0} if weight == 0 and role == "assistant" else {})


def _from_sharegpt(turn: Mapping[str, Any]) -> Message | str:
    speaker, content = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        return f"is from {speaker!r}, expected one of {', '.join(_SPEAKERS)}"
    made = {"role": _SPEAKERS[speaker], "content": content, "weight": turn.get("weight")}
    if speaker != "function_call":
        return made
    try:
        calls = strict_json(content) if isinstance(content, str) else content
    except ValueError:
        return "is a function_call whose value is not valid JSON"
    calls = calls if isinstance(calls, list) else [calls]
    return made | {"content": "", "tool_calls": [{"type": "function", "function": call} for call in calls]}


def _text(content: Any, calls: tuple[Any, ...]) -> str | list[str] | None:
    """A content as text; the types of the parts that are none, or None where it is neither text nor parts."""
    if isinstance(content, str):
        return content
    if content is None:
        return "" if calls else None
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return None
    if others := [str(part["type"]) for part in content if part["type"] != "text"]:
        return others
    texts = [part.get("text") for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _tool_calls(value: Any) -> tuple[dict[str, Any], ...] | str:
    """Tool calls with their arguments as objects, or what is wrong with them."""
    if value is None:
        return ()
    if not isinstance(value, list):
        return f"has tool_calls {describe(value)}, expected a list"
    calls = []
    for call in value:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return "has a tool call without function.name"
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = strict_json(arguments)
            except ValueError:
                return f"calls {function['name']} with arguments that are not valid JSON"
        arguments = {} if arguments is None else arguments
        if not isinstance(arguments, dict):
            return f"calls {function['name']} with arguments that are no object"
        calls.append({"type": "function", **call, "function": {"name": function["name"], "arguments": arguments}})
    return tuple(calls)
