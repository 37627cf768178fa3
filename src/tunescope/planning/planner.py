"""Will it fit, and how long will it take: for every method and objective, before anything is computed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field

from tunescope.base.device import dtype_name
from tunescope.base.sketch import Outline, outline
from tunescope.data.encoding import Encoder
from tunescope.data.reading import Table, read
from tunescope.data.template import Template, default_template
from tunescope.errors import DataError, TunescopeError
from tunescope.methods import Method
from tunescope.methods.registry import METHODS
from tunescope.objectives import Objective, PolicyObjective
from tunescope.objectives.registry import OBJECTIVES
from tunescope.planning.machines import GPUS, Machine, this_machine
from tunescope.planning.passes import Places
from tunescope.planning.run import Parts, Run, Setting
from tunescope.planning.texts import Texts
from tunescope.settings import Settings
from tunescope.training import TrainSettings
from tunescope.training.prepared import Reading

# SteerLM 2 is left out: it has RLOO's passes, and an attribute model that only a policy with attributes can name.
_PLANNED = ("sft", "dpo", "reward", "attributes", "ppo", "rloo", "grpo")
# Of a policy: any reward does, as a reward model's pass is planned for.
_REWARD = ("words:30",)


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class PlanSettings(Settings):
    """What is planned; each is a flag of ``tunescope plan``."""

    length: int | None = Field(None, gt=3)
    """Tokens of a text, prompt and answer, where there are no data."""
    texts: int = Field(1000, gt=0)
    """How many texts of that length."""
    methods: Annotated[tuple[str, ...], AfterValidator(_once)] = ()
    """Methods to plan, by their defaults. All that train something by default."""
    objectives: Annotated[tuple[str, ...], AfterValidator(_once)] = ()
    """Objectives to plan. By default all that can learn from the data."""
    max_new_tokens: int = Field(32, gt=0)
    """Most tokens of a sample, where a policy samples."""
    rounds: int = Field(20, gt=0)
    """A policy's rounds."""
    prompts: int = Field(16, gt=0)
    """Prompts of a policy's round."""
    processes: int = Field(1, gt=0)
    """Processes that share each step's rows: with --gpu a GPU each, else parts of this machine."""
    n: int = Field(4, gt=1)
    """Samples of each of these prompts."""


@dataclass(frozen=True)
class Row:
    """A method and an objective.

    Attributes:
        method: name.
        objective: name.
        trainable_parameters: numbers that move; for PPO without the critic's.
        peak_memory_mb: at the highest, in 1e6 bytes, beside the base; of each process.
        seconds: of training.
        steps: of the optimizer.
        fits: whether base and peak together are within the machine's memory.
        parts: of the peak, in 1e6 bytes.
        remedy: the least that would make it fit, in words; None where it fits.
        options: that this remedy adds to ``tunescope train``; empty where it is none of training's.
    """

    method: str
    objective: str
    trainable_parameters: int
    peak_memory_mb: float
    seconds: float
    steps: int
    fits: bool
    parts: Parts
    remedy: str | None = None
    options: str = ""


@dataclass(frozen=True)
class Plan:
    """What every method and objective takes.

    Attributes:
        base: name.
        parameters: of it.
        weights_mb: of its weights in this precision, in 1e6 bytes.
        dtype: the precision.
        machine: that was planned for; what each process has of it.
        processes: that share each step's rows.
        data: what is learned from, in words.
        calibration: what measured seconds were of planned ones; 1 where nothing was measured.
        rows: in the order of the spectrum.
    """

    base: str
    parameters: int
    weights_mb: float
    dtype: str
    machine: Machine
    processes: int
    data: str
    calibration: float
    rows: list[Row]

    def summary(self) -> dict[str, Any]:
        """The object that ``plan --json`` prints."""
        machine = self.machine
        return {
            "base": self.base,
            "parameters": self.parameters,
            "weights_mb": round(self.weights_mb, 1),
            "dtype": self.dtype,
            "machine": {"name": machine.name, "memory_mb": round(machine.memory_mb), "measured": machine.measured},
            "processes": self.processes,
            "data": self.data,
            "calibration": round(self.calibration, 3),
            "rows": [_rounded(asdict(row)) for row in self.rows],
        }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _rounded(value) if isinstance(value, dict) else round(value, 4) if isinstance(value, float) else value
        for name, value in values.items()
    }


def plan(
    base: str,
    data: str | Path | Table | None = None,
    *,
    settings: PlanSettings | None = None,
    training: TrainSettings | None = None,
    machine: Machine | None = None,
    dtype: torch.dtype | None = None,
    how: Reading | None = None,
) -> Plan:
    """What runs of every method and objective take, before anything is computed; arguments as of ``Planner.of``."""
    planner = Planner.of(base, data, settings=settings, training=training, machine=machine, dtype=dtype, how=how)
    return planner.plan()


