"""``bank``: look after customizations at rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tunescope.commands import fields
from tunescope.commands.command import Command, Result
from tunescope.commands.report import Report
from tunescope.errors import BankError
from tunescope.settings import MOST, Shown

if TYPE_CHECKING:
    from rich.console import Console

    from tunescope.methods import Customized


@dataclass(frozen=True, kw_only=True)
class Entries(Result):
    """The entries of a bank.

    Attributes:
        folder: which bank.
    """

    folder: Path

    def show(self, console: Console) -> None:
        """A line an entry."""
        from rich.table import Table

        if not self.values:
            console.print(f"{self.folder} has no entries.")
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in self.values[0]:
            table.add_column(name)
        for row in self.values:
            table.add_row(*(_cell(value) for value in row.values()))
        console.print(table)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


class ListRequest(Command):
    """List the entries of a bank."""

    bank: Annotated[fields.HomePath, Shown("BANK", positional=True)]
    """Folder of entries."""

    def run(self, report: Report | None = None) -> Entries:
        """What each entry is. One that is damaged is noted, and the others are listed."""
        from tunescope import bank

        report, folder, values = report or Report(), self.bank, []
        if not folder.is_dir():
            raise BankError(
                f"There is no folder {folder}. A bank is made by: tunescope train METHOD --out {folder}/NAME"
            )
        for name in bank.names_in(folder):
            path = bank.entry_folder(folder / name)
            try:
                record = bank.read_record(path)
            except BankError as error:
                report.note(str(error))
                continue
            values.append(
                {
                    "name": name,
                    "method": record.method,
                    "base": record.base.name,
                    "fingerprint": record.base.fingerprint.short,
                    "data": record.data.name if record.data else None,
                    "score": (record.card or {}).get("score"),
                    "size_mb": round(bank.size_mb(path), 3),
                }
            )
        return Entries(values, folder=folder)


class ShowRequest(Command):
    """Show an entry's record: method, base, data, training, measurements."""

    entry: fields.Entry

    def run(self, report: Report | None = None) -> Result:
        """All that the record says."""
        from tunescope import bank

        record = bank.read_record(self.entry).model_dump(mode="json")
        flat: dict[str, Any] = {}
        for key, value in record.items():
            flat |= (
                {f"{key}.{name}": found for name, found in value.items()} if isinstance(value, dict) else {key: value}
            )
        if nearest := record["template"]["nearest"]:
            flat["template.shots"] = f"{len(record['template']['shots'])}, of which the nearest {nearest} are shown"
        return Result(record, self.entry, flat)


class Verified(Result):
    """What was checked of an entry."""

    def show(self, console: Console) -> None:
        """In a sentence."""
        error, dtype = self.values["max_logit_error"], self.values["dtype"]
        kept = "" if error is None else f", logits within {error:.2g} of those kept ({dtype})"
        console.print(f"{self.path}: base, tensors and template are as saved{kept}.")


class VerifyRequest(Command):
    """Check that an entry still is what was saved: base, tensors, template, and the logits it computes."""

    entry: fields.Entry
    base: fields.OptionalBase = None
    device: fields.Device = None

    def run(self, report: Report | None = None) -> Verified:
        """Check an entry, and say what was checked."""
        from tunescope import bank
        from tunescope.commands.subject import base_of
        from tunescope.storage import MARKER

        found = bank.verify(self.entry, base_of(self.entry, self.base, self.device))
        if not found.sealed:
            (report or Report()).note(
                f"{self.entry / MARKER} is missing, which holds the checksums of the other files: only base, tensors, "
                "template and logits were checked."
            )
        values = {"entry": str(self.entry), "verified": True, "max_logit_error": found.max_error, "dtype": found.dtype}
        return Verified(values | {"every_file": found.sealed}, self.entry)


class ExportRequest(Command):
    """Write an entry for other tools: PEFT's format, a transformers folder with the effects in its weights, a LoRA for
    llama.cpp (gguf), or virtual tokens as embeddings (prompt-embeds)."""

    entry: fields.Entry
    to: str
    """peft, transformers for a merged model folder, gguf, or prompt-embeds."""
    out: fields.HomePath
    """Folder to write."""
    as_lora: int | None = Field(None, gt=0, le=MOST)
    """Write the nearest plain LoRA of this rank, for tools that know nothing else; its error is said."""
    base: fields.OptionalBase = None
    device: fields.Device = None

    def run(self, report: Report | None = None) -> Result:
        """Write an entry in another tool's format."""
        from tunescope import bank

        to: Any = self.to  # checked by export
        merged = bank.export(self.entry, self.out, to=to, base=self.base, device=self.device, rank=self.as_lora)
        values: dict[str, Any] = {"entry": str(self.entry), "to": self.to, "path": str(self.out)}
        if isinstance(merged, float):
            values |= {"rank": self.as_lora, "relative_error": merged}
        elif merged is not None:
            values |= {
                "dtype": merged.dtype,
                "max_logit_error": merged.max_error,
                "mean_logit_error": merged.mean_error,
            }
        return Result(values, self.out)


