"""Free generation by one customization."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunescope.data.encoding import PromptTokens
from tunescope.data.rows import Message
from tunescope.errors import DataError
from tunescope.inference.engine import Engine
from tunescope.inference.requests import Generated, Request
from tunescope.inference.sampling import Sampling
from tunescope.methods import Customized

_NAME = "customization"


def engine_for(customized: Customized) -> Engine:
    """An engine that serves one customization, under the name that ``generate_ids`` asks for."""
    engine = Engine(customized.base)
    engine.load(_NAME, customized)
    return engine


def generate(
    customized: Customized,
    prompts: Sequence[str | Sequence[Message]],
    sampling: Sampling | None = None,
    *,
    on_row: Callable[[int], None] = lambda count: None,
) -> list[Generated]:
    """Answer prompts under the customization's template.

    Args:
        customized: what to run.
        prompts: texts, or lists of chat messages.
        sampling: greedy with at most 128 tokens by default.
        on_row: told of each answer.

    Raises:
        DataError: a prompt that cannot be answered, by its number.
    """
    requests = [Request(prompt, _NAME, sampling or Sampling()) for prompt in prompts]
    return _all_or_error(engine_for(customized).generate(requests, on_done=lambda _index, _answer: on_row(1)))


def generate_ids(
    customized: Customized,
    prompts: Sequence[list[int] | PromptTokens],
    sampling: Sampling,
    *,
    on_row: Callable[[int], None] = lambda count: None,
) -> list[Generated]:
    """Answer prompts given as token ids; see ``generate``."""
    engine = engine_for(customized)
    return _all_or_error(engine.generate_ids(prompts, _NAME, sampling, on_done=lambda _index, _answer: on_row(1)))


def _all_or_error(answers: list[Generated]) -> list[Generated]:
    for number, answer in enumerate(answers, start=1):
        if answer.error is not None:
            raise DataError(f"Prompt {number}: {answer.error}")
    return answers
