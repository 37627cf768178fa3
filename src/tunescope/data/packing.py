"""Texts that share a prefix, side by side: the prefix once, and behind it a branch for each text.

A branch sees the prefix and itself, at the positions it would have alone, and no other branch, so each text is computed
as if it stood by itself (see ``base.attention.branch_mask``). A pair is a prompt with two branches, ranked responses
are a prompt with a branch each, a classification a prompt with a branch a label, a step of fine-tuning the rows' common
prefix with a branch a row. A text that shares nothing is a group of its own, without a prefix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch.nn import functional

# Tokens computed in one forward pass. More fills the cores no better and needs memory for the activations.
PASS_TOKENS = 2048


@dataclass(frozen=True)
class Branch:
    """What a text adds to its group's prefix.

    Attributes:
        ids: token ids; negative ones are virtual tokens.
        learned: [begin, end) spans of ``ids`` whose tokens are predicted, each by the token before it: for the first
            one of the branch that is the prefix's last.
    """

    ids: Sequence[int]
    learned: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Group:
    """Texts that begin alike.

    Attributes:
        prefix: token ids that all of them begin with.
        branches: what each of them adds.
        past: how many tokens, computed before, stand in front of the prefix.
    """

    prefix: Sequence[int]
    branches: tuple[Branch, ...]
    past: int = 0

    @classmethod
    def of(cls, prompt: Sequence[int], completions: Iterable[Sequence[int]]) -> Self:
        """A prompt with a branch a completion, all of whose tokens are learned."""
        return cls(prompt, tuple(Branch(ids, ((0, len(ids)),)) for ids in completions))

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(branch.ids) for branch in self.branches)


@dataclass
class Packed:
    """Groups as tensors, one a row, padded on the right. Flat positions count through the flattened [groups, length].

    Attributes:
        input_ids: [groups, length]; negative ids are virtual tokens.
        branch: [groups, length], 0 for the prefix, 1, 2 ... for the branches, -1 for padding. The only branch of a
            group continues its prefix: 0.
        position: [groups, length], the position of each token in its own text.
        predictors: [targets] flat position of the token after which each target comes. Text by text, as the groups
            have them.
        targets: [targets] token ids.
        lengths: [texts] targets of each text.
        last: [texts] flat position of each text's last token that is computed.
        tokens: of all texts, the shared ones counted once for each text that has them.
    """

    input_ids: torch.Tensor
    branch: torch.Tensor
    position: torch.Tensor
    predictors: torch.Tensor
    targets: torch.Tensor
    lengths: torch.Tensor
    last: torch.Tensor
    tokens: int

    @property
    def branched(self) -> bool:
        """Whether any group has several texts; without, a causal model needs no mask."""
        return bool((self.branch > 0).any())

    @property
    def computed(self) -> int:
        """Tokens computed, padding counted."""
        return self.input_ids.numel()

    @property
    def padding(self) -> int:
        """How many of these are padding."""
        return int((self.branch < 0).sum())

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` [targets], summed over each text, as [texts]."""
        return torch.stack([each.sum() for each in values.split(self.lengths.tolist())])

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return replace(self, **{**values, **moved})


def pack(groups: Sequence[Group], *, ends: bool = True) -> Packed:
    """Lay groups out.

    Args:
        groups: at least one. Nothing predicts the first token of a branch without a prefix.
        ends: whether the branches' last tokens are computed. For log-probabilities alone nothing reads them.
    """
    short = 0 if ends else 1
    length = max(len(group) - short * len(group.branches) for group in groups)
    ids = torch.zeros(len(groups), length, dtype=torch.long)
    branch, position = torch.full_like(ids, -1), torch.zeros_like(ids)
    predictors: list[int] = []
    targets: list[int] = []
    lengths, last, tokens = [], [], 0
    for row, group in enumerate(groups):
        begin, prefix, past = row * length, len(group.prefix), group.past
        whole = [*group.prefix, *(token for each in group.branches for token in each.ids[: len(each.ids) - short])]
        ids[row, : len(whole)] = torch.tensor(whole, dtype=torch.long)
        branch[row, :prefix], position[row, :prefix] = 0, torch.arange(past, past + prefix)
        end = prefix
        for number, each in enumerate(group.branches, start=1):
            own = slice(end, end + len(each.ids) - short)
            branch[row, own] = number if len(group.branches) > 1 else 0
            position[row, own] = torch.arange(past + prefix, past + prefix + own.stop - end)
            before = len(targets)
            for first, stop in each.learned:
                for place in range(first, stop):
                    if place or prefix:
                        predictors.append(begin + (end + place - 1 if place else prefix - 1))
                        targets.append(each.ids[place])
            lengths.append(len(targets) - before)
            last.append(begin + (own.stop if own.stop > own.start else prefix) - 1)  # of an empty branch the prefix's
            end = own.stop
            tokens += prefix + len(each.ids)
    return Packed(
        ids,
        branch,
        position,
        torch.tensor(predictors, dtype=torch.long),
        torch.tensor(targets, dtype=torch.long),
        torch.tensor(lengths),
        torch.tensor(last),
        tokens,
    )


def join(parts: Sequence[Packed]) -> Packed:
    """Batches below each other, padded to the longest, for one pass of the base; texts and targets stay with each."""
    length = max(part.input_ids.shape[1] for part in parts)

    def below(name: str, value: int) -> torch.Tensor:
        rows = (getattr(part, name) for part in parts)
        return torch.cat([functional.pad(each, (0, length - each.shape[1]), value=value) for each in rows])

    none = parts[0].targets[:0]
    tokens = sum(part.tokens for part in parts)
    ids, branch, position = below("input_ids", 0), below("branch", -1), below("position", 0)
    return Packed(ids, branch, position, none, none, none, none, tokens)


def by_length(lengths: Sequence[int], budget: int = PASS_TOKENS) -> Iterator[list[int]]:
    """Indices of texts of similar length together, the longest first, up to ``budget`` tokens with padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    while order:
        fits = max(1, budget // max(lengths[order[0]], 1))
        yield order[:fits]
        order = order[fits:]
