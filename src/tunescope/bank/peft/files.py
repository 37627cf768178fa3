"""Reading and writing a folder in PEFT's format; each kind of adapter has a module of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunescope import storage
from tunescope.bank.merge import refuse_heads
from tunescope.bank.peft.config import CONFIG, PeftConfig, read_config
from tunescope.bank.peft.ia3 import ia3_from_peft, ia3_to_peft
from tunescope.bank.peft.lora import lora_from_peft, lora_to_peft
from tunescope.bank.peft.soft_prompt import soft_prompt_from_peft, soft_prompt_to_peft
from tunescope.base import Base
from tunescope.base.quantized import split_name
from tunescope.base.sources import BUILT_IN
from tunescope.data.patterns import Pattern
from tunescope.data.template import Template, default_template
from tunescope.errors import BankError, TunescopeError
from tunescope.locks import writing
from tunescope.methods import IA3, Customized, LoRA, PromptTuning, PTuning

TENSORS = "adapter_model.safetensors"
_log = logging.getLogger(__name__)
# By ``peft_type``.
_READERS: dict[str, Callable[[PeftConfig, Mapping[str, torch.Tensor], Base, Template], Customized]] = {
    "LORA": lora_from_peft,
    "IA3": ia3_from_peft,
    "PROMPT_TUNING": soft_prompt_from_peft,
    "P_TUNING": soft_prompt_from_peft,
}


def export_peft(customized: Customized, folder: Path) -> Path:
    """Write a folder that ``PeftModel.from_pretrained`` opens.

    Args:
        customized: LoRA, IA3, prompt tuning or p-tuning. A LoRA on top of a LoRA becomes one of the sum of their ranks.
        folder: to write; it must not exist.

    Raises:
        BankError: a method that PEFT's format has no place for, with the reason.
        TunescopeError: a folder that exists, or that another run writes.
    """
    refuse_heads(customized, "PEFT's format as it is written here")
    method, start = customized.method, customized.customization.start
    if start is not None and start.acts and not isinstance(method, LoRA):
        raise BankError(
            f"This {method.name} starts from a {start.method.name} entry, and PEFT's format has a place for one of "
            "them. Serve the entry as it is, or write both into the weights with --to transformers."
        )
    if isinstance(method, LoRA):
        config, tensors = lora_to_peft(customized, method)
    elif isinstance(method, IA3):
        config, tensors = ia3_to_peft(customized)
    elif isinstance(method, PromptTuning | PTuning):
        config, tensors = soft_prompt_to_peft(customized, method)
    else:
        raise BankError(
            f"{method.name} cannot be written in PEFT's format: it has LoRA, IA3, prompt tuning and p-tuning, one at a "
            "time."
        )
    name, _ = split_name(customized.origin.name)
    common = {
        "base_model_name_or_path": BUILT_IN[name].hub_id if name in BUILT_IN else name,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    with writing(folder), storage.atomic_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps({**common, **config}, indent=2), encoding="utf-8")
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, partial / TENSORS)
    return folder


def import_peft(folder: str | Path, base: Base, *, pattern: str | None = None, style: str = "auto") -> Customized:
    """Read a folder that PEFT wrote, and say in one line (to the log ``tunescope``) what template it was given.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``. Pickled weights are refused unread.
        base: the base it was trained on; PEFT records only its name, so shapes are all that can be checked.
        pattern: how columns became the text it was trained on, ``"{text} topic: {label}"``. PEFT does not record it,
            and an adapter answers well only under what it was trained on.
        style: ``chat``, ``plain``, or ``auto`` for what the base's tokenizer is made for.

    Raises:
        BankError: files that are missing or damaged, tensors that are missing, unexpected or of another shape (named),
            a setting of another type or beyond bounds, a module that is no site, or a kind of adapter that has no
            equivalent here.
        DataError: a pattern that is none, or chat style for a base without a chat template.
    """
    folder = Path(folder)
    config = read_config(folder)
    tensors = _read_tensors(folder)
    if pattern is not None:
        Pattern.parse(pattern)
    template = default_template(base.tokenizer, pattern=pattern, style=style)
    template.check_marks()
    _log.info(
        "PEFT records no template. The style is %s%s, the template %s.",
        template.style,
        ", by default as the base's tokenizer is made for (name what it was trained under with --style)"
        if style == "auto"
        else "",
        pattern or "none: prompts are taken as they are (name columns with --template)",
    )
    try:
        if config.kind in _READERS:
            return _READERS[config.kind](config, tensors, base, template)
    except TunescopeError as error:  # also a setting that the method here refuses
        raise BankError(f"{folder}: {error}") from error
    raise BankError(
        f"{folder / CONFIG}: peft_type {config.kind} has no equivalent here; LoRA, IA3, prompt and p-tuning do."
    )


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors, in float32.

    Raises:
        BankError: no such file, a damaged one, or values that are no finite numbers.
    """
    if not (folder / TENSORS).is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise BankError(
                f"{folder} holds its weights as a pickle, which can run code and is never read. Have whoever made it "
                f"save it again with PEFT's save_pretrained, which writes {TENSORS}."
            )
        raise BankError(f"{folder / TENSORS} is missing. Copy the adapter again.")
    try:
        tensors = load_file(folder / TENSORS)
    except (ValueError, SafetensorError) as error:
        raise BankError(f"{folder} is damaged: {error}. Copy the adapter again.") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise BankError(f"{folder / TENSORS}: {name} holds {tensor.dtype}, and only floating point can be used.")
        tensors[name] = tensor.float()
        if not tensors[name].isfinite().all():
            raise BankError(f"{folder / TENSORS}: {name} holds values that are not finite: the training diverged.")
    return tensors