class ImportRequest(Command):
    """Make an entry of a folder that PEFT wrote (LoRA, IA3, prompt tuning, p-tuning).

    PEFT records no template: say with --style and --template what the adapter was trained under.
    """

    folder: Annotated[fields.HomePath, Shown("FOLDER", positional=True)]
    """A folder that PEFT wrote."""
    base: fields.BaseName
    out: fields.EntryOut
    device: fields.Device = None
    template: fields.Template = None
    style: fields.Style = "auto"

    def run(self, report: Report | None = None) -> Result:
        """Read the folder and write an entry."""
        from tunescope import bank
        from tunescope.base import load_base

        with bank.claimed(self.out, overwrite=False):
            base = load_base(self.base, device=self.device)
            customized = bank.import_peft(self.folder, base, pattern=self.template, style=self.style)
            _save(customized, self.out, {"imported_from": str(self.folder)})
        values = {
            "path": str(self.out),
            "method": customized.method.name,
            "trainable_parameters": customized.trainable_parameters,
            "style": customized.template.style,
            "style_by_default": self.style == "auto",
            "template": self.template,
        }
        return Result(values, self.out)


class MergeRequest(Command):
    """Make one LoRA of several."""

    entries: Annotated[tuple[fields.HomePath, ...], Shown("BANK/NAME...", positional=True)]
    """LoRA entries of one base."""
    out: fields.EntryOut
    weights: Annotated[tuple[float, ...] | None, Shown("NUMBERS")] = None
    """A weight for each, 0.7,0.3; equal ones that sum to 1 by default."""
    how: Literal["linear", "ties", "dare"] = "linear"
    """linear is exact."""
    density: float = 0.5
    """Share of the entries that ties and dare keep."""
    rank: int | None = Field(None, ge=1)
    """Rank of the result; by default what it needs."""
    device: fields.Device = None

    def run(self, report: Report | None = None) -> Result:
        """One LoRA entry of several."""
        from tunescope import bank
        from tunescope.commands.subject import base_of

        shares = list(self.weights or [1 / len(self.entries)] * len(self.entries))
        if len(shares) != len(self.entries):
            raise BankError(f"--weights names {len(shares)} numbers for {len(self.entries)} entries.")
        with bank.claimed(self.out, overwrite=False):
            base = base_of(self.entries[0], None, self.device)
            loras = [bank.load(entry, base) for entry in self.entries]
            customized, error = bank.merge(loras, shares, how=self.how, density=self.density, rank=self.rank)
            origin = {"merged_from": [str(entry) for entry in self.entries], "how": self.how, "weights": shares}
            _save(customized, self.out, origin)
        values = {"path": str(self.out), "how": self.how, "weights": shares, "relative_error": error}
        return Result(values, self.out)


class RebaseRequest(Command):
    """Copy an entry for its base in other bits: made for smollm2-135m:nf4, to be used on smollm2-135m.

    It answers otherwise there, and nothing that was measured of it holds: measure the copy by eval.
    """

    entry: fields.Entry
    base: fields.BaseName
    out: fields.EntryOut
    device: fields.Device = None

    def run(self, report: Report | None = None) -> Result:
        """Write the copy, and give how far its outputs are from the entry's."""
        from tunescope import bank
        from tunescope.base import load_base

        with bank.claimed(self.out, overwrite=False):
            found = bank.rebase(self.entry, load_base(self.base, device=self.device), self.out)
        errors = {"max_logit_error": found.max_error, "mean_logit_error": found.mean_error}
        return Result({"path": str(self.out), "base": self.base, **errors, "mean_logit": found.mean_output}, self.out)


def _save(customized: Customized, out: Path, origin: dict[str, Any]) -> None:
    """Write an entry that was not trained here; its record says where it comes from."""
    from tunescope import bank
    from tunescope.base.device import dtype_name
    from tunescope.version import __version__

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
