"""What a row says, once its columns are understood: a prompt, and the completion to learn.

Conventional columns: ``prompt, completion``; ``messages``; ``prompt`` alone; or any columns with a pattern such as
``"{sentence} sentiment: {label}"`` whose last field is the completion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.data.reading import BadRow, Table, check_bad
from tunescope.errors import DataError

Message = dict[str, str]
_FIELD = re.compile(r"\{(\w+)\}")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        messages: what stands before the completion. One user message for a prompt given as text.
        completion: the text to learn, or None where there is only a prompt.
        number: line in the file, from 1, for messages about it.
    """

    messages: tuple[Message, ...]
    completion: str | None
    number: int

    @property
    def prompt(self) -> str:
        """The last message's text: what a person would call the input."""
        return self.messages[-1]["content"]


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


def to_rows(table: Table, pattern: str | None = None, *, skip_bad: int = 0, need_completion: bool = True) -> list[Row]:
    """Understand the columns of a table.

    Args:
        table: rows as read.
        pattern: how any columns make prompt and completion; the table's own default where None and it has one.
        skip_bad: how many rows that do not fit may be left out (they are counted in the caller's report).
        need_completion: False accepts rows with a prompt alone.

    Raises:
        DataError: columns that no convention fits, or rows that do not fit theirs, each with its line and reason.
    """
    convert = _converter(table, pattern or table.default_template, need_completion)
    rows, bad = [], []
    for fields, line in zip(table.rows, table.lines, strict=True):
        made = convert(fields, line)
        if isinstance(made, Row):
            rows.append(made)
        else:
            bad.append(BadRow(line, made))
    check_bad(table.path, bad, skip_bad)
    if not rows:
        raise DataError(f"{table.path}: no usable rows.")
    return rows


def _converter(table: Table, pattern: str | None, need_completion: bool) -> Any:
    columns = set(table.columns)
    if pattern is not None and not {"prompt", "messages"} & columns:
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
    for name in {*_FIELD.findall(head), *([target] if need else [])}:
        if not isinstance(fields.get(name), str | int | float):
            return f"{name} is {_describe(fields.get(name))}, expected text"
    text = _FIELD.sub(lambda match: str(fields[match.group(1)]), head)
    completion = str(fields[target]) if target in fields and fields[target] is not None else None
    if completion is not None and not completion.strip():
        return f"{target} is empty"
    return Row(({"role": "user", "content": text},), completion, line)


def _from_prompt(fields: Mapping[str, Any], line: int, need: bool) -> Row | str:
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        completion = completion[0].get("content")  # TRL's conversational form
    if need and not isinstance(completion, str):
        return f"completion is {_describe(completion)}, expected text"
    if isinstance(completion, str) and not completion.strip():
        return "completion is empty"
    if isinstance(prompt, str):
        if not prompt.strip():
            return "prompt is empty"
        return Row(({"role": "user", "content": prompt},), completion, line)
    checked = _messages(prompt)
    return checked if isinstance(checked, str) else Row(checked, completion, line)


def _from_messages(fields: Mapping[str, Any], line: int, need: bool) -> Row | str:
    checked = _messages(fields.get("messages"))
    if isinstance(checked, str):
        return checked
    if checked[-1]["role"] == "assistant":
        if len(checked) == 1:
            return "messages has nothing before the assistant's turn"
        if not checked[-1]["content"].strip():
            return "the assistant's last turn is empty"
        return Row(checked[:-1], checked[-1]["content"], line)
    return "messages does not end in an assistant's turn" if need else Row(checked, None, line)


def _messages(value: Any) -> tuple[Message, ...] | str:
    """The messages, checked, or why they are not usable."""
    if not isinstance(value, list) or not value:
        return f"messages is {_describe(value)}, expected a list of {{role, content}}"
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"message {i + 1} is not an object with text under content"
        if message.get("role") not in _ROLES:
            return f"message {i + 1} has role {message.get('role')!r}, expected one of {', '.join(_ROLES)}"
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _describe(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def label_set(rows: Sequence[Row], most: int = 50) -> tuple[str, ...] | None:
    """The labels, sorted, when the rows are a classification task: few distinct one-line completions, often repeated.

    None when they are free text. At most ``most`` labels of at most 60 characters, each needed for on average four rows
    or more: with fewer examples a label is as likely an answer that happened to recur.
    """
    completions = [row.completion for row in rows if row.completion is not None]
    labels = sorted(set(completions))
    short = all(len(label) <= 60 and "\n" not in label for label in labels)
    if not completions or not short or not 2 <= len(labels) <= min(most, max(2, len(completions) // 4)):
        return None
    return tuple(labels)
