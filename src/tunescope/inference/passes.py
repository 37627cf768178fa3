"""From rows and their customizations to hidden states and logits: picks the effects' plan and the code that runs it,
and counts."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence

import torch

from tunescope.base import Base
from tunescope.base.vocabulary_head import logprobs_at
from tunescope.inference.compiled import Compiled
from tunescope.inference.llama import LlamaRunner
from tunescope.inference.plan import Plan
from tunescope.inference.runners import HookedRunner, Pass
from tunescope.inference.slots import Slots
from tunescope.inference.stack import Stack


class Passes:
    """Forward passes over the slots of one base.

    Args:
        base: frozen.
        rows: the most rows of a pass.

    Attributes:
        rows: the most rows of a pass.
        slots: the key-value memory.
        positions: positions computed so far, padding counted: what a test can count where a clock cannot be trusted.
        count: passes so far.
    """

    def __init__(self, base: Base, rows: int) -> None:
        self.base, self.rows = base, rows
        self.slots = Slots(base.model.config.get_text_config().num_hidden_layers)
        self.positions = self.count = 0
        self._hooked = HookedRunner(base)
        self._llama = LlamaRunner(base) if LlamaRunner.applies(base) else None
        self._recent: OrderedDict[Compiled, None] = OrderedDict()
        self._gone: weakref.WeakSet[Compiled] = weakref.WeakSet()  # served no longer; rows under way may have them
        self._stack = Stack([], base)
        self._plan = Plan(self._stack, [], base)

    def hidden(
        self,
        effects: Sequence[Compiled | None],
        slots: Sequence[int],
        ids: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        keep: torch.Tensor,
        branch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [kept positions, hidden] of new tokens, whose keys and values go into the slots: what heads
        read, those of customizations and the vocabulary head.

        The tensors are on the CPU: nothing then waits for an accelerator in order to learn a length.

        Args:
            effects: each row's customization; None is the base.
            slots: each row's slot, any number; a new one is opened.
            ids: [rows, length]; negative ids are virtual tokens of the row's customization.
            positions: [rows, length], for the position embedding.
            places: [rows, length] where the tokens stand in their slots, -1 for padding; room is made for them.
            keep: [rows, length] boolean, the positions that are wanted.
            branch: [rows, length] as ``Packed.branch``, where branches stand behind what the slots hold; by default
                each token sees its own place and those before it.

        Raises:
            BaseInUseError: a customization acts on the base, and would act on every row. Nothing was computed.
        """
        with self.base.use.untouched("An engine's pass"):
            return self._hidden(effects, slots, ids, positions, places, keep, branch)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [positions, vocabulary] of hidden states [positions, hidden]."""
        return (self._llama or self._hooked).logits(hidden)

    def logprobs(self, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability of each target after its row of ``hidden``, in nats; see ``base.head.logprobs_at``."""
        return logprobs_at(self.logits, hidden, rows.to(hidden.device), targets.to(hidden.device))

    def _hidden(
        self,
        effects: Sequence[Compiled | None],
        slots: Sequence[int],
        ids: torch.Tensor,
        positions: torch.Tensor,
        places: torch.Tensor,
        keep: torch.Tensor,
        branch: torch.Tensor | None,
    ) -> torch.Tensor:
        self.positions += ids.numel()
        self.count += 1
        self.slots.arrange(slots, (places.amax(1) + 1).tolist())
        order, back = sorted(range(len(slots)), key=lambda row: self.slots.order(slots[row])), None
        if order != list(range(len(slots))):
            number = keep.flatten().cumsum(0).view_as(keep)  # of each kept position, in the order that was asked for
            back = number[order][keep[order]].argsort()
            effects, slots = [effects[row] for row in order], [slots[row] for row in order]
            ids, positions, places, keep = (each[order] for each in (ids, positions, places, keep))
            branch = None if branch is None else branch[order]
        plan = self._plan_for(effects)
        runner = self._llama if self._llama is not None and self._llama.takes(plan) else self._hooked
        access = self.slots.access(slots, places, self.base.device)
        found = runner.hidden(Pass(ids, positions, places, branch, access, plan, keep))
        return found if back is None else found[back.to(found.device)]

    def evict(self, effects: Compiled) -> None:
        """Keep no customization that is no longer served longer than its rows need it."""
        self._recent.pop(effects, None)
        self._gone.add(effects)

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
            for each in [each for each in self._recent if each in self._gone and each not in effects]:
                del self._recent[each]
            while len(self._recent) > self.rows:
                self._recent.popitem(last=False)
            try:
                self._stack = Stack(list(self._recent), self.base)
            except (RuntimeError, MemoryError):  # no memory for all that were there last: for these rows' alone
                self._recent = OrderedDict.fromkeys(each for each in effects if each is not None)
                self._stack = Stack(list(self._recent), self.base)
            numbers = [self._stack.number(each) for each in effects]
        if self._plan.stack is not self._stack or self._plan.numbers != tuple(numbers):
            self._plan = Plan(self._stack, [number or 0 for number in numbers], self.base)
        return self._plan
