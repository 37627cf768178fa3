"""PEFT's ``adapter_config.json``: checked when it is read, and which of a base's modules it means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunescope import bounded
from tunescope.base import Base
from tunescope.errors import BankError
from tunescope.foreign import read_object

CONFIG = "adapter_config.json"
# What changes more than our effects can: an adapter that uses one of these is refused.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# A pattern of these characters only is a plain name (its dots match any character), and is matched in an instant.
_NAME = re.compile(r"[\w.-]*")
_SECONDS = 10.0

_Text = Annotated[str, Field(max_length=10_000)]
_Many = Field(max_length=10_000)  # far more modules than any model has
Modules = _Text | Annotated[list[_Text], _Many] | None
Rank = Annotated[int, Field(ge=1, le=1_000_000)]
Alpha = Annotated[float, Field(ge=-1e6, le=1e6)]


class PeftConfig(BaseModel):
    """What is read of PEFT's settings; the others say how it was trained, or are refused in ``read_config``."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    peft_type: str
    bias: str | None = None
    target_modules: Modules = None
    exclude_modules: Modules = None
    feedforward_modules: Modules = None
    layers_to_transform: int | Annotated[list[int], _Many] | None = None
    layers_pattern: Modules = None
    r: Rank = 8
    lora_alpha: Alpha = 8.0
    rank_pattern: Annotated[dict[_Text, Rank], _Many] | None = None
    alpha_pattern: Annotated[dict[_Text, Alpha], _Many] | None = None
    use_rslora: bool | None = None
    use_dora: bool | None = None
    lora_dropout: Annotated[float, Field(ge=0, le=1)] | None = None
    init_lora_weights: bool | str | None = None

    @property
    def kind(self) -> str:
        """The kind of adapter, in capitals."""
        return self.peft_type.upper()

    def targeted(self, base: Base) -> list[str]:
        """The modules that are targeted, by PEFT's rules.

        Raises:
            BankError: a pattern that is none, or takes too long to match.
        """
        modules = {
            path: module
            for path, module in base.model.named_modules()
            if isinstance(module, nn.Linear | Conv1D | nn.Embedding)
        }
        if self.target_modules == "all-linear":
            head = base.model.get_output_embeddings()
            found = [p for p, each in modules.items() if each is not head and not isinstance(each, nn.Embedding)]
        else:
            found = matching(self.target_modules, list(modules))
            if not isinstance(self.target_modules, str):
                chosen = self._in_layers(found)
                found = [path for path in found if path in (self.target_modules or []) or path in chosen]
        excluded = set(matching(self.exclude_modules, found))
        return [path for path in found if path not in excluded]

    def ranks_and_alphas(self, paths: Sequence[str]) -> dict[str, tuple[int, float]]:
        """Each module's rank and alpha."""
        ranks, alphas = (_patterned(each, paths) for each in (self.rank_pattern, self.alpha_pattern))
        return {path: (ranks.get(path, self.r), float(alphas.get(path, self.lora_alpha))) for path in paths}

    def _in_layers(self, paths: Sequence[str]) -> set[str]:
        layers = self.layers_to_transform
        layers = [layers] if isinstance(layers, int) else layers
        if not layers:
            return set(paths)
        given = self.layers_pattern or []
        names = [given] if isinstance(given, str) else given
        patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in names or [r"[^.]*"]]
        numbers: dict[str, str] = {}
        for found in _found(patterns, paths, whole=False, plain=names):
            numbers = {**found, **numbers}  # the first pattern that matches decides
        return {path for path, number in numbers.items() if int(number) in layers}


def read_config(folder: Path) -> PeftConfig:
    """Read and check a folder's settings.

    Raises:
        BankError: no such file, one that is damaged, a value of another type or beyond bounds (named), or a setting
            that has no equivalent here.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise BankError(f"{folder} is not a PEFT adapter: it has no {CONFIG}.")
    try:
        raw = read_object(file)
    except ValueError as error:
        raise BankError(f"{folder} is damaged: {CONFIG} {error}. Copy the adapter again.") from error
    try:
        config = PeftConfig.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where, given = ".".join(map(str, first["loc"])), repr(first["input"])
        given = given if len(given) <= 80 else f"{given[:80]}…"
        raise BankError(f"{file}: {where}: {first['msg']}, got {given}. Copy the adapter again.") from error
    if used := [name for name in _UNSUPPORTED if raw.get(name)]:
        raise BankError(f"{file} uses {', '.join(used)}, which has no equivalent here.")
    if config.bias not in (None, "none"):
        raise BankError(f"{file} trains biases (bias={config.bias}), which has no equivalent here.")
    return config


def matching(modules: Modules, paths: Sequence[str]) -> list[str]:
    """Those of ``paths`` that are meant: one text is a pattern for the whole path, several are endings of it.

    Raises:
        BankError: a pattern that is none, or takes too long to match.
    """
    if isinstance(modules, str):
        (found,) = _found([modules], paths, whole=True)
        return [path for path in paths if path in found]
    return [path for path in paths if any(path == name or path.endswith(f".{name}") for name in modules or ())]


def _patterned(patterns: dict[str, Any] | None, paths: Sequence[str]) -> dict[str, Any]:
    """Path -> the value of the first pattern that matches its end."""
    values = patterns or {}
    found = _found([rf"(.*\.)?({name})$" for name in values], paths, whole=False, plain=values)
    return {path: value for own, value in reversed([*zip(found, values.values(), strict=True)]) for path in own}


def _found(
    patterns: Sequence[str], paths: Sequence[str], *, whole: bool, plain: Iterable[str] | None = None
) -> list[dict[str, str]]:
    """For each pattern: the paths that it matches, with the text of its last group.

    A pattern can take exponential time, so unless all are ``plain`` names they are matched in a process of their own,
    which is ended after ``_SECONDS``.
    """
    if all(_NAME.fullmatch(name) for name in (patterns if plain is None else plain)):
        return bounded.matches(list(patterns), list(paths), whole)
    try:
        return bounded.call(bounded.matches, list(patterns), list(paths), whole, seconds=_SECONDS)
    except bounded.TooMuch as error:
        raise BankError(f"{CONFIG}: matching its patterns to the base's modules {error}. Name the modules.") from error
