"""What a row says, once its columns are understood: a prompt, and the completion to learn.

Conventional columns: ``prompt, completion``; ``messages``; ``prompt`` alone; or any columns with a pattern such as
``"{sentence} sentiment: {label}"`` whose last field is the completion.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.data.reading import BadRow, Table, check_bad
from tunescope.errors import DataError

# ``role`` and ``content``; where they stand in the row also ``tool_calls``, ``tool_call_id``, ``name``, and ``weight``
# (0 on an assistant's turn: shown, but not learned).
Message = dict[str, Any]
# At the ends of a prompt or completion: no part of what is said, and what stands between the two is the template's.
IGNORED_SPACE = " \t"
_FIELD = re.compile(r"\{(\w+)\}")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        messages: what stands before the completion; the last one is the user's. One for a prompt given as text.
        completion: the text to learn, without spaces around it, or None where there is only a prompt.
        number: line in the file, from 1, for messages about it.
        tool_calls: functions that the answer calls, as the chat template's ``tool_calls``; the completion is then the
            text beside them, and may be empty.
        tools: descriptions of the functions that may be called, as JSON schemas.
    """

    messages: tuple[Message, ...]
    completion: str | None
    number: int
    tool_calls: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> str:
        """The last message's text: what a person would call the input."""
        return self.messages[-1]["content"]

    @property
    def content(self) -> list[Any]:
        """What the row says, wherever it stands."""
        functions = [self.tool_calls, self.tools] if self.tool_calls or self.tools else []
        return [self.messages, self.completion, *functions]


def completion_content(text: str) -> str:
    """What a completion says: without spaces and tabs at its end, and without the one space before it that stands for
    the gap between prompt and completion. Other white space at its beginning is content, as code's indentation is.
    """
    text = text.rstrip(IGNORED_SPACE)
    return text[1:] if text[:1] == " " and text[1:2] not in (" ", "\t", "\n", "\r") else text


def pattern_fields(pattern: str) -> tuple[list[str], str]:
    """The input fields of a pattern and its completion field, the last one.

    Raises:
        DataError: fewer than two fields, or text after the completion field.
    """
    fields = _FIELD.findall(pattern)
    if len(fields) < 2 or not pattern.rstrip().endswith("{" + fields[-1] + "}"):
        raise DataError(
            f"Template {pattern!r} must name at least one input field and end in the field to learn, as in "
            '"{sentence} sentiment: {label}".'
        )
    return fields[:-1], fields[-1]


def columns_of_rows(table: Table) -> set[str]:
    """The columns that ``to_rows`` reads without a pattern."""
    return {"messages"} if "messages" in table.columns else {"prompt", "completion"}


def answer_columns(pattern: str | None) -> tuple[str, ...]:
    """The columns that hold the completion: rows without completions may lack them."""
    return ("completion",) if pattern is None else (pattern_fields(pattern)[1],)


def to_rows(
    table: Table,
    pattern: str | None = None,
    *,
    skip_bad: int = 0,
    need_completion: bool = True,
    on_bad: Callable[[BadRow], None] = lambda bad: None,
) -> list[Row]:
    """Understand the columns of a table.

    Args:
        table: rows as read.
        pattern: how any columns make prompt and completion, whatever their names; the table's own default where None
            and it has one.
        skip_bad: how many rows that do not fit may be left out (they are counted in the caller's report).
        need_completion: False accepts rows with a prompt alone: the completion's column is missing, or empty.
        on_bad: callback for each row that does not fit.

    Raises:
        DataError: columns that no convention fits, or rows that do not fit theirs, each with its line and reason.
    """
    convert = _converter(table, table.default_template if pattern is None else pattern, need_completion)
    rows, bad = [], []
    for fields, line in zip(table.rows, table.lines, strict=True):
        made = convert(fields, line)
        if isinstance(made, Row):
            rows.append(made)
        else:
            bad.append(BadRow(line, made))
            on_bad(bad[-1])
    check_bad(table.path, bad, skip_bad)
    if not rows:
        raise DataError(f"{table.path}: no usable rows.")
    return rows


def _converter(table: Table, pattern: str | None, need_completion: bool) -> Any:
    columns = set(table.columns)
    if pattern is not None:
        inputs, target = pattern_fields(pattern)
        needed = {*inputs, target} if need_completion else set(inputs)
        if missing := sorted(needed - columns):
            raise DataError(
                f"{table.path}: the template names {', '.join(missing)}, but the columns are "
                f"{', '.join(sorted(columns))}."
            )
        head = pattern[: pattern.rindex("{" + target + "}")]
        return lambda fields, line: _from_pattern(fields, line, head, target, need_completion)
    if "messages" in columns:
        return lambda fields, line: _from_messages(fields, line, need_completion)
    if "prompt" in columns and ("completion" in columns or not need_completion):
        return lambda fields, line: _from_prompt(fields, line, need_completion)
    wanted = "prompt and completion, or messages" if need_completion else "prompt, or messages"
    raise DataError(
        f"{table.path}: the columns are {', '.join(sorted(columns))}; expected {wanted}. Other columns need a "
        'template, for example --template "{text} topic: {label}".'
    )


