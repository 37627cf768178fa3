"""Chat templates of tokenizers: the one place where a conversation becomes text.

A template is a program that came with a base. It runs in a sandbox within bounds (``tunescope.data.sandbox``), and the
first time in a process of its own, so that one that never ends stops nothing but itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunescope import bounded
from tunescope.errors import DataError

_ended: set[str] = set()  # templates that came to an end once
# Names of an assistant's reasoning; a template reads the first, and an older one the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


def render_chat(
    tokenizer: Any,
    messages: Sequence[dict[str, Any]],
    *,
    generation_prompt: bool,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """A conversation as the text that the tokenizer's chat template makes of it.

    It is what ``tokenizer.apply_chat_template(..., tokenize=False)`` gives.

    Args:
        tokenizer: of the base; it has a chat template.
        messages: ``role`` and ``content``, and what else the template reads (``tool_calls``, ``name``).
        generation_prompt: whether the header of the assistant's next turn follows.
        tools: descriptions of functions that the assistant may call, as JSON schemas.

    Raises:
        DataError: the template refuses these messages, is broken, or never ends.
    """
    from tunescope.data import sandbox

    variables = {
        **{name: _plain(token) for name, token in tokenizer.special_tokens_map.items()},
        "messages": [_as_read(message) for message in messages],
        "tools": list(tools) or None,
        "documents": None,
        "add_generation_prompt": generation_prompt,
    }
    try:
        template = tokenizer.get_chat_template(None, variables["tools"])
        if template not in _ended:
            if too_much := bounded.call(sandbox.excess, template, variables):
                raise bounded.TooMuch(f"does too much: {too_much}")
            _ended.add(template)
        return sandbox.render(template, variables)
    except bounded.TooMuch as error:
        raise DataError(
            f"The base's chat template {error}, so it is not used. Take --style plain, or the base from another source."
        ) from error
    except Exception as error:  # jinja's raise_exception, its syntax errors, and what else a template leads it to
        raise DataError(f"The base's chat template refuses these messages: {error}") from error


def _as_read(message: dict[str, Any]) -> dict[str, Any]:
    """A message as transformers hands it to templates: no key without a value, reasoning under both of its names."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING if name in given), None)
    return given if reasoning is None else {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _plain(token: Any) -> Any:
    return [str(each) for each in token] if isinstance(token, list | tuple) else str(token)
