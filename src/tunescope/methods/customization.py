"""A customization in memory: a method's settings, its template, and its effects, ready to act on a base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.data.template import Template
from tunescope.errors import BankError
from tunescope.methods.effects import Effect, Prefix
from tunescope.methods.method import Method


class Customization(nn.Module):
    """What a method makes of a base.

    Args:
        method: its settings.
        template: what stands around a row's text; belongs to the customization as much as its tensors.
        effects: by site key (``3.q`` or ``embedding``).
    """

    def __init__(self, method: Method, template: Template, effects: Mapping[str, Effect]) -> None:
        super().__init__()
        self.method = method
        self.template = template
        self.effects = dict(effects)
        for key, effect in self.effects.items():
            self.add_module(f"{key.replace('.', '_')}_{effect.kind}", effect)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that make the customization, by name: site, effect, tensor (``3.q.low_rank.A``)."""
        return {
            f"{key}.{effect.kind}.{name}": tensor.detach()
            for key, effect in self.effects.items()
            for name, tensor in effect.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take these tensors.

        Raises:
            BankError: naming tensors that are missing, unexpected or of another shape.
        """
        own = self.tensors()
        if missing := sorted(set(own) - set(tensors)):
            raise BankError(f"Missing tensors: {_some(missing)}.")
        if unexpected := sorted(set(tensors) - set(own)):
            raise BankError(f"Unexpected tensors: {_some(unexpected)}.")
        for name, tensor in own.items():
            if tensors[name].shape != tensor.shape:
                raise BankError(
                    f"Tensor {name} has shape {tuple(tensors[name].shape)}, but this base and method need "
                    f"{tuple(tensor.shape)}."
                )
            tensor.copy_(tensors[name])

    @property
    def trainable_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    @contextmanager
    def applied(self, base: Base) -> Iterator[None]:
        """Within this context the base computes as customized; afterwards it is the base again, bit for bit."""
        handles = []
        try:
            for key, effect in self.effects.items():
                if isinstance(effect, Prefix):
                    handles += effect.attach(base.sites.embedding)
                elif effect.where == "input":
                    handles.append(base.sites[key].on_input(effect))
                else:
                    handles.append(base.sites[key].on_output(effect))
            yield
        finally:
            for handle in handles:
                handle.remove()


@dataclass
class Customized:
    """A base and what makes it another: what training returns, evaluation measures and the bank keeps.

    Attributes:
        base: the frozen base; after full fine-tuning, the moved copy.
        customization: template and effects.
        origin: the untouched base. The same object as ``base`` for every method but full.
    """

    base: Base
    customization: Customization
    origin: Base

    @property
    def template(self) -> Template:
        """What stands around a row's text."""
        return self.customization.template

    @property
    def method(self) -> Method:
        """The method's settings."""
        return self.customization.method

    @property
    def trainable_parameters(self) -> int:
        """How many numbers training moves."""
        return self.base.parameters if self.moves_base else self.customization.trainable_parameters

    @property
    def moves_base(self) -> bool:
        """Whether the base's own weights are trained."""
        return self.method.trains == "base"

    def finish(self) -> None:
        """End of training: nothing moves any more, and a moved base computes in the precision it will be kept in."""
        self.customization.eval().requires_grad_(False)
        if self.moves_base:
            self.base.freeze_as(self.origin.dtype)

    @contextmanager
    def active(self) -> Iterator[Base]:
        """The base, computing as customized."""
        with self.customization.applied(self.base):
            yield self.base


def customize(
    base: Base,
    method: Method,
    template: Template,
    rows: Sequence[Row] = (),
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> Customized:
    """A customization at its start: its effects at their identity, its prompt drawn.

    Args:
        base: frozen.
        method: settings of the method.
        template: the task's plain template, to which the method may add.
        rows: training rows, for methods that show some.
        labels: of a classification task.
        seed: of everything drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    template = method.prompt(template, rows, labels, seed)
    effects = method.effects(base, generator)
    customization = Customization(method, template, effects).to(base.device)
    running = base.copy_for_full_training() if method.trains == "base" else base
    return Customized(running, customization, base)


def _some(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
