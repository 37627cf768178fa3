"""What a whole run takes: its memory at the highest, part by part, and its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from tunescope.data.packing import PASS_TOKENS, Group, pack
from tunescope.data.template import Template
from tunescope.methods import LoRA, Method
from tunescope.objectives import DPO, PPO, Critic, Objective, PolicyObjective
from tunescope.planning.counting import Work
from tunescope.planning.machines import Machine
from tunescope.planning.passes import Pass, Places
from tunescope.planning.texts import Load, examples_for, load_of
from tunescope.training import TrainSettings
from tunescope.training.learner import steps_of_round

# What a process needs beside all tensors: libraries' code and buffers. Measured on a CPU; of an accelerator's context
# common experience.
_LIBRARIES, _CONTEXT = 120e6, 600e6
# What a CPU's heap holds more than the activations that live, as a share of them: where passes are of very different
# sizes each leaves gaps that the next does not fill, and large blocks leave them within a pass, too. Measured with
# glibc: 0 to 0.5; none in passes of up to _SMALL tokens of one size. A GPU's peak is of what lives.
_GAPS, _SMALL = 0.4, 512
_FLOAT = 4
# Of each number that AdamW moves: two moments, and a float32 master where it computes in fewer bits.
_MOMENTS, _MASTER = 2 * _FLOAT, _FLOAT
# Bytes that a step of AdamW reads and writes for each number.
_STEP_BYTES = 32
# Rows that the engine samples at once.
_ROWS = 128


@dataclass(frozen=True)
class Parts:
    """Memory at the highest, in 1e6 bytes.

    Attributes:
        copy: of the weights, where they move: the base itself stays as it is.
        effects: what is trained beside the weights, a critic's and a reward model's among them.
        optimizer: AdamW's moments, and float32 masters of weights that compute in bfloat16.
        gradients: of what is trained.
        activations: what the backward pass needs of the forward one, with the logits of a few rows.
        samples: keys, values and logits while a policy samples.
        libraries: what the process needs beside tensors.
    """

    copy: float
    effects: float
    optimizer: float
    gradients: float
    activations: float
    samples: float
    libraries: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Run:
    """What a run takes.

    Attributes:
        trained: numbers that move.
        parts: of its memory, beside the base.
        seconds: of it.
        steps: of the optimizer.
    """

    trained: int
    parts: Parts
    seconds: float
    steps: int


@dataclass(frozen=True)
class _Cell:
    """A run as it is planned.

    Attributes:
        method: that is trained.
        load: its steps.
        passes: of a part of a step: the policy's or the only one, and a critic's.
        prompts: tokens of each prompt of a usual round; empty where nothing is sampled.
        n: samples of each.
        new_tokens: of each sample.
        longest: tokens of the longest sample with its prompt.
    """

    method: Method
    load: Load
    passes: Sequence[Pass]
    prompts: Sequence[int] = ()
    n: int = 0
    new_tokens: int = 0
    longest: int = 0

    @property
    def rows(self) -> int:
        """Samples that are made at once."""
        return min(self.n * len(self.prompts), _ROWS)

    @property
    def sampled_tokens(self) -> int:
        """Of a round's samples, with each prompt once."""
        return sum(self.prompts) + len(self.prompts) * self.n * self.new_tokens


