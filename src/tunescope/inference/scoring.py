"""How likely are given continuations: the primitive under classification, loss and multiple choice.

The candidates of a prompt stand behind it in one packed sequence: each sees the prompt and itself, and no other, so the
prompt is computed once however many candidates there are. What all prompts share at their beginning (a system text,
shots, virtual tokens, an instruction) is computed once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunescope.data.encoding import common_prefix
from tunescope.data.packing import Branch, Group, by_length, pack
from tunescope.inference.compiled import Compiled
from tunescope.inference.passes import Passes
from tunescope.inference.prefix import WORTH_SHARING
from tunescope.inference.slots import Kept
from tunescope.methods import Customized

# Rows of logits turned to float32 at a time: 256 rows of a 50,000-token vocabulary are 50 MB.
_FLOAT_ROWS = 256


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


@torch.inference_mode()
def score(
    customized: Customized, items: Sequence[Item], *, on_item: Callable[[int], None] = lambda count: None
) -> list[list[Score]]:
    """Score every candidate of every item.

    Args:
        customized: what to run.
        items: in any order; results come in the same one.
        on_item: told how many items each pass finished.
    """
    results: list[list[Score]] = [[] for _ in items]
    shared = _shared([item.prompt for item in items])
    groups = list(by_length([_packed_length(item, shared) for item in items]))
    passes = Passes(customized.base, max(map(len, groups), default=1))
    customization = customized.customization
    compiled = Compiled.of(customization, customized.base) if customization.acts else None
    beginning = _compute_beginning(passes, compiled, items[0].prompt[:shared]) if shared else None
    for indices in groups:
        scored = _score_pass(passes, compiled, [items[i] for i in indices], beginning)
        for i, scores in zip(indices, scored, strict=True):
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


def _packed_length(item: Item, shared: int) -> int:
    return len(item.prompt) - shared + sum(len(candidate) - 1 for candidate in item.candidates)


def _compute_beginning(passes: Passes, compiled: Compiled | None, tokens: list[int]) -> Kept:
    ids = torch.tensor([tokens])
    places = torch.arange(len(tokens))[None]
    passes.logits([compiled], [0], ids, places, places, torch.zeros_like(ids, dtype=torch.bool))
    kept = passes.slots.keep(0, len(tokens))
    passes.slots.close(0)
    return kept


def _score_pass(
    passes: Passes, compiled: Compiled | None, items: list[Item], beginning: Kept | None
) -> list[list[Score]]:
    shared = 0 if beginning is None else beginning.tokens
    groups = [
        Group(item.prompt[shared:], tuple(Branch(ids, ((0, len(ids)),)) for ids in item.candidates)) for item in items
    ]
    packed = pack(groups, past=shared, ends=False)
    length = packed.input_ids.shape[1]
    slots = list(range(len(items)))
    passes.slots.arrange(slots, [shared + length] * len(items))
    if beginning is not None:
        for slot in slots:
            passes.slots.restore(slot, beginning)
    device = passes.base.device
    mask = passes.base.masks(packed.branch.to(device), packed.position.to(device), past=shared)
    places = torch.arange(shared, shared + length).expand(len(items), length)
    keep = torch.zeros(packed.input_ids.numel(), dtype=torch.bool)
    keep[packed.predictors] = True
    rows = keep.cumsum(0) - 1  # of each position that is kept
    keep = keep.view_as(packed.input_ids)
    logits = passes.logits([compiled] * len(items), slots, packed.input_ids, packed.position, places, keep, mask)
    for slot in slots:
        passes.slots.close(slot)
    logprobs = iter(_logprobs(logits, rows[packed.predictors], packed.targets).tolist())
    return [
        [Score(sum(next(logprobs) for _ in candidate), len(candidate)) for candidate in item.candidates]
        for item in items
    ]


def _logprobs(logits: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of ``targets[i]`` under row ``rows[i]`` of ``logits`` [kept, vocabulary], in float32."""
    normalizer = torch.cat([chunk.float().logsumexp(-1) for chunk in logits.split(_FLOAT_ROWS)])
    rows, targets = rows.to(logits.device), targets.to(logits.device)
    return logits[rows, targets].float() - normalizer[rows]
