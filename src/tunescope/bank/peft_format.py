"""PEFT's checkpoint format, which every tool reads: ``adapter_config.json`` and ``adapter_model.safetensors``.

Ours to theirs: LoRA (with rsLoRA and DoRA), IA3, prompt tuning and p-tuning, with the same logits. Theirs to ours: the
same kinds, with whatever modules they target. A fused module (GPT-2's ``c_attn``) is one target there and several sites
here, which is translated without loss both ways.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunescope import storage
from tunescope.bank.assemble import LoRAPart, assemble_ia3, assemble_lora, lora_parts
from tunescope.bank.merge import refuse_heads
from tunescope.bank.peft_config import CONFIG, PeftConfig, matching, read_config
from tunescope.base import Base, Site
from tunescope.base.sites import LINEAR_SITES
from tunescope.base.sources import BUILT_IN
from tunescope.data.patterns import Pattern
from tunescope.data.template import Template, default_template
from tunescope.errors import BankError, TunescopeError
from tunescope.locks import writing
from tunescope.methods import IA3, Customized, LoRA, PromptTuning, PTuning, at_rest
from tunescope.methods.customization import some
from tunescope.methods.effects import Prefix, Scale

TENSORS = "adapter_model.safetensors"
_log = logging.getLogger(__name__)
_PREFIX = "base_model.model."
# Initializations that also changed the base's weights, so that the adapter alone does not say what was trained.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


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
        config, tensors = _lora_to_peft(customized, method)
    elif isinstance(method, IA3):
        config, tensors = _ia3_to_peft(customized)
    elif isinstance(method, PromptTuning | PTuning):
        config, tensors = _prompt_to_peft(customized, method)
    else:
        raise BankError(
            f"{method.name} cannot be written in PEFT's format: it has LoRA, IA3, prompt tuning and p-tuning, one at a "
            "time."
        )
    name = customized.origin.name
    common = {
        "base_model_name_or_path": BUILT_IN[name].hub_id if name in BUILT_IN else name,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
    }
    with writing(folder), storage.atomic_folder(folder) as partial:
        (partial / CONFIG).write_text(json.dumps({**common, **config}, indent=2), encoding="utf-8")
        save_file({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}, partial / TENSORS)
    return folder


def import_peft(folder: Path, base: Base, *, pattern: str | None = None, style: str = "auto") -> Customized:
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
    config = read_config(folder)
    tensors, kind = _read_tensors(folder), config.kind
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
        if kind == "LORA":
            return _lora_from_peft(config, tensors, base, template)
        if kind == "IA3":
            return _ia3_from_peft(config, tensors, base, template)
        if kind in ("PROMPT_TUNING", "P_TUNING"):
            return _prompt_from_peft(kind, tensors, base, template)
    except TunescopeError as error:  # also a setting that the method here refuses
        raise BankError(f"{folder}: {error}") from error
    raise BankError(f"{folder / CONFIG}: peft_type {kind} has no equivalent here; LoRA, IA3, prompt and p-tuning do.")


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


def _lora_to_peft(customized: Customized, method: LoRA) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    modules: dict[str, tuple[nn.Module, LoRAPart]] = {}
    parts = lora_parts(customized)
    for path, sites in _by_module(customized.base, parts).items():
        modules[path] = (sites[0].module, _join(sites, [parts[site.key] for site in sites]))
    tensors = {}
    for path, (_, part) in modules.items():
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = part.A
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = part.B
        if part.magnitude is not None:
            tensors[f"{_PREFIX}{path}.lora_magnitude_vector"] = part.magnitude
    root = 0.5 if method.rslora else 1.0
    alphas = {path: _whole(part.scaling * part.rank**root) for path, (_, part) in modules.items()}
    ranks = {path: part.rank for path, (_, part) in modules.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
        "target_modules": _targets(customized.base, set(modules)),
        "lora_dropout": method.dropout,
        "bias": "none",
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module, _ in modules.values()),
        "use_rslora": method.rslora,
        "use_dora": method.dora,
    }
    return config, tensors


def _ia3_to_peft(customized: Customized) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    scales = {
        key.rpartition(".")[0]: effect
        for key, effect in customized.customization.effects.items()
        if isinstance(effect, Scale)
    }
    tensors, feedforward, conv = {}, set(), False
    modules = _by_module(customized.base, scales)
    for path, sites in modules.items():
        conv |= isinstance(sites[0].module, Conv1D)
        if scales[sites[0].key].where == "input":
            feedforward.add(path)
            tensors[f"{_PREFIX}{path}.ia3_l"] = scales[sites[0].key].vector.detach()[None, :]
            continue
        whole = torch.ones(_width(sites[0].module))
        for site in sites:
            whole[_rows(site)] = scales[site.key].vector.detach().cpu()
        tensors[f"{_PREFIX}{path}.ia3_l"] = whole[:, None]
    targets = _targets(customized.base, set(modules))
    # PEFT wants the feed-forward modules named by the same texts as the targets.
    on_input = [target for target in targets if matching([target], sorted(feedforward))]
    if set(matching(on_input, sorted(modules))) != feedforward:
        targets, on_input = sorted(modules), sorted(feedforward)
    config = {
        "peft_type": "IA3",
        "target_modules": targets,
        "feedforward_modules": on_input,
        "fan_in_fan_out": conv,
    }
    return config, tensors


def _prompt_to_peft(
    customized: Customized, method: PromptTuning | PTuning
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if method.splits:
        raise BankError("PEFT's format has virtual tokens before the text only, and these stand at several places.")
    effect = customized.customization.effects["embedding.prefix"]
    assert isinstance(effect, Prefix)
    table = effect.table().detach()
    text = customized.base.model.config.get_text_config()
    config: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING" if isinstance(method, PromptTuning) else "P_TUNING",
        "num_virtual_tokens": method.virtual_tokens,
        "token_dim": table.shape[1],
        "num_transformer_submodules": 1,
        "num_attention_heads": text.num_attention_heads,
        "num_layers": text.num_hidden_layers,
    }
    if isinstance(method, PTuning):
        config |= {
            "encoder_reparameterization_type": method.encoder.upper(),
            "encoder_hidden_size": method.encoder_hidden or table.shape[1],
            "encoder_num_layers": method.encoder_layers,
        }
    else:
        config["prompt_tuning_init"] = "RANDOM"
    return config, {"prompt_embeddings": table}


def _lora_from_peft(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], base: Base, template: Template
) -> Customized:
    if str(config.init_lora_weights).lower().startswith(_CHANGES_BASE):
        raise BankError(
            f"it was begun with {config.init_lora_weights}, which changes the base's weights: convert it to a plain "
            "LoRA first (PEFT's save_pretrained with path_initial_model_for_weight_conversion)."
        )
    dora = bool(config.use_dora)
    names = ("lora_A.weight", "lora_B.weight", *(["lora_magnitude_vector"] if dora else []))
    found = _grouped(config, tensors, base, names)
    rslora, parts = bool(config.use_rslora), {}
    settings = config.ranks_and_alphas(list(found))
    for path, own in found.items():
        A, B = own["lora_A.weight"], own["lora_B.weight"]
        rank, alpha = settings[path]
        sites = [site for site in base.sites.all if site.path == path and site.name in LINEAR_SITES]
        width = _width(sites[0].module)
        for name, tensor, wanted in (
            ("lora_A", A, (rank, sites[0].in_features)),
            ("lora_B", B, (width, rank)),
            ("lora_magnitude_vector", own["lora_magnitude_vector"].flatten() if dora else torch.empty(width), (width,)),
        ):
            if tuple(tensor.shape) != wanted:
                raise BankError(f"{path}.{name} has shape {tuple(tensor.shape)}, but this base needs {wanted}.")
        scaling = alpha / rank ** (0.5 if rslora else 1.0)
        magnitude = own["lora_magnitude_vector"].flatten() if dora else None
        for site in sites:
            rows = _rows(site)
            parts[site.key] = LoRAPart(A, B[rows], scaling, None if magnitude is None else magnitude[rows])
    return assemble_lora(base, parts, template, dropout=config.lora_dropout or 0.0, rslora=rslora)


def _ia3_from_peft(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], base: Base, template: Template
) -> Customized:
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[str, torch.Tensor] = {}
    found = _grouped(config, tensors, base, ("ia3_l",))
    on_input = matching(config.feedforward_modules, list(found))
    for path, own in found.items():
        vector = own["ia3_l"]
        sites = [site for site in base.sites.all if site.path == path and site.name in LINEAR_SITES]
        feedforward = path in on_input
        wanted = (1, sites[0].in_features) if feedforward else (_width(sites[0].module), 1)
        if tuple(vector.shape) != wanted:
            raise BankError(f"{path}.ia3_l has shape {tuple(vector.shape)}, but this base needs {wanted}.")
        if feedforward and sites[0].part is not None:
            raise BankError(f"{path} computes several sites at once, and scaling its input has no equivalent here.")
        for site in sites:
            if feedforward:
                inputs[site.key] = vector.flatten()
            else:
                outputs[site.key] = vector.flatten()[_rows(site)]
    return assemble_ia3(base, outputs, inputs, template)


def _prompt_from_peft(kind: str, tensors: Mapping[str, torch.Tensor], base: Base, template: Template) -> Customized:
    if unexpected := sorted(set(tensors) - {"prompt_embeddings"}):
        raise BankError(f"Unexpected tensors: {some(unexpected)}.")
    if "prompt_embeddings" not in tensors:
        raise BankError("Missing tensor: prompt_embeddings.")
    table, width = tensors["prompt_embeddings"], base.hidden_size
    if table.ndim != 2 or not 0 < len(table) < base.context_length or table.shape[1] != width:
        raise BankError(
            f"prompt_embeddings has shape {tuple(table.shape)}, but this base needs (virtual tokens, {width}), and "
            f"fewer of them than its context of {base.context_length}."
        )
    count = table.shape[0]
    method = PromptTuning(virtual_tokens=count) if kind == "PROMPT_TUNING" else PTuning(virtual_tokens=count)
    template = template.model_copy(update={"virtual_tokens": count, "virtual_splits": ()})
    customized = at_rest(base, method, template)
    customized.customization.load_tensors({"embedding.prefix.embeddings": table})
    return customized


def _grouped(
    config: PeftConfig, tensors: Mapping[str, torch.Tensor], base: Base, names: tuple[str, ...]
) -> dict[str, dict[str, torch.Tensor]]:
    """Module path -> its tensors by name, checked against what the configuration targets.

    Raises:
        BankError: missing or unexpected tensors, or a target that is no site.
    """
    wanted = {f"{_PREFIX}{path}.{name}" for path in config.targeted(base) for name in names}
    # PEFT has written DoRA's magnitude with and without this ending.
    given = {re.sub(r"(lora_magnitude_vector)\.weight$", r"\1", key): tensor for key, tensor in tensors.items()}
    if missing := sorted(wanted - set(given)):
        raise BankError(f"Missing tensors: {some(missing)}.")
    if unexpected := sorted(set(given) - wanted):
        raise BankError(f"Unexpected tensors: {some(unexpected)}.")
    known = {site.path for site in base.sites.all if site.name in LINEAR_SITES}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in sorted(wanted):
        path, name = next((key.removesuffix(f".{n}"), n) for n in names if key.endswith(f".{n}"))
        path = path.removeprefix(_PREFIX)
        if path not in known:
            raise BankError(f"It targets {path}, which is no site that can be customized here.")
        found.setdefault(path, {})[name] = given[key]
    if not found:
        raise BankError("Its target_modules match nothing in this base.")
    return found


def _by_module(base: Base, keys: Mapping[str, Any]) -> dict[str, list[Site]]:
    """Module path -> those of its sites that are among ``keys``."""
    found: dict[str, list[Site]] = {}
    for site in base.sites.all:
        if site.key in keys:
            found.setdefault(site.path, []).append(site)
    return found


def _targets(base: Base, paths: set[str]) -> list[str]:
    """``target_modules`` for these modules: endings (``q_proj``) where they name no others, else whole paths."""
    all_paths = [path for path, module in base.model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for parts in (1, 2):
        endings = sorted({".".join(path.split(".")[-parts:]) for path in paths})
        if set(matching(endings, all_paths)) == paths:
            return endings
    return sorted(paths)


def _join(sites: list[Site], parts: list[LoRAPart]) -> LoRAPart:
    """The changes of some sites of one module as one change of the whole module.

    The A matrices lie below each other, and each B stands in the rows of its site and the columns of its A. With DoRA
    the rows of the module's other sites have the length of their own weights, so that they are left as they are.
    """
    if sites[0].part is None:
        return parts[0]
    ranks = [part.rank for part in parts]
    width = _width(sites[0].module)
    B = torch.zeros(width, sum(ranks))
    for site, part, columns in zip(sites, parts, torch.arange(sum(ranks)).split(ranks), strict=True):
        B[_rows(site)[:, None], columns] = part.B * part.scaling / parts[0].scaling
    magnitude = None
    if parts[0].magnitude is not None:
        weight: Any = sites[0].module.weight
        weight = weight.detach().float().cpu()
        magnitude = weight.norm(dim=0 if isinstance(sites[0].module, Conv1D) else 1)
        for site, part in zip(sites, parts, strict=True):
            assert part.magnitude is not None
            magnitude[_rows(site)] = part.magnitude
    return LoRAPart(torch.cat([part.A for part in parts]), B, parts[0].scaling, magnitude)


def _rows(site: Site) -> torch.Tensor:
    """The rows of its module's output that are the site's."""
    return torch.arange(_width(site.module)) if site.part is None else site.part.cpu()


def _width(module: Any) -> int:
    return module.nf if isinstance(module, Conv1D) else module.out_features


def _whole(number: float) -> float:
    """16.0 as 16: readers that want an integer get one where it is."""
    rounded = round(number)
    return rounded if abs(number - rounded) < 1e-9 * max(abs(number), 1) else number
