"""The named places of a transformer where row effects act.

``q k v o gate up down`` are linear maps, ``attention_out`` and ``mlp_out`` are what a block adds to the residual
stream. A site may be a part of a fused module (GPT-2's ``c_attn``, Falcon's ``query_key_value``, Phi-3's ``qkv_proj``
and ``gate_up_proj``); the methods never see the difference.

Effects are attached by hooks, so that nothing of the base is rewritten: removing the hook gives it back bit for bit. A
hook acts on the module it was registered on only: a copy of the model, which has the hook too, is the base itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from tunescope.errors import BaseModelError, UnknownNameError

LINEAR_SITES = ("q", "k", "v", "o", "gate", "up", "down")
BLOCK_SITES = ("attention_out", "mlp_out")

OutputEffect = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
InputEffect = Callable[[torch.Tensor], torch.Tensor]
Acts = Callable[[], bool]


def always() -> bool:
    """An effect that acts from when it is attached."""
    return True


@dataclass(frozen=True, eq=False)
class Site:
    """One place in one layer.

    Attributes:
        layer: index of the transformer layer, from 0.
        name: one of ``LINEAR_SITES`` or ``BLOCK_SITES``.
        path: dotted name of the module in the model.
        module: the module whose call the effect rides on.
        in_features: width of its input; of a block site, the hidden size.
        out_features: width of the site's own output (of its part, when the module is fused).
        part: indices [out_features] of the fused module's outputs that are this site's, or None for all of them.
    """

    layer: int
    name: str
    path: str
    module: nn.Module
    in_features: int
    out_features: int
    part: torch.Tensor | None = None

    @property
    def key(self) -> str:
        """The site's name in an artifact, for example ``3.q``."""
        return f"{self.layer}.{self.name}"

    @property
    def weight(self) -> torch.Tensor:
        """The site's weight as [out_features, in_features], a view where the module allows one."""
        weight = self._linear.weight
        weight = weight.T if isinstance(self.module, Conv1D) else weight
        return weight if self.part is None else weight[self.part.to(weight.device)]

    @property
    def bias(self) -> torch.Tensor | None:
        """The site's bias [out_features], or None."""
        bias = self._linear.bias
        return bias if bias is None or self.part is None else bias[self.part.to(bias.device)]

    def set_weight(self, values: torch.Tensor) -> None:
        """Replace the site's weight by [out_features, in_features] values. For merging into a copy of a base."""
        with torch.no_grad():
            weight = self._linear.weight
            self._write(weight.T if isinstance(self.module, Conv1D) else weight, values)

    def set_bias(self, values: torch.Tensor) -> None:
        """Replace the site's bias by [out_features] values."""
        with torch.no_grad():
            self._write(self._linear.bias, values)

    def _write(self, whole: torch.Tensor, values: torch.Tensor) -> None:
        part = slice(None) if self.part is None else self.part.to(whole.device)
        whole[part] = values.to(whole)

    @property
    def _linear(self) -> Any:
        if self.name in BLOCK_SITES:
            raise TypeError(f"{self.path} is a block, not a linear map: it has no weight of its own")
        return self.module

    def on_output(self, effect: OutputEffect, acts: Acts = always) -> RemovableHandle:
        """Have ``effect(input, output)`` replace this site's output, whenever ``acts()`` says so.

        Block sites are called with keyword arguments by some architectures: there ``input`` is the output itself.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if module is not self.module or not acts():
                return output
            tensor = output[0] if isinstance(output, tuple) else output
            given = args[0] if args else tensor
            if self.part is None:
                changed = effect(given, tensor)
            else:
                part = self.part.to(tensor.device)
                changed = tensor.index_copy(-1, part, effect(given, tensor.index_select(-1, part)))
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return self.module.register_forward_hook(hook)

    def on_input(self, effect: InputEffect, acts: Acts = always) -> RemovableHandle:
        """Have ``effect(input)`` replace this module's input, whenever ``acts()`` says so.

        Only for modules that are not fused on the input side.
        """

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            if module is not self.module or not acts():
                return args
            return (effect(args[0]), *args[1:])

        return self.module.register_forward_pre_hook(hook)


@dataclass(frozen=True)
class _Fused:
    """A site inside a fused module: ``parts`` names what its outputs hold, in order."""

    path: str
    parts: tuple[str, ...]
    interleaved: bool = False  # q, k and v alternate by key-value head instead of lying in three blocks


@dataclass(frozen=True)
class _Layout:
    """How one family of architectures names its modules; paths are inside a layer unless they begin the model."""

    layers: str
    attention_out: str
    mlp_out: str
    linears: Mapping[str, str]
    fused: tuple[_Fused, ...] = ()
    model_type: str | None = None  # of fused families: how the parts lie in a module cannot be seen from its name
    marks: tuple[str, ...] = ()  # further modules that tell this family from a similar one
    experts: str | None = None  # where a mixture-of-experts layer keeps what we do not touch


_ATTENTION = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
_GATED_MLP = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}

# Ordered: a family with a distinguishing mark stands before the plainer one that it resembles.
_LAYOUTS = (
    # Gemma 2 and 3 normalize what a block returns before adding it: the site is after that norm.
    _Layout(
        "model.layers",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        {**_ATTENTION, **_GATED_MLP},
        marks=("pre_feedforward_layernorm",),
    ),
    # Llama, Mistral, Qwen2, Qwen3, SmolLM2 and many more.
    _Layout("model.layers", "self_attn", "mlp", {**_ATTENTION, **_GATED_MLP}),
    # Mixtures of experts: attention is as in Llama, the experts are refused.
    _Layout("model.layers", "self_attn", "mlp", _ATTENTION, marks=("mlp.experts",), experts="mlp.experts"),
    _Layout(
        "model.layers",
        "self_attn",
        "block_sparse_moe",
        _ATTENTION,
        marks=("block_sparse_moe.experts",),
        experts="block_sparse_moe.experts",
    ),
    # Phi-3.
    _Layout(
        "model.layers",
        "self_attn",
        "mlp",
        {"o": "self_attn.o_proj", "down": "mlp.down_proj"},
        fused=(_Fused("self_attn.qkv_proj", ("q", "k", "v")), _Fused("mlp.gate_up_proj", ("gate", "up"))),
        model_type="phi3",
    ),
    # GPT-2.
    _Layout(
        "transformer.h",
        "attn",
        "mlp",
        {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        fused=(_Fused("attn.c_attn", ("q", "k", "v")),),
        model_type="gpt2",
    ),
    # GPT-NeoX, Pythia.
    _Layout(
        "gpt_neox.layers",
        "attention",
        "mlp",
        {"o": "attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
        fused=(_Fused("attention.query_key_value", ("q", "k", "v"), interleaved=True),),
        model_type="gpt_neox",
    ),
    # Falcon.
    _Layout(
        "transformer.h",
        "self_attention",
        "mlp",
        {"o": "self_attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
        fused=(_Fused("self_attention.query_key_value", ("q", "k", "v"), interleaved=True),),
        model_type="falcon",
    ),
    # Bloom, whose blocks add the residual stream themselves: what they add to it leaves their last linear map.
    _Layout(
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        {"o": "self_attention.dense", "up": "mlp.dense_h_to_4h", "down": "mlp.dense_4h_to_h"},
        fused=(_Fused("self_attention.query_key_value", ("q", "k", "v"), interleaved=True),),
        model_type="bloom",
    ),
    # Starcoder 2.
    _Layout("model.layers", "self_attn", "mlp", {**_ATTENTION, "up": "mlp.c_fc", "down": "mlp.c_proj"}),
    # OPT.
    _Layout(
        "model.decoder.layers",
        "self_attn",
        "fc2",
        {
            "q": "self_attn.q_proj",
            "k": "self_attn.k_proj",
            "v": "self_attn.v_proj",
            "o": "self_attn.out_proj",
            "up": "fc1",
            "down": "fc2",
        },
    ),
)


class Sites:
    """Every site of a model, in order of layers.

    Raises:
        BaseModelError: when no known family fits; the message lists the modules of the first layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layout = next((layout for layout in _LAYOUTS if _fits(layout, model)), None)
        if self._layout is None:
            raise BaseModelError(_unknown_architecture(model))

    @cached_property
    def all(self) -> tuple[Site, ...]:
        """The sites of every layer."""
        return tuple(site for index in range(self.layers) for site in self._of_layer(index))

    @cached_property
    def layers(self) -> int:
        """How many transformer layers the model has."""
        return len(_find(self._model, self._layout.layers))  # type: ignore[arg-type, union-attr]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The distinct site names of this architecture, in the order of a layer."""
        return tuple(dict.fromkeys(site.name for site in self.all))

    @cached_property
    def _by_key(self) -> dict[str, Site]:
        return {site.key: site for site in self.all}

    def __getitem__(self, key: str) -> Site:
        if key not in self._by_key:
            raise UnknownNameError("site", key, self._by_key)
        return self._by_key[key]

    def select(self, names: tuple[str, ...], layers: tuple[int, ...] | None = None) -> tuple[Site, ...]:
        """The sites with one of ``names`` in one of ``layers`` (None: all layers).

        Raises:
            UnknownNameError: a name this architecture has no site for.
            BaseModelError: a layer that is not there, or an expert site of a mixture of experts.
        """
        for name in names:
            if name not in self.names:
                experts = self._layout.experts  # type: ignore[union-attr]
                if experts and name in LINEAR_SITES:
                    raise BaseModelError(
                        f"This base is a mixture of experts ({experts}): its feed-forward sites (gate, up, down) are "
                        f"not supported, only {', '.join(self.names)}. Choose targets among these."
                    )
                raise UnknownNameError("site", name, self.names)
        outside = [layer for layer in layers or () if not 0 <= layer < self.layers]
        if outside:
            raise BaseModelError(f"Layer {outside[0]} is not there: this base has layers 0 to {self.layers - 1}.")
        return tuple(site for site in self.all if site.name in names and (layers is None or site.layer in layers))

    def _of_layer(self, index: int) -> Iterator[Site]:
        layout = self._layout
        assert layout is not None
        hidden = self._model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
        layer = _find(self._model, f"{layout.layers}.{index}")
        found: dict[str, Site] = {}
        for fused in layout.fused:
            module = _find(layer, fused.path)
            width_in, width_out = _features(module)
            for name, part in _parts(fused, width_out, self._model.config).items():
                path = f"{layout.layers}.{index}.{fused.path}"
                found[name] = Site(index, name, path, module, width_in, len(part), part)
        for name, inner in layout.linears.items():
            module = _find(layer, inner)
            found[name] = Site(index, name, f"{layout.layers}.{index}.{inner}", module, *_features(module))
        for name, inner in (("attention_out", layout.attention_out), ("mlp_out", layout.mlp_out)):
            found[name] = Site(index, name, f"{layout.layers}.{index}.{inner}", _find(layer, inner), hidden, hidden)
        yield from (found[name] for name in (*LINEAR_SITES, *BLOCK_SITES) if name in found)


