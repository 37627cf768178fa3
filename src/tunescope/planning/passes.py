"""What one pass of a step takes: the step's own code, run on sketches of the base.

A sketch has a few layers, and another a period more: what they differ by is what a period takes, so a model of any
depth is known after two short passes. Where memory is highest differs with depth, so it is watched in stretches of the
pass, each of which grows in a straight line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from tunescope.base import Base
from tunescope.base.device import dtype_name
from tunescope.base.sketch import Outline
from tunescope.base.vocabulary_head import sketched_on
from tunescope.data.batching import Batch
from tunescope.data.packing import Branch, Group, Packed, pack
from tunescope.data.template import Template
from tunescope.errors import TunescopeError
from tunescope.methods import Customization, Customized, Method, ZeroShot
from tunescope.methods.acting import Hooks
from tunescope.objectives import Objective
from tunescope.objectives.forward import packed_hidden, target_logprobs
from tunescope.planning.counting import Counting, Work
from tunescope.training.recompute import recomputed

# The stretch whose end is what the backward pass needs of all layers.
_LAST_LAYER = 1


@dataclass(frozen=True)
class Pass:
    """What a pass takes.

    Attributes:
        trained: numbers that training moves.
        effects: bytes of the effects.
        stretches: the most bytes that live at once beside weights and effects in each stretch of it: before the last
            layer, in it, in the loss, and backward in the loss, the last layer and before it. Gradients are among them.
        gradients: bytes that are left when it ends.
        work: that it does.
    """

    trained: float
    effects: float
    stretches: tuple[float, ...]
    gradients: float
    work: Work

    @property
    def highest(self) -> float:
        """The most bytes that live at once."""
        return max(self.stretches)


@dataclass(frozen=True)
class Places:
    """Where passes are to be computed.

    Attributes:
        outline: of the base.
        dtype: of its weights.
        device: by whose operations.
        recompute: whether layers are computed again in the backward pass.
    """

    outline: Outline
    dtype: torch.dtype
    device: torch.device
    recompute: bool = False

    def training(self, method: Method, objective: Objective, template: Template, batch: Batch) -> Pass:
        """A forward and a backward pass of one part of a step.

        Raises:
            TunescopeError: the model has operations whose size is known from values alone.
        """
        return self._whole(method, objective, template, training_pass(objective, batch, recompute=self.recompute))

    def at_depth(self, layers: int, method: Method, objective: Objective, template: Template, batch: Batch) -> Pass:
        """``training`` of a model with so many of the layers."""
        return self._at(layers, method, objective, template, training_pass(objective, batch, recompute=self.recompute))

    def reading(self, packed: Packed) -> Work:
        """The log-probabilities of texts under the base, without a gradient."""

        def compute(customized: Customized, hooks: Hooks, watch: Watch) -> None:
            base = customized.base
            with torch.no_grad():
                target_logprobs(base, packed, packed_hidden(base, packed))

        return self._plain(compute)

    def decoding(self, rows: int) -> Work:
        """The next token of so many rows, without what their attention reads of the tokens before."""
        packed = pack([Group((0,), (Branch((0,), ((0, 1),)),)) for _ in range(rows)], ends=False)
        return self.reading(packed)

    def kept(self, rows: int, length: int) -> int:
        """Bytes of the keys and values of so many rows of that length."""
        text = self.outline.config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * heads * width * self.outline.layers * self.dtype.itemsize * rows * length

    @cached_property
    def whole(self) -> Base:
        """All of the base."""
        return self.outline.sketch(self.outline.layers, self.dtype, self.device)

    def weights(self) -> int:
        """Bytes of the whole base."""
        return sum(map(_bytes, (*self.whole.model.parameters(), *self.whole.model.buffers())))

    def _plain(self, compute: _Compute) -> Work:
        return self._whole(ZeroShot(), None, Template(style="plain", stop=(0,)), compute).work

    def _whole(
        self,
        method: Method,
        objective: Objective | None,
        template: Template,
        compute: _Compute,
    ) -> Pass:
        period, layers = self.outline.period, self.outline.layers
        few = [min(count, layers) for count in (period + 1, 2 * period + 1)]
        one = self._at(few[0], method, objective, template, compute)
        if few[0] == layers:
            return one
        two = self._at(few[1], method, objective, template, compute)
        depth = (layers - few[0]) / (few[1] - few[0])
        return _further(one, two, depth)

    def _at(
        self,
        layers: int,
        method: Method,
        objective: Objective | None,
        template: Template,
        compute: _Compute,
    ) -> Pass:
        base = self.outline.sketch(layers, self.dtype, self.device)
        with Counting():
            customized = _customized(base, method, objective, template)
        own = list(customized.customization.parameters())
        counting = Counting((*own, *base.model.parameters(), *base.model.buffers()))
        watch = Watch(counting)
        try:
            with sketched_on(self.device.type), counting, Hooks(base, [customized.customization]) as hooks:
                compute(customized, hooks, watch)
        except RuntimeError as error:
            other = " Experts can be planned with --dtype bfloat16." if self.dtype == torch.float32 else ""
            raise TunescopeError(
                f"{self.outline.name} has operations that need values, so it cannot be planned in "
                f"{dtype_name(self.dtype)} ({str(error).splitlines()[0].rstrip('.')}).{other} Train a few steps in its "
                "place (tunescope train ... --max-steps 3) and see peak_memory_mb."
            ) from error
        moved = base.parameters if customized.moves_base else 0
        given = [p.grad for p in (*own, *base.model.parameters()) if p.grad is not None]
        return Pass(
            trained=moved + sum(p.numel() for p in own),
            effects=sum(map(_bytes, own)),
            stretches=watch.found(),
            gradients=sum(map(_bytes, given)),
            work=counting.work,
        )


def training_pass(objective: Objective, batch: Batch, *, recompute: bool) -> _Compute:
    """A pass of the loop over one part of a step, in stretches; called with what is trained, its hooks and a watch."""

    def compute(customized: Customized, hooks: Hooks, watch: Watch) -> None:
        base, acting = customized.base, customized.customization
        with hooks.alone(acting), watch.last_layer(base), recomputed(base, [acting]) if recompute else nullcontext():
            hidden = packed_hidden(customized.base, batch.packed)
            watch.next()
            read = hidden.detach().requires_grad_()
            objective.compute_loss(customized, batch, read).total.backward()
            watch.next()
            hidden.backward(read.grad)

    return compute


class Watch:
    """Watches memory in stretches of a pass."""

    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        self._found: list[float] = []

    def next(self) -> None:
        """Here one stretch ends and another begins."""
        self._found.append(self._counting.take_highest())

    def found(self) -> tuple[float, ...]:
        """Of each stretch the most bytes that lived at once."""
        self.next()
        return tuple(self._found)

    @contextmanager
    def last_layer(self, base: Base) -> Iterator[None]:
        """Within this context a stretch ends where the last layer begins, forward, and where it ends, backward."""
        first = next(site for site in base.sites.all if site.layer == base.sites.all[-1].layer)

        def begins(_module: Any, given: tuple[Any, ...]) -> None:
            self.next()
            if given[0].requires_grad:
                given[0].register_hook(lambda _grad: self.next())

        handle = first.module.register_forward_pre_hook(begins)
        try:
            yield
        finally:
            handle.remove()


def _customized(base: Base, method: Method, objective: Objective | None, template: Template) -> Customized:
    generator = torch.Generator()
    effects = method.effects(base, generator)
    if objective is not None:
        effects |= objective.effects(base, generator)
    customization = Customization(method, template, effects).to(base.device)
    if method.trains == "base":
        base.model.requires_grad_(True)
    return Customized(base, customization, base)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _further(one: Pass, two: Pass, depth: float) -> Pass:
    """Straight lines through two passes, at ``depth`` times their distance from the first.

    A stretch may be highest at its end in the shallow model and at its beginning in the deep one, which looks steeper
    than it is: none is steeper than what a layer keeps and the gradients that it leaves.
    """
    gradients = two.gradients - one.gradients
    layer = min(_LAST_LAYER, len(one.stretches) - 1)  # without a backward pass there is one stretch
    steepest = two.stretches[layer] - one.stretches[layer] + gradients
    rises = [min(after - before, steepest) for before, after in zip(one.stretches, two.stretches, strict=True)]
    return Pass(
        trained=one.trained + (two.trained - one.trained) * depth,
        effects=one.effects + (two.effects - one.effects) * depth,
        stretches=tuple(after + rise * (depth - 1) for after, rise in zip(two.stretches, rises, strict=True)),
        gradients=one.gradients + gradients * depth,
        work=one.work + (two.work + one.work * -1) * depth,
    )


_Compute = Callable[[Customized, Hooks, Watch], None]
