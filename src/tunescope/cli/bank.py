"""``bank``: look after customizations at rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from tunescope import bank
from tunescope.bank.merge import Combination
from tunescope.base import load_base
from tunescope.base.device import dtype_name
from tunescope.cli.loading import base_of
from tunescope.cli.output import Output, print_facts
from tunescope.errors import BankError, UnknownNameError
from tunescope.methods import Customized
from tunescope.storage import MARKER
from tunescope.version import __version__


def list_bank(folder: Path, output: Output) -> None:
    """A line an entry."""
    if not folder.is_dir():
        raise BankError(f"There is no folder {folder}. A bank is made by: tunescope train METHOD --out {folder}/NAME")
    entries = bank.list_entries(folder)
    values = []
    for path in entries:
        try:
            record = bank.read_record(path)
        except BankError as error:  # the others can still be listed
            output.note(str(error))
            continue
        values.append(
            {
                "name": path.name,
                "method": record.method,
                "base": record.base.name,
                "fingerprint": record.base.fingerprint.short,
                "data": record.data.name if record.data else None,
                "score": (record.card or {}).get("score"),
                "size_mb": round(bank.size_mb(path), 3),
            }
        )

    def show(console: Console) -> None:
        if not values:
            console.print(f"{folder} has no entries.")
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in values[0]:
            table.add_column(name)
        for row in values:
            table.add_row(
                *(
                    "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)
                    for cell in row.values()
                )
            )
        console.print(table)

    output.result(values, show)


def show_entry(entry: Path, output: Output) -> None:
    """Everything an entry's record says."""
    record: dict[str, Any] = bank.read_record(entry).model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": found for name, found in value.items()}
        else:
            flat[key] = value
    output.result(record, lambda console: print_facts(console, flat))


def verify_entry(entry: Path, base: str | None, device: str | None, output: Output) -> None:
    """Check an entry and say what was checked."""
    found = bank.verify(entry, base_of(entry, base, device))
    values = {"entry": str(entry), "verified": True, "max_logit_error": found.max_error, "dtype": found.dtype}
    values["every_file"] = found.sealed
    if not found.sealed:
        output.note(
            f"{entry / MARKER} is missing, which holds the checksums of the other files: only base, tensors, template "
            "and logits were checked."
        )

    def show(console: Console) -> None:
        kept = "" if found.max_error is None else f", logits within {found.max_error:.2g} of those kept ({found.dtype})"
        console.print(f"{entry}: base, tensors and template are as saved{kept}.")

    output.result(values, show)


def export_entry(entry: Path, to: str, out: Path, base: str | None, device: str | None, output: Output) -> None:
    """Write an entry in another tool's format."""
    merged = bank.export(entry, out, to=to, base=base, device=device)  # type: ignore[arg-type]
    values: dict[str, Any] = {"entry": str(entry), "to": to, "path": str(out)}
    if merged is not None:
        values |= {"dtype": merged.dtype, "max_logit_error": merged.max_error, "mean_logit_error": merged.mean_error}
    output.result(values, lambda console: print_facts(console, values))


def import_entry(
    folder: Path, base: str, out: Path, template: str | None, style: str, device: str | None, output: Output
) -> None:
    """Make an entry of a folder that PEFT wrote."""
    with bank.claimed(out, overwrite=False):
        loaded = load_base(base, device=device)
        customized = bank.import_peft(folder, loaded, pattern=template, style=style)
        _save(customized, out, {"imported_from": str(folder)})
    values = {
        "path": str(out),
        "method": customized.method.name,
        "trainable_parameters": customized.trainable_parameters,
        "style": customized.template.style,
        "style_by_default": style == "auto",
        "template": template,
    }
    output.result(values, lambda console: print_facts(console, values))


def merge_entries(
    entries: list[Path],
    weights: str | None,
    how: str,
    density: float,
    rank: int | None,
    out: Path,
    device: str | None,
    output: Output,
) -> None:
    """One LoRA entry of several."""
    if how not in get_args(Combination):
        raise UnknownNameError("combination (--how)", how, get_args(Combination))
    with bank.claimed(out, overwrite=False):
        base = base_of(entries[0], None, device)
        loras = [bank.load(entry, base) for entry in entries]
        shares = _weights(weights, len(entries))
        customized, error = bank.merge(loras, shares, how=how, density=density, rank=rank)  # type: ignore[arg-type]
        _save(customized, out, {"merged_from": [str(entry) for entry in entries], "how": how, "weights": shares})
    values = {"path": str(out), "how": how, "weights": shares, "relative_error": error}
    output.result(values, lambda console: print_facts(console, values))


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1 / count] * count
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise BankError(f"--weights {text!r} is not a list of numbers such as 0.7,0.3.") from None
    if len(found) != count:
        raise BankError(f"--weights names {len(found)} numbers for {count} entries.")
    return found


def _save(customized: Customized, out: Path, origin: dict[str, Any]) -> None:
    """Write an entry that was not trained here; its record says where it comes from."""
    record = bank.Record(
        tunescope=__version__,
        method=customized.method.name,
        method_settings=customized.method.model_dump(mode="json"),
        objective=None,
        dtype=dtype_name(customized.base.dtype),
        template=customized.template,
        base=bank.BaseRecord(name=customized.origin.name, fingerprint=customized.origin.fingerprint),
        training=origin,
    )
    bank.save(customized, out, record)
