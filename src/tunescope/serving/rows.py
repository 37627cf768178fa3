"""What a client sends, in the template that an entry was trained under: the pattern that made prompts of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunescope import bank
from tunescope.data.messages import Message, messages_of, unread_keys
from tunescope.data.patterns import Pattern
from tunescope.errors import DataError
from tunescope.inference.prediction import prompt_of_columns
from tunescope.serving.errors import ApiError


def prompt_of(row: str | dict[str, Any], record: bank.Record | None, param: str = "input") -> str | Sequence[Message]:
    """The prompt of a row: columns, or a text where the pattern has one column to fill, or there is none.

    Raises:
        ApiError: columns that are missing, or that a text cannot fill.
    """
    pattern = None if record is None else record.template.pattern
    if isinstance(row, str):
        columns = Pattern.parse(pattern).fields if pattern else ()
        if len(columns) > 1:
            raise ApiError(
                400,
                f"The entry's template has the columns {', '.join(columns)}: send an object of them (row).",
                param=param,
            )
        if not columns:
            return row
        row = {columns[0]: row}
    try:
        return prompt_of_columns(row, pattern)
    except DataError as error:
        raise ApiError(400, str(error), param=param) from error


def checked(given: Any) -> Sequence[Message]:
    """A conversation as a client sends it.

    Raises:
        ApiError: it is none, or has fields that nothing would read.
    """
    messages = messages_of(given, "messages")
    if isinstance(messages, str):
        raise ApiError(400, f"{messages}.", param="messages")
    if unread := unread_keys([given]):
        raise ApiError(400, f"messages have {', '.join(unread)}, which nothing reads: leave it out.", param="messages")
    return messages


def asked_of(messages: Sequence[Message], record: bank.Record | None) -> str | Sequence[Message]:
    """A conversation as the entry was trained on it: through its pattern, which takes a single text, or as it is.

    Raises:
        ApiError: a longer conversation, where the entry was trained on rows.
    """
    if record is None or record.template.pattern is None:
        return messages
    if len(messages) > 1:
        raise ApiError(
            400, f"The entry was trained on rows ({record.template.pattern!r}) and not on conversations: send one "
            "user's message, or row.", param="messages",
        )  # fmt: skip
    return prompt_of(messages[0]["content"], record, "messages")