def _find(module: nn.Module, path: str) -> nn.Module:
    return module.get_submodule(path)


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True


def _fits(layout: _Layout, model: nn.Module) -> bool:
    if layout.model_type is not None and getattr(model.config, "model_type", None) != layout.model_type:
        return False
    if not _has(model, f"{layout.layers}.0"):
        return False
    layers: Any = _find(model, layout.layers)
    fused = tuple(fused.path for fused in layout.fused)
    needed = (layout.attention_out, layout.mlp_out, *layout.linears.values(), *fused)
    # Some mixtures of experts have plain layers among them, so one layer with the mark is enough.
    marked = all(any(_has(layer, mark) for layer in layers) for mark in layout.marks)
    return marked and all(_has(layer, path) for layer in layers for path in needed)


def _features(module: Any) -> tuple[int, int]:
    """(in, out) of a linear map; quantized linears keep them as attributes while their weight is packed."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    return module.in_features, module.out_features


def _parts(fused: _Fused, width: int, config: Any) -> dict[str, torch.Tensor]:
    """The output indices of each part of a fused module."""
    if "k" not in fused.parts:  # gate and up: equal halves
        sizes = [width // len(fused.parts)] * len(fused.parts)
    else:
        heads = config.num_attention_heads
        groups = _groups(config)
        head = width // (heads + 2 * groups)
        sizes = [heads * head, groups * head, groups * head]
    rows = torch.arange(width)
    if not fused.interleaved:
        return dict(zip(fused.parts, rows.split(sizes), strict=True))
    blocks = rows.view(groups, -1).split([size // groups for size in sizes], dim=1)
    return {name: block.reshape(-1) for name, block in zip(fused.parts, blocks, strict=True)}


def _groups(config: Any) -> int:
    """How many heads have keys and values of their own."""
    if getattr(config, "model_type", None) == "falcon" and not config.new_decoder_architecture:
        return 1 if config.multi_query else config.num_attention_heads
    named = (getattr(config, name, None) for name in ("num_key_value_heads", "num_kv_heads"))
    return next(filter(None, named), config.num_attention_heads)


def _unknown_architecture(model: nn.Module) -> str:
    seen = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    first = [name for name in seen if ".0." in name] or seen
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return (
        f"tunescope does not know where attention and feed-forward are in a {kind!r} model. Its first linear modules: "
        f"{', '.join(first[:12]) or 'none'}. Known families: Llama, Mistral, Qwen, Gemma 2/3, Phi-3, GPT-2, GPT-NeoX, "
        "Falcon, Bloom, Starcoder 2, OPT, and models laid out like them. Prompting and full fine-tuning work on any "
        "model."
    )
