"""Completions behind their prompt in one row of a pass: their log-probabilities, or what a head makes of them.

Each completion sees the prompt and itself, and no other, so the prompt is computed once however many there are. Rows
may be of different customizations, and ask for different heads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from tunescope.data.packing import PASS_TOKENS, Branch, Group, pack
from tunescope.inference.compiled import Compiled
from tunescope.inference.passes import Passes


@dataclass(frozen=True)
class Candidates:
    """What a row of a pass is about.

    Attributes:
        effects: its customization; None is the base.
        slot: holds the keys and values of the prompt's first ``past`` tokens.
        past: how many there are.
        rest: the rest of the prompt, at least one token.
        completions: token ids of each.
        head: the customization's head that scores them at their last token; None for log-probabilities.
    """

    effects: Compiled | None
    slot: int
    past: int
    rest: Sequence[int]
    completions: Sequence[Sequence[int]]
    head: str | None = None

    @property
    def positions(self) -> int:
        """How many tokens are computed."""
        short = self.head is None  # nothing reads what stands after the last token
        return len(self.rest) + sum(len(completion) - short for completion in self.completions)

    def within(self, positions: int) -> Candidates:
        """With the first completions only, as many as are computed in so many positions, and at least one."""
        count, used = 1, len(self.rest) + len(self.completions[0])
        while count < len(self.completions) and used + len(self.completions[count]) <= positions:
            used += len(self.completions[count])
            count += 1
        return replace(self, completions=self.completions[:count])


def scores_of(passes: Passes, rows: Sequence[Candidates]) -> list[list[list[float]]]:
    """The completions of some rows, in one pass: of each the log-probabilities of its tokens in nats, or its head's
    outputs.

    Raises:
        BaseInUseError: a customization acts on the base.
    """
    groups = [_group(row) for row in rows]
    packed = pack(groups, ends=any(row.head is not None for row in rows))
    heads = torch.tensor([row.head is not None for row in rows for _ in row.completions])
    keep = torch.zeros(packed.input_ids.numel(), dtype=torch.bool)
    keep[packed.predictors] = keep[packed.last[heads]] = True
    number = keep.cumsum(0) - 1  # of each position that is kept
    past = torch.tensor([row.past for row in rows])[:, None]
    hidden = passes.hidden(
        [row.effects for row in rows],
        [row.slot for row in rows],
        packed.input_ids,
        packed.position,
        torch.where(packed.branch < 0, -1, past + torch.arange(packed.input_ids.shape[1])),
        keep.view_as(packed.input_ids),
        packed.branch if packed.branched else None,
    )
    parts = list(passes.logprobs(hidden, number[packed.predictors], packed.targets).split(packed.lengths.tolist()))
    text = 0
    for row in rows:
        texts = slice(text, text + len(row.completions))
        text = texts.stop
        if row.head is not None:
            assert row.effects is not None  # the base has no heads
            parts[texts] = row.effects.heads[row.head](hidden[number[packed.last[texts]].to(hidden.device)])
    found = iter(_as_lists(parts))
    return [[next(found) for _ in row.completions] for row in rows]


def scores_of_one(passes: Passes, row: Candidates) -> list[list[float]]:
    """``scores_of`` a single row, in as many passes as its completions need; its prompt is computed in the first."""
    found: list[list[float]] = []
    while len(found) < len(row.completions):
        part = replace(row, completions=row.completions[len(found) :]).within(PASS_TOKENS)
        found += scores_of(passes, [part])[0]
        # The last token of the prompt once more: it predicts the first ones of the completions.
        row = replace(row, past=row.past + len(row.rest) - 1, rest=row.rest[-1:])
    return found


def no_head(name: str, head: str, heads: Collection[str]) -> str:
    """The message for a customization that lacks a head."""
    has = f"its heads are {', '.join(heads)}" if heads else "it has no head"
    return f"{name} cannot score with a head {head!r}: {has}. Train one, with --objective reward for example."


def _group(row: Candidates) -> Group:
    learned = [((0, len(ids)),) if row.head is None else () for ids in row.completions]
    branches = tuple(Branch(ids, spans) for ids, spans in zip(row.completions, learned, strict=True))
    return Group(row.rest, branches, row.past)


def _as_lists(parts: Sequence[torch.Tensor]) -> list[list[float]]:
    """Vectors as lists, in one transfer from the device."""
    values = torch.cat(list(parts)).tolist()
    ends = accumulate(map(len, parts))
    return [values[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]
