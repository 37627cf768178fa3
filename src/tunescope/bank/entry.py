"""A customization at rest: a folder with its tensors and its record. Loading one that does not fit is an error.

Effects are kept in ``customization.safetensors``. After full fine-tuning the folder is a transformers model folder that
``AutoModelForCausalLM.from_pretrained`` opens; what an objective added (a reward model's head) lies beside it. Nothing
is ever pickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunescope import storage
from tunescope.bank.kept_logits import save_check
from tunescope.bank.names import RECORD, SEPARATOR, entry_folder, holds_entries, is_table, list_entries, names_in
from tunescope.bank.record import Record
from tunescope.base import Base, load_base
from tunescope.base.loading import Dtype
from tunescope.errors import BankError, TunescopeError, UnknownNameError
from tunescope.foreign import read_object
from tunescope.locks import writing
from tunescope.methods import Customized, Full, at_rest
from tunescope.methods.effects import Effect
from tunescope.methods.registry import METHODS
from tunescope.objectives.registry import OBJECTIVES
from tunescope.team import this_team

TENSORS, MODEL, CHECK = "customization.safetensors", "model.safetensors", "check.safetensors"
_ONE_FILE = 2**62  # bytes of a weight file, however large the model
_CARD_SECONDS = 10.0  # to wait for another measurement of the same entry, which writes for milliseconds


def _unmarked(folder: Path) -> tuple[str, ...] | None:
    """The files of an entry from before there were markers: its record is one of ours, and names nothing else."""
    try:
        read_record(folder)
    except BankError:
        return None
    model = ("config.json", "generation_config.json", "chat_template.jinja")
    tokenizer = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json")
    words = ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
    return (RECORD, TENSORS, CHECK, "metrics.jsonl", MODEL, *model, *tokenizer, *words)


ENTRY = storage.Kind("bank entry", unmarked=_unmarked)


def save(
    customized: Customized,
    folder: Path,
    record: Record,
    *,
    extra: dict[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a customization, all of it or nothing.

    Args:
        customized: trained, in evaluation mode.
        folder: the entry.
        record: its certificate; the tensors' hash is filled in here.
        extra: further text files by name, for example ``metrics.jsonl``.
        overwrite: replace an entry that is there already.

    Raises:
        TunescopeError: the folder is taken, or another run writes there.
    """
    with claimed(folder, overwrite=overwrite), writing_card(folder), storage.atomic_folder(folder, ENTRY) as partial:
        if customized.moves_base:
            customized.base.model.save_pretrained(partial, max_shard_size=_ONE_FILE)
            customized.base.tokenizer.save_pretrained(partial)
        if tensors := customized.customization.all_tensors():
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
        if files := [partial / name for name in (MODEL, TENSORS) if (partial / name).is_file()]:
            record = record.model_copy(update={"tensors_sha256": storage.sha256_file(*files)})
        save_check(customized, partial / CHECK)
        for name, text in (extra or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / RECORD).write_text(record.model_dump_json(indent=2), encoding="utf-8")
    return folder


def copy(entry: str | Path, out: Path, *, overwrite: bool = False) -> Path:
    """Copy an entry byte for byte.

    Args:
        entry: to copy.
        out: the new entry.
        overwrite: replace an entry that is there already.

    Raises:
        TunescopeError: ``out`` is taken, or another run writes there.
    """
    with claimed(out, overwrite=overwrite), writing_card(out), storage.atomic_folder(out, ENTRY) as partial:
        ours = shutil.ignore_patterns(storage.MARKER)
        shutil.copytree(entry_folder(entry), partial, ignore=ours, dirs_exist_ok=True)
    return out


