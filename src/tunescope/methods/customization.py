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
from tunescope.errors import BankError, TrainingError
from tunescope.methods.acting import Hooks
from tunescope.methods.effects import Effect, SoftPrompt
from tunescope.methods.method import Method

# What names of a start's tensors begin with, beside those of what was trained on top of it.
_START = "start."


class Customization(nn.Module):
    """What a method makes of a base.

    Args:
        method: its settings.
        template: what stands around a row's text; belongs to the customization as much as its tensors.
        effects: by site and kind (``3.q.low_rank`` or ``embedding.prefix``).
        start: the customization it starts from, finished and frozen, whose effects act before these.

    Attributes:
        trainable_parameters: how many numbers training moves. P-tuning keeps fewer than it trains.
    """

    def __init__(
        self,
        method: Method,
        template: Template,
        effects: Mapping[str, Effect],
        start: Customization | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.template = template
        self.effects: dict[str, Effect] = {}
        self._start = (start,)  # in a tuple: its tensors are not among those that are trained
        for key, effect in effects.items():
            self._put(key, effect)
        self.trainable_parameters = sum(parameter.numel() for parameter in self.parameters())

    @property
    def start(self) -> Customization | None:
        """The customization it starts from; None where that is the base."""
        return self._start[0]

    @property
    def layers(self) -> tuple[Customization, ...]:
        """All whose effects act, in order: what it starts from, and itself last."""
        return (self,) if self.start is None else (*self.start.layers, self)

    def virtual_table(self) -> torch.Tensor:
        """The virtual tokens of all layers, [virtual_tokens, hidden]: row i is what token id -1 - i stands for."""
        effects = (effect for layer in self.layers for effect in layer.effects.values())
        return torch.cat([effect.table() for effect in effects if isinstance(effect, SoftPrompt)])

    @property
    def acts(self) -> bool:
        """Whether there is any effect, of its own or of what it starts from."""
        return any(layer.effects for layer in self.layers)

    @property
    def heads(self) -> dict[str, Effect]:
        """The heads that an objective brought, by name (``reward``): they read hidden states and change none."""
        return {key.removeprefix("head."): effect for key, effect in self.effects.items() if effect.where == "head"}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that make the customization, by name: site, effect, tensor (``3.q.low_rank.A``)."""
        return {
            f"{key}.{name}": tensor.detach()
            for key, effect in self.effects.items()
            for name, tensor in effect.state_dict().items()
        }

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take these tensors.

        Raises:
            BankError: naming tensors that are missing, unexpected, of another shape, not of a floating-point dtype, or
                holding values that are not finite in the precision they are kept in.
        """
        own = self.tensors()
        if missing := sorted(set(own) - set(tensors)):
            raise BankError(f"Missing tensors: {some(missing)}.")
        if unexpected := sorted(set(tensors) - set(own)):
            raise BankError(f"Unexpected tensors: {some(unexpected)}.")
        for name, tensor in own.items():
            if tensors[name].shape != tensor.shape:
                raise BankError(
                    f"Tensor {name} has shape {tuple(tensors[name].shape)}, but this base and method need "
                    f"{tuple(tensor.shape)}."
                )
            if not tensors[name].is_floating_point():
                raise BankError(
                    f"Tensor {name} has dtype {str(tensors[name].dtype).removeprefix('torch.')}: only floating-point "
                    "ones are taken."
                )
            if not bool(tensors[name].to(tensor.dtype).isfinite().all()):
                raise BankError(
                    f"Tensor {name} holds values that are not finite in {str(tensor.dtype).removeprefix('torch.')}: "
                    "the training that made it went wrong, or it is damaged."
                )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def all_tensors(self) -> dict[str, torch.Tensor]:
        """``tensors``, and those of what it starts from by the same names behind ``start.``."""
        before = {} if self.start is None else self.start.all_tensors()
        return self.tensors() | {_START + name: tensor for name, tensor in before.items()}

    def load_all_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take what ``all_tensors`` gave.

        Raises:
            BankError: as ``load_tensors``.
        """
        own = dict(tensors)
        if self.start is not None:
            before = {name: own.pop(name) for name in tensors if name.startswith(_START)}
            self.start.load_all_tensors({name.removeprefix(_START): tensor for name, tensor in before.items()})
        self.load_tensors(own)

    def finish(self) -> None:
        """Training is over: keep what is served (p-tuning writes its virtual tokens down and drops the encoder)."""
        for key, effect in list(self.effects.items()):
            self._put(key, effect.finished())
        self.draw_from(None)
        self.eval().requires_grad_(False)

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Have the effects draw what they draw while they are trained (dropout) from this generator."""
        for effect in self.effects.values():
            effect.generator = generator

    def effect_of(self, parameter: str) -> tuple[Effect, str] | None:
        """The effect that a parameter (``3_q_low_rank.B``) belongs to, and its name there; None if it is none's."""
        for key, effect in self.effects.items():
            module = _module_name(key) + "."
            if parameter.startswith(module):
                return effect, parameter.removeprefix(module)
        return None

    def _put(self, key: str, effect: Effect) -> None:
        self.effects[key] = effect
        self.add_module(_module_name(key), effect)

    @contextmanager
    def applied(self, base: Base) -> Iterator[None]:
        """Within this context the base computes as customized; afterwards it is the base again, bit for bit.

        Meant for one training step or one pass: see ``Customized.active``.

        Raises:
            BaseInUseError: a customization acts on the base already, this one or another.
        """
        with Hooks(base, [self]) as hooks, hooks.alone(self):
            yield


@dataclass
class Customized:
    """A base and what makes it another: what training returns, evaluation measures and the bank keeps.

    Attributes:
        base: the frozen base; after full fine-tuning, the moved copy.
        customization: template and effects.
        origin: the untouched base. The same object as ``base`` for every method but full.
        reference: the frozen customization of ``origin`` that its training begins at, which preference objectives hold
            it near to; None where that is ``origin`` itself.
    """

    base: Base
    customization: Customization
    origin: Base
    reference: Customization | None = None

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
        moved = self.base.parameters if self.moves_base else 0
        return moved + self.customization.trainable_parameters

    @property
    def moves_base(self) -> bool:
        """Whether the base's own weights are trained."""
        return self.method.trains == "base"

    def rate_of(self, parameter: str) -> float:
        """The multiple of the learning rate that a parameter gets: the method's, or an effect's own beside it.

        Args:
            parameter: its name in the customization (``3_q_low_rank.B``), or in the base that moves.
        """
        found = self.customization.effect_of(parameter)
        if found is not None and found[0].learning_rate is not None:
            return found[0].learning_rate / self.method.learning_rate
        return self.method.rate_of(parameter)

    def identity_of(self, parameter: str) -> torch.Tensor:
        """What a parameter is where nothing is customized: its effect's identity, or the base's own weight.

        Args:
            parameter: as for ``rate_of``.
        """
        found = self.customization.effect_of(parameter)
        if found is not None:
            return found[0].identity(found[1])
        return self.origin.model.get_parameter(parameter).detach()

    def finish(self) -> None:
        """End of training: nothing moves any more."""
        self.customization.finish()
        self.base.model.eval().requires_grad_(False)

    @contextmanager
    def active(self) -> Iterator[Base]:
        """The base, computing as customized in this thread until the context ends.

        For one step: its forward pass and the backward pass of what that gave. Meanwhile the base serves nothing else:
        another customization, this one once more, an engine's pass and another thread's forward pass are refused.
        Passes that other threads are in end first.

        Raises:
            BaseInUseError: a customization acts on the base already, this one or another.
        """
        with self.customization.applied(self.base):
            yield self.base


def customize(
    base: Base,
    method: Method,
    template: Template,
    rows: Sequence[Row] = (),
    labels: Sequence[str] | None = None,
    seed: int = 0,
    added: Mapping[str, Effect] | None = None,
    start: Customization | None = None,
) -> Customized:
    """A customization as its training begins: its effects at their identity, its prompt drawn.

    Args:
        base: frozen.
        method: settings of the method.
        template: the task's plain template, or that of ``start``, to which the method may add.
        rows: training rows, for methods that show some.
        labels: of a classification task.
        seed: of everything drawn.
        added: effects that the objective brings, whatever the method.
        start: a finished customization of the base, whose effects act before the new ones and stay as they are.

    Raises:
        TrainingError: no room for the virtual tokens of both, or a method that moves the base below a start's effects.
    """
    generator = torch.Generator().manual_seed(seed)
    template = method.prompt(template, rows, labels, seed)
    template.check_marks()
    if start is not None:
        _check_start(base, method, template, start)
    effects = {**method.effects(base, generator, labels), **(added or {})}
    customization = Customization(method, template, effects, start).to(base.device)
    running = base.copy_to_move() if method.trains == "base" else base
    return Customized(running, customization, base, start)


def _check_start(base: Base, method: Method, template: Template, start: Customization) -> None:
    if method.trains == "base" and start.acts:
        raise TrainingError(
            f"{method.name} moves the base's weights, on which the effects of {start.method.name} rest: write them "
            "into the weights (tunescope bank export ENTRY --to transformers --out FOLDER) and train --base FOLDER."
        )
    if template.virtual_tokens >= base.context_length:
        raise TrainingError(
            f"{template.virtual_tokens} virtual tokens, those it starts from among them, leave no room for text: the "
            f"context of {base.name} has {base.context_length} tokens. Take fewer virtual tokens."
        )


def go_on(
    entry: Customized, template: Template, labels: Sequence[str] | None, added: Mapping[str, Effect]
) -> Customized:
    """A customization whose own tensors begin where those of a finished one are; ``entry`` is its reference.

    What training alone needed is gone: p-tuning's virtual tokens are trained without their encoder. Of an objective's
    heads those stay that ``added`` names.

    Args:
        entry: finished; it stays as it is.
        template: of the result.
        labels: of the task that ``entry`` was trained on.
        added: effects that the objective brings.
    """
    before = entry.customization
    made = at_rest(entry.origin, before.method, template, labels, added, before.start, trained_at_rest=True)
    own, found = made.customization.tensors(), before.tensors()
    made.customization.load_tensors({name: found.get(name, tensor) for name, tensor in own.items()})
    made.customization.requires_grad_(True)
    made.reference = before
    return made


def at_rest(
    base: Base,
    method: Method,
    template: Template,
    labels: Sequence[str] | None = None,
    added: Mapping[str, Effect] | None = None,
    start: Customization | None = None,
    *,
    trained_at_rest: bool = False,
) -> Customized:
    """A finished customization whose tensors are still to be loaded, with ``load_tensors``.

    Args:
        base: frozen.
        method: settings of the method; the moved base of ``full`` is loaded apart.
        template: as it was trained.
        labels: of the task, as they were when training began.
        added: effects that the objective brought.
        start: what it starts from, at rest too.
        trained_at_rest: whether training moved the tensors that are kept, even where the method trains others.
    """
    effects = {**method.effects(base, torch.Generator(), labels), **(added or {})}
    customization = Customization(method, template, effects, start).to(base.device)
    customization.finish()
    if trained_at_rest:
        customization.trainable_parameters = sum(tensor.numel() for tensor in customization.tensors().values())
    return Customized(base, customization, base)


def _module_name(key: str) -> str:
    """A module's name has no dots."""
    return key.replace(".", "_")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
