"""Cutting a prompt that is too long: only its own text loses tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from tunescope.data.rows import Message
from tunescope.data.template import MARK

Cut = Literal["middle", "start"]
"""What a text loses: its middle (the first part says what it is about, the end asks the question), or its start."""


def shortened(
    messages: tuple[Message, ...],
    excess: Callable[[tuple[Message, ...]], int],
    tokenizer: Any,
    *,
    cut: Cut,
    marked: bool,
) -> tuple[Message, ...] | None:
    """The messages with a part of the last one's text left out; None if that cannot make them fit.

    Args:
        messages: of the prompt.
        excess: how many tokens too long messages are; zero or less where they fit.
        tokenizer: of the base.
        cut: what the text loses.
        marked: whether the text has marked positions of virtual tokens. Then the longest piece between two is cut.
    """
    content = messages[-1]["content"]
    pieces = MARK.split(content) if marked else [content]
    at = max(range(0, len(pieces), 2), key=lambda i: len(pieces[i]))
    ids = tokenizer(pieces[at], add_special_tokens=False)["input_ids"]

    def decoded(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    keep = len(ids) - excess(messages)
    while keep > 0:
        # Two thirds from the start, one third from the end: the question usually stands at the end.
        # The last token stays in any case: what stands between prompt and completion depends on it.
        last = max(keep // 3, 1) if cut == "middle" else keep
        first = keep - last
        # A character of several tokens may be cut through: its replacement character is dropped.
        begin = decoded(ids[:first]).rstrip("\ufffd")
        # Decoded as the rest of the whole text: by themselves the last tokens may lack the space before a word.
        end = decoded(ids)[len(decoded(ids[: len(ids) - last]).rstrip("\ufffd")) :]
        if not end:
            keep -= 1
            continue
        text = "".join([*pieces[:at], begin + end, *pieces[at + 1 :]])
        shorter = (*messages[:-1], {**messages[-1], "content": text})
        over = excess(shorter)
        if over <= 0:
            return shorter
        keep -= over  # decoding and encoding again can give a few tokens more
    return None