@contextmanager
def claimed(folder: Path, *, overwrite: bool, kind: storage.Kind = ENTRY) -> Iterator[None]:
    """Be the only writer of an entry while the block lasts; stops before any work where its result has no place.

    Of a team of processes the first one is, and the others write nothing.

    Args:
        folder: to be written.
        overwrite: replace what is there.
        kind: of the folder: an entry, or a table of them.

    Raises:
        TunescopeError: the folder is taken by an entry that is not to be replaced or by something else, is itself a
            bank, or another run writes there.
    """
    if not this_team().writes:
        yield
        return
    if folder.name.startswith(".") and folder.name != "..":
        raise TunescopeError(
            f"{folder}: names that begin with a dot are kept for unfinished work. Choose another --out."
        )
    if SEPARATOR in folder.name:
        raise TunescopeError(
            f"{folder}: {SEPARATOR} stands between a table and its task, so no name has one. Choose another --out."
        )
    with ExitStack() as held:
        if is_table(folder.parent):
            held.enter_context(writing(folder.parent))
        final = held.enter_context(writing(folder))
        taken = (final / RECORD).is_file() or is_table(final)
        if taken and not overwrite:
            raise TunescopeError(f"{folder} exists already. Choose another --out, or replace it with --overwrite.")
        if not taken and holds_entries(final):
            raise TunescopeError(
                f"{folder} is a bank with {len(list_entries(final))} entries, so it is not touched. Name an entry in "
                f"it, such as {folder / 'new'}."
            )
        storage.check_replaceable(folder, kind)
        yield


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise now what ``claimed`` would raise: before data are read and a base is loaded."""
    with claimed(folder, overwrite=overwrite):
        pass


def read_record(folder: str | Path) -> Record:
    """The certificate of an entry.

    Raises:
        BankError: no entry there, or its record is damaged.
    """
    folder = entry_folder(folder)
    path = folder / RECORD
    if not path.is_file():
        if inside := list_entries(folder):
            raise BankError(
                f"{folder} holds {len(inside)} entries and is none itself: name one, such as "
                f"{folder}{SEPARATOR}{inside[0].name}."
            )
        near = names_in(folder.parent)
        if near:
            raise BankError(str(UnknownNameError(f"entry of the bank {folder.parent}:", folder.name, near)))
        raise BankError(f"{folder} is not a bank entry: it has no {RECORD}. Train one with --out {folder}.")
    try:
        return Record.parse(read_object(path))
    except ValueError as error:
        raise BankError(f"{path} is damaged: it {error}. Copy the entry again or train it again.") from error
    except (OSError, TunescopeError) as error:
        raise BankError(f"{path} is damaged or was written by another version of tunescope: {error}") from error


def write_card(folder: Path, card: dict[str, object], measured: Record) -> None:
    """Keep what was measured of an entry in its record.

    Args:
        folder: the entry.
        card: the measurements.
        measured: the entry's record, as it was read before the measuring began.

    Raises:
        BankError: the entry was replaced meanwhile, so that these are another's measurements.
    """
    folder = entry_folder(folder)
    with writing_card(folder):
        record = read_record(folder)
        if record.model_copy(update={"card": None}) != measured.model_copy(update={"card": None}):
            raise BankError(
                f"{folder} was replaced while it was measured, so the measurements are not its: do it again."
            )
        storage.rewrite(folder / RECORD, record.model_copy(update={"card": card}).model_dump_json(indent=2))


@contextmanager
def writing_card(folder: Path) -> Iterator[None]:
    """The lock of an entry's card, or of those of a table. It lies beside the folder, so that it outlives what replaces
    the folder.
    """
    final = storage.resolved(folder)
    with ExitStack() as held:
        for each in (final.parent, final) if is_table(final.parent) else (final,):
            held.enter_context(writing(each.with_name(f"{each.name}.card"), wait=_CARD_SECONDS))
        yield


def load(folder: str | Path, base: Base | str | None = None, *, other_bits: bool = False) -> Customized:
    """Load an entry onto its base.

    Args:
        folder: the entry.
        base: the base to run on; by default the one the record names.
        other_bits: take the base in other bits than the record's, where it answers otherwise (see ``bank.rebase``).

    Raises:
        BankError: another base, damaged or missing tensors, tensors of another shape.
    """
    folder = entry_folder(folder)
    record = read_record(folder)
    origin = load_base(base if base is not None else record.base.name)
    bits_alone = record.base.fingerprint.differs_in_bits_alone(origin.fingerprint)
    if bits_alone and not other_bits:
        raise BankError(
            f"{folder} was made for {record.base.name}, and {origin.name} is that base in other bits, on which it "
            f"answers otherwise. Take --base {record.base.name}, or make an entry for this one: tunescope bank rebase "
            f"{folder} --base {origin.name} --out {folder}-rebased"
        )
    if not bits_alone and (differing := record.base.fingerprint.differences(origin.fingerprint)):
        raise BankError(
            f"{folder} was made for {record.base.name} (fingerprint {record.base.fingerprint.short}), but "
            f"{origin.name} (fingerprint {origin.fingerprint.short}) has another {' and '.join(differing)}. Use the "
            "base it was made for, or train it again on this one."
        )
    try:
        customized = _at_rest(record, origin)
    except (RuntimeError, MemoryError) as error:  # settings so large that there is no memory for their tensors
        raise BankError(
            f"{folder}: there is no memory for tensors as large as its settings say ({record.method_settings})."
        ) from error
    needed = customized.customization.all_tensors()
    if (needed or customized.moves_base) and record.tensors_sha256 is None:
        raise BankError(
            f"{folder / RECORD} has no tensors_sha256, but {record.method} has tensors: the entry is damaged. Copy "
            "it again or train it again."
        )
    _check_tensors(
        [folder / name for name, there in ((MODEL, customized.moves_base), (TENSORS, bool(needed))) if there], record
    )
    if needed:
        try:
            customized.customization.load_all_tensors(load_file(folder / TENSORS, device=str(origin.device)))
        except (SafetensorError, BankError) as error:
            raise BankError(f"{folder / TENSORS}: {error}") from error
    if customized.moves_base:
        dtype: Dtype = "float32" if origin.dtype == torch.float32 else "bfloat16"
        customized.base = load_base(folder, dtype=dtype, device=origin.device)
        _check_finite(customized.base, folder / MODEL)
    return customized


def export_model(entry: Path, folder: Path) -> None:
    """Copy the model that full fine-tuning made out of its entry: a transformers folder and nothing else.

    Raises:
        TunescopeError: a folder that exists, or that another run writes.
    """
    ours = shutil.ignore_patterns(RECORD, TENSORS, CHECK, "metrics*", storage.MARKER)
    with writing(folder), storage.atomic_folder(folder) as partial:
        shutil.copytree(entry, partial, ignore=ours, dirs_exist_ok=True)


def _at_rest(record: Record, base: Base) -> Customized:
    """What the record says, with what it starts from; the tensors are still to be loaded."""
    start = record.start
    method, continued = METHODS.load(record.method).parse(record.method_settings), record.continued
    return at_rest(
        base,
        method,
        record.template,
        record.labels or (continued.labels if continued else None),
        _added(record, base),
        # What full fine-tuning made is the base itself.
        None if start is None or start.method == Full.name else _at_rest(start, base).customization,
        trained_at_rest=continued is not None,
    )


def _added(record: Record, base: Base) -> dict[str, Effect]:
    """The effects that the objective brought."""
    if record.objective is None:
        return {}
    return OBJECTIVES.load(record.objective).parse(record.objective_settings).effects(base, torch.Generator())


def _check_tensors(files: list[Path], record: Record) -> None:
    for path in files:
        if not path.is_file():
            raise BankError(f"{path} is missing: the entry is damaged. Train it again.")
    if files and storage.sha256_file(*files) != record.tensors_sha256:
        names = " and ".join(map(str, files))
        raise BankError(
            f"{names} {'are' if len(files) > 1 else 'is'} not what was saved (the SHA-256 differs from the record's): "
            "corrupt or changed. Copy it again or train it again."
        )


def _check_finite(base: Base, path: Path) -> None:
    """Refuse weights of full fine-tuning that are not finite."""
    for name, parameter in base.model.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise BankError(f"{path}: tensor {name} holds values that are not finite. Train it again.")


def size_mb(folder: Path) -> float:
    """Bytes of the entry's weights in 1e6: what a user would have to store and move."""
    files = entry_folder(folder).glob("*.safetensors")
    return sum(path.stat().st_size for path in files if path.name != CHECK) / 1e6
