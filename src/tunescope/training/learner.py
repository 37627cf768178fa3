"""A learner: one customization in training, with all that is its own."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from tunescope import peak_memory, storage
from tunescope.base import Base
from tunescope.base.device import random_states, set_random_states
from tunescope.data.batching import Batch, BatchOrder
from tunescope.data.packing import by_length
from tunescope.errors import TrainingError
from tunescope.methods import Customized
from tunescope.objectives import Objective, Services
from tunescope.team import this_team
from tunescope.training.checkpoint import FILE, load_checkpoint, save_checkpoint
from tunescope.training.metrics import StepMetrics
from tunescope.training.optimizer import Optimizer, learning_rate_factor
from tunescope.training.result import Counted, TrainResult
from tunescope.training.samples_page import render_samples
from tunescope.training.sampling import sample
from tunescope.training.settings import TrainSettings

_CHECKPOINT_SECONDS = 60.0
# What names of tensors of the learner beside another begin with in their checkpoint.
_BESIDE = "beside."
LOSS = "loss"
SAMPLES, SAMPLES_PAGE = "samples.jsonl", "samples.html"
# Two rounds' orders of the same rows have seeds this far apart.
_ROUNDS_APART = 1_000_000_007


class Learner:
    """A customization with its objective, order of rows, optimizer, random generator, checkpoint and metrics.

    In a team of processes each has the same learner and computes its share of a step's examples; losses, gradients and
    counts are summed over them, so that all take the same step.

    Its run is the objective's rounds, one for most: each begins by collecting examples, on which the same number of
    steps is taken. Several learners over one base can be trained in the same passes (see ``training.loop``); each
    computes what it would compute alone.

    Args:
        customized: at its start; its effects, or its moved base, change.
        objective: gives examples and the loss.
        examples: what ``objective.examples`` made.
        settings: of the run.
        folder: where checkpoints and ``metrics.jsonl`` go; a run that left a checkpoint there goes on from it.
        validation: further examples, which are measured every so often and never learned from.
        services: for an objective that learns from its own samples; by default it can sample.
        beside: a learner that takes its steps with this one, and whose state lies in the same checkpoint: a critic.
        owned: whether this one is to be beside another.

    Attributes:
        result: what the run did so far.
        error: why it ended before its last step; None while nothing went wrong.

    Raises:
        TrainingError: no example, or a checkpoint that is damaged.
        BaseInUseError: something acts on the base, which ``prepare`` needs as it is.
    """

    def __init__(
        self,
        customized: Customized,
        objective: Objective,
        examples: Sequence[Any],
        settings: TrainSettings,
        folder: Path,
        *,
        validation: Sequence[Any] = (),
        services: Services | None = None,
        beside: Learner | None = None,
        owned: bool = False,
    ) -> None:
        if not examples and not owned:
            raise TrainingError("No training row is left: none fits. Raise --max-length or shorten the completions.")
        self.customized, self.objective, self.settings, self.folder = customized, objective, settings, folder
        self.services, self.beside = services or Services(sample, settings.seed), beside
        self.owned, self.team = owned, this_team()
        self._owner: Learner | None = None
        if beside is not None:
            beside._owner = self
        self.result = TrainResult(unit=objective.unit)
        self.error: TrainingError | None = None
        self._optimizer = Optimizer(customized, settings.lr or customized.method.learning_rate, settings.weight_decay)
        self._random = _Randomness(customized, settings.seed, self.team.rank)
        self._round, self._round_steps = -1, 0
        self._examples: Sequence[Any] = ()
        self._stopped = False
        self._parts: list[Batch] = []
        self._weight = 1
        self._step = Counted()
        self._found: list[tuple[torch.Tensor, Mapping[str, torch.Tensor]]] = []
        self._seconds = 0.0
        self._saved_at = time.monotonic()
        if not owned:
            self._load()
        started = time.perf_counter()
        self._given = objective.prepare(customized, examples)
        self._validation = objective.prepare(customized, validation) if validation else []
        self.result.prepare_seconds += time.perf_counter() - started

    @property
    def _examples_type(self) -> TypeAdapter[list[Any]]:
        """Turns a round's examples into JSON values and back."""
        return TypeAdapter(list[self.objective.example])  # type: ignore[name-defined]

    @property
    def base(self) -> Base:
        """What it runs on."""
        return self.customized.base

    @property
    def step(self) -> int:
        """Steps done."""
        return self.result.steps

    @property
    def steps(self) -> int:
        """Steps of the whole run; known once the first round has begun."""
        return self.settings.max_steps or self._round_steps * self.objective.number_of_rounds

    @property
    def runs(self) -> bool:
        """Whether there are steps to take; of two that are beside each other both end where one does."""
        together = [each for each in (self, self.beside, self._owner) if each is not None]
        ended = any(each._stopped or each.error is not None for each in together)
        return not ended and (self._round < 0 or self.step < self.steps)

    @property
    def examples(self) -> Sequence[Any]:
        """What the round that is under way learns from."""
        return self._examples

    def begin_round(self) -> None:
        """Collect the examples of the round that the next step belongs to, unless they are there. Nothing may act."""
        number = self.step // self._round_steps if self._round_steps else 0
        if number == self._round:
            return
        started = time.perf_counter()
        self._take_examples(number, self.objective.collect(number, self.customized, self._given, self.services))
        self._keep_samples()
        self.result.prepare_seconds += time.perf_counter() - started

    # A step: ``next_parts``, then ``loss`` of each part and its backward pass, then ``finish_step``.

    def next_parts(self) -> list[Batch]:
        """The next step's examples, cut into the parts that ``accumulate`` asks for; none where the objective rests, or
        where this process of a team has no share of so few.
        """
        self._parts, self._step, self._weight, self._found, self._seconds = [], Counted(), 1, [], 0.0
        if self.objective.resting:
            return []
        indices = self.team.share_by_length(self._indices(), lambda i: len(self._examples[i]))
        self._random.begin_step(self.step)
        size = max(-(-len(indices) // self.settings.accumulate), 1)
        cuts = [indices[i : i + size] for i in range(0, len(indices), size)]
        self._parts = [self._collated(cut) for cut in cuts]
        own = [sum(self.objective.weight(part) for part in self._parts), *astuple(Counted.of(self._parts))]
        weight, *counts = map(sum, zip(*self.team.gathered(own), strict=True))
        self._weight, self._step = max(weight, 1), Counted(*counts)
        return self._parts

    def loss(self, part: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """A part's share of the step's mean loss, a scalar.

        Args:
            part: of ``next_parts``.
            hidden: [groups · length, hidden], what the vocabulary head reads at its positions.
        """
        found = self.objective.compute_loss(self.customized, part, hidden)
        total = found.total / self._weight
        self._found.append((total.detach(), {name: value / self._weight for name, value in found.measured.items()}))
        return total

    def spend(self, seconds: float) -> None:
        """Count time that was spent on the step under way."""
        self._seconds += seconds

    def finish_step(self) -> StepMetrics | None:
        """Move the parameters by the gradients that the parts left; None where these are not finite.

        That stops this learner alone: ``error`` says why, and the step is not taken.
        """
        started = time.perf_counter()
        found = self._summed()
        loss, moves, norm = found.pop(LOSS, 0.0), self._step.rows > 0, 0.0
        if moves:
            self.team.add_gradients(self._optimizer.parameters.values())
            norm = self._optimizer.gradient_norm(self.settings.max_grad_norm)
        if not math.isfinite(loss) or not math.isfinite(norm):
            self.error = TrainingError(self._not_finite(loss))
            return None
        measured = Counter[str](self.objective.observed)
        measured.update(found)
        factor = learning_rate_factor(self.step, self.steps, self.settings.warmup)
        if moves:
            self._optimizer.step(factor)
            self.objective.saw(found)
        self.spend(time.perf_counter() - started)
        self.result.count(self._step, loss, measured, self._seconds)
        if self._validation and self._validates_now():
            measured.update(self._validate())
        result = self.result
        rate = result.tokens / max(result.seconds, 1e-9)
        lr = self._optimizer.lr * factor
        return StepMetrics(
            self.step, self.steps, loss, norm, lr, self._step.tokens, result.seconds, rate, dict(measured)
        )

    def _summed(self) -> dict[str, float]:
        """The step's ``loss`` and what else was measured, summed over its parts and over the team."""
        own = Counter[str]()
        for total, values in self._found:
            own.update({LOSS: total.item()} | {name: value.item() for name, value in values.items()})
        found = Counter[str]()
        for each in self.team.gathered(own):
            found.update(each)
        return dict(found)

    def stop(self) -> None:
        """End here: no further step is taken."""
        self._stopped = True
        self.result.stopped_early = self.step < self.steps

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within this context dropout acts, drawn by this learner's own generator."""
        with self._random.own():
            _set_training(self.customized, True)
            try:
                yield
            finally:
                _set_training(self.customized, False)

    def checkpoint_is_due(self) -> bool:
        """After the last step; never when it was the run's last."""
        if self.owned:
            return False
        every = self.settings.checkpoint_every
        due = self.step % every == 0 if every else time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS
        return due and self.runs

    def save(self) -> None:
        """Write a checkpoint of the state after the last step, and of the learner beside it; one process of a team
        does.
        """
        if not self.team.writes:
            return
        self.result.peak_memory_mb = max(self.result.peak_memory_mb, peak_memory.peak_mb(self.base.device))
        tensors, state = self._tensors(), self._state()
        if self.beside is not None:
            tensors |= {_BESIDE + name: tensor for name, tensor in self.beside._tensors().items()}
            state["beside"] = self.beside._state()
        save_checkpoint(self.folder, tensors, state)
        self._saved_at = time.monotonic()

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self._optimizer.tensors(), **self._random.tensors()}

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"result": asdict(self.result), "objective": self.objective.state()}
        if type(self.objective).collect is not Objective.collect:  # what the rows make is made again
            state |= {"round": self._round, "round_steps": self._round_steps}
            state["examples"] = self._examples_type.dump_python(list(self._examples), mode="json")
        return state

    def _load(self) -> None:
        """Go on from the checkpoint, if there is one; a learner beside another is loaded with that one."""

        def restore(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
            if self.beside is not None:
                own = {n.removeprefix(_BESIDE): tensor for n, tensor in tensors.items() if n.startswith(_BESIDE)}
                self.beside._restore(own, state["beside"])
            self._restore({n: tensor for n, tensor in tensors.items() if not n.startswith(_BESIDE)}, state)

        load_checkpoint(self.folder, restore)

    def _restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
        self._optimizer.load_tensors(tensors)
        self._random.load_tensors(tensors)
        self.objective.load_state(state["objective"])
        self.result = TrainResult(**state["result"])  # the recipe is the same, so it has the same fields
        if "round" in state:
            self._round_steps = state["round_steps"]
            self._take_examples(state["round"], self._examples_type.validate_python(state["examples"]))

    def _keep_samples(self) -> None:
        """Add some of the round's samples to the files for people; a round that is collected again replaces its own."""
        if not (shown := self.objective.samples) or not self.team.writes:
            return
        path = self.folder / SAMPLES
        kept = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in kept if json.loads(line)["round"] < shown[0]["round"]]
        lines = [*kept, *(json.dumps(each, ensure_ascii=False) + "\n" for each in shown)]
        storage.atomic_write(path, "".join(lines))
        page = render_samples(self.objective, self.customized.method.name, self.base.name, [*map(json.loads, lines)])
        storage.atomic_write(self.folder / SAMPLES_PAGE, page)

    def _take_examples(self, number: int, examples: Sequence[Any]) -> None:
        if not examples:
            raise TrainingError(f"Round {number + 1} collected no example to learn from.")
        self._round, self._examples = number, examples
        if not self._round_steps:
            self._round_steps = steps_of_round(self.settings, len(examples), self.objective.number_of_rounds)
        seed = self.settings.seed + _ROUNDS_APART * number
        self._order = BatchOrder.of(examples, self.settings.batch_size, seed)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def _indices(self) -> list[int]:
        """Of the next step's examples."""
        epoch, index = divmod(self.step - self._round * self._round_steps, self._order.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._order.epoch(epoch))
        return self._epoch[1][index]

    def _collated(self, indices: Sequence[int]) -> Batch:
        return self.objective.collate([self._examples[i] for i in indices]).to(self.base.device)

    def _validates_now(self) -> bool:
        every = self.settings.validate_every or self._order.batches_per_epoch
        return self.step % every == 0 or self.step == self.steps

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Means over the validation examples, as they would be measured in a step without dropout."""

        def of_pass(indices: Sequence[int]) -> dict[str, float]:
            batch = self.objective.collate([self._validation[i] for i in indices]).to(self.base.device)
            with self.customized.active():
                found = self.objective.batch_loss(self.customized, batch)
            measured = {name: value.item() for name, value in found.measured.items()}
            return {"": self.objective.weight(batch), LOSS: found.total.item()} | measured

        totals = Counter[str]()
        passes = list(by_length([len(example) for example in self._validation]))
        for found in self.team.mapped(passes, lambda own: [of_pass(indices) for indices in own]):
            totals.update(found)
        weight = totals.pop("")
        means = {f"validation/{name}": total / max(weight, 1) for name, total in totals.items()}
        self.result.validation.append((self.step, means["validation/loss"]))
        return means

    def _not_finite(self, loss: float) -> str:
        """Which rows did it: those whose own loss is not finite, or all of the step's if it is the gradient."""
        bad = [row for own in self.team.gathered([row for part in self._parts for row in part.rows]) for row in own]
        if not math.isfinite(loss):
            bad = self._rows_without_loss() or bad
        what = "loss" if not math.isfinite(loss) else "gradient"
        kept = (self.folder / FILE).is_file()
        where = f"the last good checkpoint is kept in {self.folder}" if kept else "no checkpoint was due yet"
        return (
            f"The {what} is not finite at step {self.step + 1}. Rows of that step, by line: "
            f"{', '.join(map(str, sorted(bad)))}. The step was not taken; {where}. Look at these rows, or lower the "
            "learning rate (--lr)."
        )

    @torch.no_grad()
    def _rows_without_loss(self) -> list[int]:
        found = []
        for index in self._indices():  # those of the step, which is not counted yet
            alone = self._collated([index])
            with self.customized.active():
                total = self.objective.batch_loss(self.customized, alone).total
            if not torch.isfinite(total):
                found += alone.rows
        return found


def steps_of_round(settings: TrainSettings, examples: int, rounds: int = 1) -> int:
    """Optimizer steps of a round over ``examples`` examples."""
    if settings.max_steps is not None:
        return -(-settings.max_steps // rounds)
    return max(1, math.ceil(settings.epochs * -(-examples // settings.batch_size)))


class _Randomness:
    """A learner's own random generator, so that nothing else that draws changes what it computes.

    Effects draw from a generator that is handed to them. The dropout of a moved base knows torch's own only, which
    therefore has this learner's state while it takes a step.
    """

    def __init__(self, customized: Customized, seed: int, rank: int) -> None:
        self._seed, self._rank = seed, rank
        self._device = customized.base.device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        customized.customization.draw_from(self._generator)
        self._states: dict[str, torch.Tensor] | None = None
        if customized.moves_base:
            self._states = _states_after(seed, self._device)

    def begin_step(self, step: int) -> None:
        """Draw otherwise than the first process of a team, by the step's number: that state is in no checkpoint."""
        if self._rank == 0:
            return
        seed = hash((self._seed, self._rank, step)) % 2**63
        self._generator.manual_seed(seed)
        if self._states is not None:
            self._states = _states_after(seed, self._device)

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """Within this context torch's generator has this learner's state, where it needs one."""
        if self._states is None:
            yield
            return
        before = random_states(self._device)
        set_random_states(self._device, self._states)
        try:
            yield
        finally:
            self._states = random_states(self._device)
            set_random_states(self._device, before)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its state, by name."""
        states = {"generator": self._generator.get_state(), **(self._states or {})}
        return {f"random.{name}": state for name, state in states.items()}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what ``tensors`` returned.

        Raises:
            KeyError: no state of that kind.
        """
        self._generator.set_state(tensors["random.generator"])
        if self._states is not None:
            self._states = {name: tensors[f"random.{name}"] for name in self._states}


def _states_after(seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Those of torch's own generators behind ``torch.manual_seed(seed)``; they are what they were."""
    before = random_states(device)
    torch.manual_seed(seed)
    found = random_states(device)
    set_random_states(device, before)
    return found


def _set_training(customized: Customized, on: bool) -> None:
    """Dropout of the effects; the base's own dropout only where the base itself is trained."""
    customized.customization.train(on)
    if customized.moves_base:
        customized.base.model.train(on)
