"""How likely given continuations are, or what a head makes of them: the primitive under classification, loss, multiple
choice and rewards.

The candidates of a prompt stand behind it in one packed sequence, so the prompt is computed once however many candidates
there are. What all prompts share at their beginning (a system text, shots, virtual tokens, an instruction) is computed
once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunescope.data.encoding import common_prefix
from tunescope.data.packing import by_length
from tunescope.errors import EngineError
from tunescope.inference.candidates import Candidates, no_head, scores_of, scores_of_one
from tunescope.inference.compiled import Compiled
from tunescope.inference.passes import Passes
from tunescope.inference.prefix import WORTH_SHARING
from tunescope.inference.slots import Kept
from tunescope.methods import Customized


@dataclass(frozen=True)
class Item:
    """A prompt and the continuations to score, as token ids. Negative ids are virtual tokens."""

    prompt: list[int]
    candidates: list[list[int]]


@dataclass(frozen=True)
class Score:
    """The log-probability of a continuation, in nats, and how many tokens it has."""

    logprob: float
    tokens: int


def score(
    customized: Customized, items: Sequence[Item], *, on_item: Callable[[int], None] = lambda count: None
) -> list[list[Score]]:
    """Log-probability of every candidate of every item.

    Args:
        customized: what to run.
        items: in any order; results come in the same one.
        on_item: callback with how many items each pass finished.
    """
    return [[Score(sum(nats), len(nats)) for nats in found] for found in _scored(customized, items, None, on_item)]


def head_scores(
    customized: Customized, items: Sequence[Item], head: str, *, on_item: Callable[[int], None] = lambda count: None
) -> list[list[list[float]]]:
    """What a head gives at the last token of every candidate of every item: its outputs.

    Args:
        customized: has the head.
        items: in any order; results come in the same one.
        head: its name, ``reward`` for example.
        on_item: callback with how many items each pass finished.

    Raises:
        EngineError: the customization has no such head.
    """
    if head not in customized.customization.heads:
        raise EngineError(no_head(customized.method.name, head, customized.customization.heads))
    return _scored(customized, items, head, on_item)


@torch.inference_mode()
def _scored(
    customized: Customized, items: Sequence[Item], head: str | None, on_item: Callable[[int], None]
) -> list[list[list[float]]]:
    results: list[list[list[float]]] = [[] for _ in items]
    shared = _shared([item.prompt for item in items])
    lengths = [Candidates(None, 0, shared, i.prompt[shared:], i.candidates, head).positions for i in items]
    groups = list(by_length(lengths))
    passes = Passes(customized.base, max(map(len, groups), default=1))
    effects = customized.customization.effects
    compiled = Compiled.of(customized.customization, customized.base) if effects else None
    prefix = _compute_prefix(passes, compiled, items[0].prompt[:shared]) if shared else None
    for indices in groups:
        rows = [
            Candidates(compiled, slot, shared, items[i].prompt[shared:], items[i].candidates, head)
            for slot, i in enumerate(indices)
        ]
        passes.slots.arrange([row.slot for row in rows], [shared + row.positions for row in rows])
        if prefix is not None:
            for row in rows:
                passes.slots.restore(row.slot, prefix)
        found = [scores_of_one(passes, rows[0])] if len(rows) == 1 else scores_of(passes, rows)
        for i, row, scores in zip(indices, rows, found, strict=True):
            passes.slots.close(row.slot)
            results[i] = scores
        on_item(len(indices))
    return results


def _shared(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, where sharing them pays; the last token of each is not among them."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # in order of tokens: all others lie between these two
    tokens = min(common_prefix(first, last), min(map(len, prompts)) - 1)
    return tokens if tokens >= WORTH_SHARING else 0


def _compute_prefix(passes: Passes, compiled: Compiled | None, tokens: list[int]) -> Kept:
    ids = torch.tensor([tokens])
    places = torch.arange(len(tokens))[None]
    passes.hidden([compiled], [0], ids, places, places, torch.zeros_like(ids, dtype=torch.bool))
    kept = passes.slots.keep(0, len(tokens))
    passes.slots.close(0)
    return kept
