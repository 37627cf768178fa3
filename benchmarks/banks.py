"""Banks of customizations that have an effect without having been trained: trained ones cost the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_bank(
    folder: Path, base: Any, methods: Mapping[str, Any], *, moved_by: float, rows: Sequence[Any] = ()
) -> None:
    """Write an entry for each method, its parameters moved at random.

    Args:
        folder: of the bank.
        base: what the entries are for.
        methods: by the entries' names.
        moved_by: the standard deviation.
        rows: for methods that show some.
    """
    import torch

    import tunescope as ts
    from tunescope import bank
    from tunescope.bank import BaseRecord, Record
    from tunescope.data.template import default_template
    from tunescope.methods import customize

    for seed, (name, method) in enumerate(methods.items()):
        made = customize(base, method, default_template(base.tokenizer), rows, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.customization.parameters():
                parameter.add_(moved_by * torch.randn(parameter.shape, generator=generator))
        made.finish()
        record = Record(
            tunescope=ts.__version__, method=method.name, method_settings=method.model_dump(), objective="sft",
            template=made.template, base=BaseRecord(name=base.name, fingerprint=base.fingerprint),
        )  # fmt: skip
        bank.save(made, folder / name, record)