@dataclass(frozen=True)
class Setting:
    """What runs have in common.

    Attributes:
        places: the base, its precision and its device.
        machine: that computes.
        template: of the task, without a method.
        training: the loop's settings.
        parameters: of the base.
        processes: that share each step's rows and a policy's prompts.
    """

    places: Places
    machine: Machine
    template: Template
    training: TrainSettings
    parameters: int
    processes: int = 1

    def run(self, method: Method, objective: Objective, texts: Sequence[Any]) -> Run:
        """What training ``method`` for ``objective`` on ``texts`` takes.

        Args:
            method: that trains something.
            objective: whose examples these texts can be.
            texts: rows, or comparisons.
        """
        cell = self._cell(method, objective, texts)
        seconds, rounds = self._step(cell) * cell.load.steps, objective.number_of_rounds
        if isinstance(objective, PolicyObjective):
            read = (3 + isinstance(objective, PPO)) * cell.sampled_tokens
            seconds += self._sampling(objective, cell) + self._reading(read)
        elif isinstance(objective, DPO):
            seconds += self._reading(sum(map(len, texts)) / self.processes)
        return Run(round(cell.passes[0].trained), self._parts(cell), seconds * rounds, cell.load.steps * rounds)

    def parts(self, method: Method, objective: Objective, texts: Sequence[Any]) -> Parts:
        """The memory of ``run`` alone."""
        return self._parts(self._cell(method, objective, texts))

    def _cell(self, method: Method, objective: Objective, texts: Sequence[Any]) -> _Cell:
        template = method.prompt(self.template, (), None, 0)
        examples = examples_for(objective, texts, template.virtual_ids)
        policy = objective if isinstance(objective, PolicyObjective) else None
        each = min(policy.prompts, len(examples)) if policy else len(examples)
        training = self.training.model_copy(update={"batch_size": min(self.training.batch_size, each)})
        steps = steps_of_round(training, each, objective.number_of_rounds)
        load = load_of(objective, examples, training, steps, self.processes)
        passes = [self.places.training(method, objective, template, load.largest)]
        if isinstance(objective, PPO):
            beside = method if method.trains == "effects" else LoRA()
            passes.append(self.places.training(beside, Critic(), template, load.largest))
        if policy is None:
            return _Cell(method, load, passes)
        lengths = [len(example.prompt) for example in examples]
        usual = lengths[:: max(1, len(lengths) // each)][: each : self.processes]
        new = policy.max_new_tokens
        return _Cell(method, load, passes, usual, policy.n, new, max(lengths) + new)

    def _parts(self, cell: _Cell) -> Parts:
        """At the highest of three: a pass, a step of the optimizer, sampling."""
        passes, load, sampling = cell.passes, cell.load, self._sampling_bytes(cell)
        moves = cell.method.trains == "base"
        size = self.places.dtype.itemsize
        trained = sum(each.trained for each in passes)
        masters = self.parameters if moves and size < _FLOAT else 0
        effects = sum(each.effects for each in passes) + (passes[0].effects if sampling else 0)  # and a reward model's
        gradients = sum(each.gradients for each in passes)
        together = load.largest.packed.computed * len(passes) <= PASS_TOKENS
        highest = sum(p.highest for p in passes) if together else max(p.highest for p in passes)
        activations = highest - (gradients if together else max(p.gradients for p in passes))
        on_cpu = self.machine.device.type == "cpu"
        large = 1 - _SMALL / max(load.largest.packed.computed, _SMALL)
        activations *= 1 + _GAPS * max(load.spread, large) * on_cpu
        at = max(gradients + activations, trained * _FLOAT, sampling)
        in_pass, in_step = at == gradients + activations, at == trained * _FLOAT
        return Parts(
            copy=self.parameters * size * moves / 1e6,
            effects=effects / 1e6,
            optimizer=(trained * _MOMENTS + masters * _MASTER) / 1e6,
            gradients=(gradients if in_pass else trained * _FLOAT if in_step else 0) / 1e6,
            activations=(activations if in_pass else 0) / 1e6,
            samples=(0 if in_pass or in_step else sampling) / 1e6,
            libraries=(_LIBRARIES if on_cpu else _CONTEXT) / 1e6,
        )

    def _sampling_bytes(self, cell: _Cell) -> float:
        """Keys and values of the rows at once, and their logits in float32 and once more while they are sampled."""
        vocabulary = self.places.outline.config.get_text_config().vocab_size
        return self.places.kept(cell.rows, cell.longest) + 2 * _FLOAT * cell.rows * vocabulary

    # Time.

    def _step(self, cell: _Cell) -> float:
        share = cell.load.tokens / cell.load.largest.packed.computed
        found = 0.0
        for each in cell.passes:
            found += self._scaled(each.work, share) + self._seconds(Work(other_bytes=_STEP_BYTES * each.trained))
        return found

    def _sampling(self, policy: PolicyObjective, cell: _Cell) -> float:
        """A round's samples: the prompts once, then a pass a token, which reads all keys and values so far."""
        decoding = self.places.decoding(cell.rows)
        times = policy.n * len(cell.prompts) / cell.rows
        one = self._seconds(decoding + Work(other_bytes=self.places.kept(cell.rows, cell.longest)))
        return times * policy.max_new_tokens * one + self._reading(sum(cell.prompts))

    def _reading(self, tokens: float) -> float:
        """So many tokens under a customization that is not trained then: a reference, a reward."""
        return self._scaled(self._full_pass, tokens / PASS_TOKENS)

    @cached_property
    def _full_pass(self) -> Work:
        """As many tokens as a pass holds, in eight texts of which half is read."""
        length = PASS_TOKENS // 8
        return self.places.reading(pack([Group.of([0] * (length // 2), [[0] * (length // 2)])] * 8))

    def _scaled(self, work: Work, share: float) -> float:
        """The time of a pass over another number of tokens; more than one pass holds are several."""
        return self._seconds(replace(work * share, operations=work.operations * max(share, 1.0)))

    def _seconds(self, work: Work) -> float:
        return self.machine.seconds(work, self.places.dtype)