def _from_pattern(fields: Mapping[str, Any], line: int, head: str, target: str, need: bool) -> Row | str:
    inputs = dict.fromkeys(_FIELD.findall(head))
    asked = target in fields and (need or not _is_unlabelled(fields[target]))
    for name in [*inputs, *([target] if asked else [])]:
        if not _is_scalar(fields[name]):
            return f"{name} is {describe(fields[name])}, expected text"
    if not any(str(fields[name]).strip() for name in inputs):
        return f"{' and '.join(inputs)} {'is' if len(inputs) == 1 else 'are'} empty"
    if asked and not str(fields[target]).strip():
        return f"{target} is empty"
    text = _FIELD.sub(lambda match: str(fields[match.group(1)]), head)
    return _row(({"role": "user", "content": text},), str(fields[target]) if asked else None, line)


def _from_prompt(fields: Mapping[str, Any], line: int, need: bool) -> Row | str:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if not need and _is_unlabelled(completion):
        completion = None
    if isinstance(completion, list):  # TRL's conversational form
        turns = messages_of(completion, "completion")
        if isinstance(turns, str):
            return turns
        if len(turns) > 1 or turns[0]["role"] != "assistant":
            return "completion is a list, but not of one message by the assistant"
        completion = turns[0]["content"]
    if not isinstance(completion, str) and (need or completion is not None):
        return f"completion is {describe(completion)}, expected text"
    if isinstance(completion, str) and not completion.strip():
        return "completion is empty"
    if isinstance(prompt, str):
        if not prompt.strip():
            return "prompt is empty"
        return _row(({"role": "user", "content": prompt},), completion, line)
    turns = messages_of(prompt, "prompt", "text, or a list")
    if isinstance(turns, str):
        return turns
    if turns[-1]["role"] != "user":
        return "prompt does not end in a user's turn"
    return _row(turns, completion, line)


def _from_messages(fields: Mapping[str, Any], line: int, need: bool) -> Row | str:
    turns = messages_of(fields.get("messages"), "messages")
    if isinstance(turns, str):
        return turns
    if turns[-1]["role"] == "user":
        return "messages does not end in an assistant's turn" if need else _row(turns, None, line)
    if len(turns) < 2 or turns[-2]["role"] != "user":
        return "messages has no user's turn right before the last one"
    return _row(turns[:-1], turns[-1]["content"], line)


def _row(messages: tuple[Message, ...], completion: str | None, line: int) -> Row:
    return Row(messages, completion if completion is None else completion_content(completion), line)


def messages_of(value: Any, column: str, expected: str = "a list") -> tuple[Message, ...] | str:
    """The messages of a column's value, checked, or why they are not usable."""
    if not isinstance(value, list) or not value:
        return f"{column} is {describe(value)}, expected {expected} of {{role, content}}"
    begun = False
    for i, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"message {i} of {column} is not an object with text under content"
        role = message.get("role")
        if role not in _ROLES:
            return f"message {i} of {column} has role {role!r}, expected one of {', '.join(_ROLES)}"
        if role != "system" and not message["content"].strip():
            return f"message {i} of {column} is empty"
        if begun and role == "system":
            return f"message {i} of {column} has role 'system', which can only stand first"
        if not begun and role == "assistant" and column == "messages":
            return f"message {i} of {column} is by the assistant, with no user's turn before it"
        begun = begun or role != "system"
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _is_unlabelled(value: Any) -> bool:
    """Whether a cell says nothing: null, NaN as pandas writes it, or no text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def describe(value: Any) -> str:
    """A value in a few words, for the reason why a row is bad."""
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def label_set(rows: Sequence[Row], most: int = 50) -> tuple[str, ...] | None:
    """The labels, sorted, when the rows are a classification task: few distinct one-line completions, often repeated.

    None when they are free text. At most ``most`` labels of at most 60 characters, each needed for on average four rows
    or more: with fewer examples a label is as likely an answer that happened to recur.
    """
    completions = [row.completion for row in rows if row.completion is not None]
    labels = sorted(set(completions))
    short = all(len(label) <= 60 and "\n" not in label for label in labels)
    if not short or not 2 <= len(labels) <= min(most, len(completions) // 4):
        return None
    return tuple(labels)
