"""Chat templates of tokenizers: the one place where a conversation becomes text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunescope.errors import DataError


def render_chat(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    *,
    generation_prompt: bool,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """A conversation as the text that the tokenizer's chat template makes of it.

    Args:
        tokenizer: of the base; it has a chat template.
        messages: ``role`` and ``content``, and what else the template reads (``tool_calls``, ``name``).
        generation_prompt: whether the beginning of the assistant's next turn follows.
        tools: descriptions of functions that the assistant may call, as JSON schemas.

    Raises:
        DataError: the template refuses these messages or is broken.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation_prompt, tools=list(tools) or None
        )
    except Exception as error:  # jinja's raise_exception and its syntax errors
        raise DataError(f"The base's chat template refuses these messages: {error}") from error
