"""How likely given continuations are, or what a head makes of them: the primitive under classification, loss,
multiple choice and rewards.

The candidates of a prompt stand behind it in one packed sequence, so the prompt is computed once however many there
are. The prefix that all prompts share (a system text, shots, virtual tokens, an instruction) is computed once
for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tunescope.data.packing import Packed, by_length
from tunescope.data.tokenizing import common_prefix
from tunescope.errors import EngineError
from tunescope.inference.candidates import Candidates, no_head, scores_of, scores_of_one
from tunescope.inference.compiled import Compiled
from tunescope.inference.passes import Passes
from tunescope.inference.prefix_cache import WORTH_SHARING
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


class Scorer:
    """A customization, as it is now, in passes of its own.

    Args:
        customized: what to run.
        rows: the most rows of a pass.
    """

    def __init__(self, customized: Customized, rows: int) -> None:
        self._passes = Passes(customized.base, rows)
        customization = customized.customization
        self._effects = Compiled.of(customization, customized.base) if customization.acts else None

    @torch.inference_mode()
    def hidden(self, packed: Packed) -> torch.Tensor:
        """What ``objectives.forward.packed_hidden`` gives under the customization, as [groups · length, hidden]."""
        passes, (groups, length) = self._passes, packed.input_ids.shape
        slots = list(range(groups))
        places = torch.where(packed.branch < 0, -1, torch.arange(length))
        keep = torch.ones_like(places, dtype=torch.bool)
        branch = packed.branch if packed.branched else None
        effects = [self._effects] * groups
        hidden = passes.hidden(effects, slots, packed.input_ids, packed.position, places, keep, branch)
        for slot in slots:
            passes.slots.close(slot)
        return hidden

    def prefix(self, tokens: list[int]) -> Kept:
        """The keys and values of a prefix."""
        ids = torch.tensor([tokens])
        places = torch.arange(len(tokens))[None]
        self._passes.hidden([self._effects], [0], ids, places, places, torch.zeros_like(ids, dtype=torch.bool))
        kept = self._passes.slots.keep(0, len(tokens))
        self._passes.slots.close(0)
        return kept

    def scores(self, items: Sequence[Item], head: str | None, prefix: Kept | None) -> list[list[list[float]]]:
        """``candidates.scores_of`` items in one pass, or of a single one in as many as it needs.

        Args:
            items: with prompts that begin with ``prefix``.
            head: see ``Candidates``.
            prefix: what ``prefix`` kept.
        """
        passes, past = self._passes, 0 if prefix is None else prefix.tokens
        rows = [
            Candidates(self._effects, slot, past, item.prompt[past:], item.candidates, head)
            for slot, item in enumerate(items)
        ]
        passes.slots.arrange([row.slot for row in rows], [past + row.positions for row in rows])
        if prefix is not None:
            for row in rows:
                passes.slots.restore(row.slot, prefix)
        found = [scores_of_one(passes, rows[0])] if len(rows) == 1 else scores_of(passes, rows)
        for row in rows:
            passes.slots.close(row.slot)
        return found


@torch.inference_mode()
def _scored(
    customized: Customized, items: Sequence[Item], head: str | None, on_item: Callable[[int], None]
) -> list[list[list[float]]]:
    results: list[list[list[float]]] = [[] for _ in items]
    shared = _shared([item.prompt for item in items])
    lengths = [Candidates(None, 0, shared, i.prompt[shared:], i.candidates, head).positions for i in items]
    groups = list(by_length(lengths))
    scorer = Scorer(customized, max(map(len, groups), default=1))
    prefix = scorer.prefix(items[0].prompt[:shared]) if shared else None
    for indices in groups:
        for i, scores in zip(indices, scorer.scores([items[i] for i in indices], head, prefix), strict=True):
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