class Planner:
    """Plans runs of one base on one machine.

    Args:
        outline: of the base.
        machine: to plan for.
        dtype: of the weights; None for what the machine is fast at.
        template: of the task.
        texts: what may be learned from; of several the first that an objective can learn from.
        settings: what to plan.
        training: the loop's settings.
    """

    def __init__(
        self,
        outline: Outline,
        machine: Machine,
        dtype: torch.dtype | None,
        template: Template,
        texts: Sequence[Texts],
        settings: PlanSettings,
        training: TrainSettings,
    ) -> None:
        self.machine = machine.shared_by(settings.processes)
        self.texts, self.settings, self.training = texts, settings, training
        self.places = Places(outline, dtype or machine.dtype, machine.device, training.recompute)
        self.template = template

    @classmethod
    def of(
        cls,
        base: str,
        data: str | Path | Table | None = None,
        *,
        settings: PlanSettings | None = None,
        training: TrainSettings | None = None,
        machine: Machine | None = None,
        dtype: torch.dtype | None = None,
        how: Reading | None = None,
    ) -> Planner:
        """A planner of runs on these data.

        Args:
            base: what ``load_base`` takes, or a folder with a configuration alone.
            data: what ``read`` takes, or a table; None plans for texts of ``settings.length``.
            settings: what to plan.
            training: the loop's settings.
            machine: to plan for; this one where None.
            dtype: of the weights; None for what the machine is fast at.
            how: the data are read.

        Raises:
            TunescopeError: neither data nor a length, or both; a length beyond the context; data that no tokenizer is
                there for.
            DataError: rows that do not fit.
        """
        settings, training, how = settings or PlanSettings(), training or TrainSettings(), how or Reading()
        found = outline(base)
        template = default_template(found.tokenizer, pattern=how.pattern, style=how.style)
        texts = _texts(found, template, data, how, settings, training)
        return cls(found, machine or this_machine(), dtype, template, texts, settings, training)

    @cached_property
    def setting(self) -> Setting:
        """What the runs have in common."""
        parameters, processes = self.places.whole.parameters, self.settings.processes
        return Setting(self.places, self.machine, self.template, self.training, parameters, processes)

    @cached_property
    def weights(self) -> float:
        """Bytes of the base."""
        return self.places.weights()

    def cells(self) -> list[tuple[Method, Objective, Texts]]:
        """Methods with objectives, and what they learn from.

        Raises:
            UnknownNameError: a name of neither.
            DataError: an objective that was asked for and cannot learn from the data.
        """
        methods = [METHODS.load(name)() for name in self.settings.methods or METHODS.own]
        if idle := [m.name for m in methods if m.trains == "nothing" and self.settings.methods]:
            raise DataError(f"{idle[0]} trains nothing, so there is nothing to plan: it needs the base and its rows.")
        quantized = self.places.outline.quantization
        if quantized and (moving := [m.name for m in methods if m.trains == "base" and self.settings.methods]):
            raise DataError(f"{moving[0]} moves the base's weights, which {quantized} keeps still: plan it without.")
        objectives = [self._objective(name) for name in self.settings.objectives or _PLANNED]
        found = [
            (method, objective, texts)
            for objective in objectives
            if (texts := self._texts_for(objective)) is not None
            for method in methods
            if method.trains != "nothing" and not (quantized and method.trains == "base")
        ]
        return found

    def row(self, method: Method, objective: Objective, texts: Texts, calibration: float = 1.0) -> Row:
        """One of the cells."""
        found = self.setting.run(method, objective, texts.all)
        fits = self._fits(found.parts)
        remedy, options = (None, "") if fits else self._remedy(method, objective, texts, found)
        return Row(
            method.name,
            objective.name,
            found.trained,
            found.parts.total,
            found.seconds * calibration,
            found.steps,
            fits,
            found.parts,
            remedy,
            options,
        )

    def plan(self, calibration: float = 1.0, on_row: Callable[[int], Any] = lambda done: None) -> Plan:
        """All rows; ``on_row`` is called with how many are there."""
        rows = []
        for method, objective, texts in self.cells():
            rows.append(self.row(method, objective, texts, calibration))
            on_row(len(rows))
        names = ", ".join(dict.fromkeys(texts.name for texts in self.texts))
        return Plan(
            self.places.outline.name,
            self.setting.parameters,
            self.weights / 1e6,
            dtype_name(self.places.dtype),
            self.machine,
            self.settings.processes,
            names,
            calibration,
            rows,
        )

    def _objective(self, name: str) -> Objective:
        kind: type[Objective] = OBJECTIVES.load(name)
        if not issubclass(kind, PolicyObjective):
            return kind()
        if name not in _PLANNED:
            raise DataError(f"{name} is not planned. Plan rloo: it has the same passes.")
        given = self.settings
        own = {"max_new_tokens": given.max_new_tokens, "rounds": given.rounds, "prompts": given.prompts, "n": given.n}
        return kind(reward=_REWARD, **own)

    def _texts_for(self, objective: Objective) -> Texts | None:
        found = next((texts for texts in self.texts if texts.fit(objective)), None)
        if found is None and self.settings.objectives:
            raise DataError(
                f"{objective.name} cannot learn from {self.texts[0].name}, which has {self.texts[0].kind}: leave it "
                "out of --objectives, or plan without data by --length."
            )
        return found

    # What does not fit.

    def _fits(self, parts: Parts, weights: float | None = None) -> bool:
        return (self.weights if weights is None else weights) / 1e6 + parts.total <= self.machine.memory_mb

    def _smaller_bases(self, method: Method) -> Iterator[tuple[Places, str, str]]:
        """The base in fewer bits, what that is in words, and the option."""
        if self.places.dtype == torch.float32:
            yield replace(self.places, dtype=torch.bfloat16), "compute in bfloat16", "--dtype bfloat16"
        outline = self.places.outline
        if outline.quantization is None and method.trains == "effects":
            name = f"{outline.name}:nf4"
            quantized = replace(outline, name=name, quantization="nf4")
            words = "keep the base's linear maps in 4 bits, under which it answers a little otherwise"
            yield replace(self.places, outline=quantized), words, f"--base {shlex.quote(name)}"

    def _remedy(self, method: Method, objective: Objective, texts: Texts, run: Run) -> tuple[str, str]:
        """The least change that makes it fit: smaller parts of a step first, as their result is the same."""
        size = self.training.batch_size
        for parts in self._more_parts(size):
            smaller = replace(self.setting, training=self.training.model_copy(update={"accumulate": parts}))
            if self._fits(smaller.parts(method, objective, texts.all)):
                return f"cut each step into {parts} parts: the result is the same", f"--accumulate {parts}"
        if not self.training.recompute:
            again = replace(self.setting, places=replace(self.places, recompute=True))
            for parts in (self.training.accumulate, size):
                less = replace(again, training=self.training.model_copy(update={"accumulate": parts}))
                if self._fits(less.parts(method, objective, texts.all)):
                    cut = f" --accumulate {parts}" if parts > self.training.accumulate else ""
                    return "compute layers again, which takes a third more time", f"--recompute{cut}"
        for places, words, option in self._smaller_bases(method):
            smaller = replace(self.setting, places=places)
            if self._fits(smaller.parts(method, objective, texts.all), places.weights()):
                return words, option
            least = replace(smaller, places=replace(places, recompute=True))
            least = replace(least, training=self.training.model_copy(update={"accumulate": size}))
            if self._fits(least.parts(method, objective, texts.all), places.weights()):
                return f"{words}, compute layers again, a row at a time", f"{option} --recompute --accumulate {size}"
        needed = self.weights / 1e6 + run.parts.total
        larger = sorted((gpu.memory_mb, gpu.name) for gpu in GPUS.values() if gpu.memory_mb >= needed)
        where = f": {larger[0][1]} has it" if larger else ", more than any one GPU known here has"
        return (
            f"needs {needed / 1e3:.1f} GB in one process{where}; or take a smaller base, or a method with effects",
            "",
        )

    def _more_parts(self, size: int) -> Iterator[int]:
        parts = self.training.accumulate * 2
        while parts < size:
            yield parts
            parts *= 2
        if size > self.training.accumulate:
            yield size


