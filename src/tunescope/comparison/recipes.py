"""Each method's chosen training as a file for ``tunescope run``: its settings, and which rows it learned from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tunescope.bank import Record
from tunescope.methods.registry import METHODS
from tunescope.objectives.registry import OBJECTIVES
from tunescope.training import TrainSettings

LEARNED = "learned.txt"
"""The lines of the rows that were learned from, in a comparison's folder."""


def recipe_of(record: Record, named: Mapping[str, Any], seed: int, out: str) -> str:
    """The YAML text of one command that trains an entry of a comparison again, to the same tensors.

    Args:
        record: of the entry.
        named: what the command line calls base and data, and how the data are read: keys of ``train``.
        seed: of the candidate.
        out: the comparison's folder, as it was named.
    """
    method = METHODS.load(record.method).parse(record.method_settings)
    chosen = {"command": "train", "method": record.method, **_changed(method)}
    if record.objective not in (None, "sft"):
        objective = OBJECTIVES.load(record.objective or "").parse(record.objective_settings)
        chosen |= {"objective": record.objective, **_changed(objective)}
    chosen |= {key: value for key, value in named.items() if value is not None}
    chosen |= {"lines": f"{out}/{LEARNED}", "style": record.template.style, "dtype": record.dtype}
    if record.train_settings is not None:
        chosen |= _changed(TrainSettings.model_validate(record.train_settings))
    chosen |= {"seed": seed} if seed else {}
    chosen["out"] = f"{out}-again/{record.method}"
    return yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True, width=1_000)


def _changed(settings: Any) -> dict[str, Any]:
    """Settings that are not the defaults, in JSON's values."""
    found: dict[str, Any] = settings.model_dump(mode="json", exclude_defaults=True)
    return found
