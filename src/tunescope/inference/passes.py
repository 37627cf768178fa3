"""From rows and their customizations to logits: picks the effects' plan and the code that runs it, and counts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from tunescope.base import Base
from tunescope.inference.llama import LlamaRunner
from tunescope.inference.row_effects import Compiled, Plan, Stack
from tunescope.inference.runners import HookedRunner, Pass
from tunescope.inference.slots import Access, Slots


class Passes:
    """Forward passes over the slots of one base.

    Args:
        base: frozen.
        rows: how many slots there are, and the most rows of a pass.

    Attributes:
        slots: the key-value memory.
        positions: positions computed so far, padding counted: what a test can count where a clock cannot be trusted.
        count: passes so far.
    """

    def __init__(self, base: Base, rows: int) -> None:
        self.base = base
        self.slots = Slots(rows, base.model.config.get_text_config().num_hidden_layers)
        self.positions = self.count = 0
        self._hooked = HookedRunner(base)
        self._llama = LlamaRunner(base) if LlamaRunner.applies(base) else None
        self._recent: OrderedDict[Compiled, None] = OrderedDict()
        self._stack = Stack([], base)
        self._plan = Plan(self._stack, [], base)

    def logits(
        self,
        effects: Sequence[Compiled | None],
        slots: list[int],
        ids: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        keep: torch.Tensor,
        mask: Any = None,
    ) -> torch.Tensor:
        """Logits [kept positions, vocabulary] of new tokens, whose keys and values go into the slots.

        Args:
            effects: each row's customization; None is the base.
            slots: each row's slot.
            ids: [rows, length]; negative ids are virtual tokens of the row's customization.
            positions: [rows, length], for the position embedding.
            places: [rows, length] where the tokens stand in their slots; room is made for them.
            keep: [rows, length] boolean, the positions whose logits are wanted.
            mask: as ``Base.masks`` makes; by default each token sees its own place and those before it.
        """
        self.positions += ids.numel()
        self.count += 1
        seen = int(places.max()) + 1
        self.slots.reserve(max(slots) + 1, seen)
        if mask is None:
            seen = self.slots.worth_reading(seen)
            mask = self.base.place_masks(places, seen)
        plan = self._plan_for(effects)
        runner = self._llama if self._llama is not None and self._llama.takes(plan) else self._hooked
        return runner.logits(Pass(ids, positions, mask, Access(self.slots, slots, places, seen), plan, keep))

    def forget(self, effects: Compiled) -> None:
        """Keep no customization that is no longer served longer than its rows need it."""
        self._recent.pop(effects, None)

    def _plan_for(self, effects: Sequence[Compiled | None]) -> Plan:
        """The rows' effects; the last one again where the rows have not changed.

        The stack is made anew when somebody comes who is not in it, and keeps those that were there last.
        """
        for each in effects:
            if each is not None:
                self._recent[each] = None
                self._recent.move_to_end(each)
        numbers = [self._stack.number(each) for each in effects]
        if None in numbers:
            while len(self._recent) > self.slots.rows:
                self._recent.popitem(last=False)
            self._stack = Stack(list(self._recent), self.base)
            numbers = [self._stack.number(each) for each in effects]
        if self._plan.stack is not self._stack or self._plan.numbers != tuple(numbers):
            self._plan = Plan(self._stack, [number or 0 for number in numbers], self.base)
        return self._plan