def _texts(
    found: Outline,
    template: Template,
    data: str | Path | Table | None,
    how: Reading,
    settings: PlanSettings,
    training: TrainSettings,
) -> list[Texts]:
    if (data is None) == (settings.length is None):
        raise TunescopeError("Give --data, or --length where there are no data yet: one of them.")
    if data is None:
        assert settings.length is not None
        if settings.length > found.context_length:
            raise TunescopeError(
                f"--length {settings.length} is more than the context of {found.name}, {found.context_length} tokens."
            )
        return [Texts.made_up(settings.texts, settings.length, compared=compared) for compared in (False, True)]
    if not found.reads:
        raise TunescopeError(
            f"{found.name} holds no tokenizer, so rows cannot become tokens: copy tokenizer.json there, or plan by "
            "--length in place of data."
        )
    table = data if isinstance(data, Table) else read(data, skip_bad=how.skip_bad)
    pattern, left = how.pattern or table.default_template, how.skip_bad - len(table.skipped)
    texts: list[Texts] = []
    for cut in ("middle", "start"):  # what objectives take from a prompt that is too long
        encoder = Encoder(found.tokenizer, template, found.context_length, training.max_length, cut, table.name)
        texts.append(Texts.of(table, encoder, pattern, left))
        if texts[-1].cut is None:
            break
    return texts
