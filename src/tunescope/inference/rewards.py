"""What heads give at the ends of texts: rewards, and attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tunescope.data.encoding import Encoder
from tunescope.data.rows import Message, Row
from tunescope.errors import DataError
from tunescope.inference.scoring import Item, head_scores
from tunescope.methods import Customized
from tunescope.objectives.reward_model import HEAD


def reward_scores(
    customized: Customized,
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[str],
    *,
    max_length: int | None = None,
) -> list[float]:
    """How good a reward model finds completions. Those of one prompt are computed behind it, and it once.

    Args:
        customized: trained with the objective ``Reward``.
        prompts: a text or messages for each completion.
        completions: in any order; rewards come in the same one.
        max_length: most tokens of prompt and completion, as in training; longer prompts lose their start.

    Raises:
        DataError: no reward model, or a text of which nothing of the prompt would be left.
    """
    found = rewards_that_fit(customized, prompts, completions, max_length=max_length)
    fitting = [reward for reward in found if reward is not None]
    if len(fitting) < len(found):
        raise DataError(
            f"Text {found.index(None) + 1} of those to score does not fit: its completion leaves no room for the "
            "prompt. Shorten it or raise --max-length."
        )
    return fitting


def rewards_that_fit(
    customized: Customized,
    prompts: Sequence[str | Sequence[Message]],
    completions: Sequence[str],
    *,
    max_length: int | None = None,
) -> list[float | None]:
    """``reward_scores``, in which a text that does not fit has None.

    Raises:
        DataError: no reward model.
    """
    if HEAD not in customized.customization.heads:
        raise DataError("This customization gives no rewards: train one with --objective reward.")
    rows = [
        Row(({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt), completion, number)
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start=1)
    ]
    return [None if found is None else found[0] for found in outputs_that_fit(customized, rows, HEAD, max_length)]


def outputs_that_fit(
    customized: Customized,
    rows: Sequence[Row],
    head: str,
    max_length: int | None = None,
    on_row: Callable[[int], None] = lambda count: None,
) -> list[list[float] | None]:
    """What a head gives at the end of each row's completion: its outputs, or None where the row does not fit.

    Args:
        customized: has the head.
        rows: with completions; those of one prompt are computed behind it, and it once.
        head: its name.
        max_length: as for ``reward_scores``.
        on_row: callback with how many prompts each pass finished.

    Raises:
        EngineError: no such head.
    """
    base = customized.base
    encoder = Encoder(base.tokenizer, customized.template, base.context_length, max_length, cut="start")
    encoded = dict(encoder.fitting(rows))
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, each in encoded.items():
        of_prompt.setdefault(tuple(each.prompt), []).append(index)
    items = [Item(list(prompt), [encoded[i].completion for i in own]) for prompt, own in of_prompt.items()]
    outputs: list[list[float] | None] = [None] * len(rows)
    for own, scores in zip(of_prompt.values(), head_scores(customized, items, head, on_item=on_row), strict=True):
        for i, found in zip(own, scores, strict=True):
            outputs[i] = found
    return outputs
