"""The Llama family written out: the same numbers as transformers' code, in fewer and better-packed operations.

Against the generic path a decoding step saves

* matmuls: q, k and v are one matmul, gate and up another. Where the CPU has matrix units for bfloat16, their weights
  are kept a second time in the block order that these read, instead of being reordered in every call;
* the key-value memory: a step reads views of it and copies nothing;
* Python: no hooks, no keyword plumbing; about twenty operations a layer.

Covers Llama, Mistral, Qwen2 and Qwen3 (and models built like them, as SmolLM2). A test holds it equal to the generic
path, effect by effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tunescope.base import Base
from tunescope.base.attention import grouped_attention
from tunescope.base.quantized import QuantizedLinear
from tunescope.inference.packed_linear import Product, packs, product
from tunescope.inference.plan import Plan
from tunescope.inference.runners import Pass, kept, sites_of
from tunescope.inference.slots import Part

_FAMILY = ("llama", "mistral", "qwen2", "qwen3")
# Frequencies that depend on the length of the text cannot be tabulated once.
_CHANGING_ROPE = ("dynamic", "longrope")
# Maps that read the same input: a scale of one's input alone cannot be applied to them together.
_JOINT = ("q", "k", "v", "gate", "up")


class LlamaRunner:
    """Runs a base of the Llama family; see ``applies``."""

    def __init__(self, base: Base) -> None:
        model = base.model.model
        self._base, self._model, self._config = base, model, base.model.config
        pack = packs(base)
        self._layers = [_Layer(base, index, layer, pack) for index, layer in enumerate(model.layers)]
        self._head = _side_by_side([base.model.lm_head], pack)
        self._kinds = getattr(self._config, "layer_types", None) or ["full_attention"] * len(self._layers)
        self._groups = self._config.num_key_value_heads
        # On an accelerator a mask would rule out flash attention; the CPU's attention looks at a mask's blocks.
        self.causal = base.device.type != "cpu"
        self._cos = self._sin = torch.empty(0)

    @staticmethod
    def applies(base: Base) -> bool:
        """Whether the base is laid out as this file writes it."""
        config = base.model.config
        rope = getattr(config, "rope_parameters", None) or {}
        linears = [module for name, module in base.model.named_modules() if name.endswith("_proj")]
        return (
            config.model_type in _FAMILY
            and config.hidden_act == "silu"
            and rope.get("rope_type", "default") not in _CHANGING_ROPE
            and all(type(module) in (nn.Linear, QuantizedLinear) for module in linears)
        )

    @staticmethod
    def takes(plan: Plan) -> bool:
        """Whether the plan's effects can be computed here; the generic path takes all of them."""
        return not any(member.scales_inputs(site) for member in plan.members for site in _JOINT)

    def hidden(self, work: Pass) -> torch.Tensor:
        """See ``runners.Runner``."""
        device = self._base.device
        x = work.with_virtual(self._model.embed_tokens(work.ids.clamp(min=0).to(device)))
        cos, sin = self._rotation(work.positions, x)
        masks = [self._masks(part, work) for part in work.access.parts]
        for layer, kind in zip(self._layers, self._kinds, strict=True):
            x = layer.forward(x, cos, sin, [each[kind] for each in masks], work)
        return self._model.norm(kept(x, work.keep))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See ``runners.Runner``."""
        if not len(hidden):  # a packed product wants at least one row
            return hidden.new_empty(0, self._config.vocab_size)
        return self._head(hidden)

    def _masks(self, part: Part, work: Pass) -> dict[str, torch.Tensor | None]:
        """What a part's rows may see in each kind of layer: a mask, or None where a token sees all before it and
        ``part`` is read no further. For one new token a row [rows · groups, 1, seen], see ``_mix_one``."""
        length = work.ids.shape[1]
        if self.causal and work.branch is None and self._is_causal(part.places):
            part.seen = length
            return dict.fromkeys(self._kinds)
        mask = work.masks(self._base, part.rows, part.seen)
        masks = mask if isinstance(mask, dict) else dict.fromkeys(self._kinds, mask)
        if length > 1:
            return masks
        return {kind: mask[:, 0].repeat_interleave(self._groups, dim=0) for kind, mask in masks.items()}

    def _is_causal(self, places: torch.Tensor) -> bool:
        """Whether rows begin with their first token and see all before them: padding behind a row needs no mask."""
        length = places.shape[1]
        wide = all(window is None or window >= length for window in self._base.windows.values())
        return wide and length > 1 and bool((places[:, 0] == 0).all())

    def _rotation(self, positions: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [rows, length, 1, head_dim] of the positions, the sine's first half negated for ``_rotate``."""
        most = int(positions.max()) + 1
        positions = positions.to(like.device)
        if len(self._cos) < most:
            every = torch.arange(max(most, 2 * len(self._cos), 256), device=positions.device)
            cos, sin = self._model.rotary_emb(like, every[None])
            half = sin.shape[-1] // 2
            self._cos, self._sin = cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), dim=-1)
        return self._cos[positions][:, :, None], self._sin[positions][:, :, None]


class _Layer:
    """One decoder layer: its matmuls, norms, and where the effects act."""

    def __init__(self, base: Base, index: int, layer: Any, pack: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index, self._attention = index, attention
        self._norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._query_norm, self._key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self._qkv = _side_by_side([attention.q_proj, attention.k_proj, attention.v_proj], pack)
        self._o = _side_by_side([attention.o_proj], pack)
        self._gate_up = _side_by_side([mlp.gate_proj, mlp.up_proj], pack)
        self._down = _side_by_side([mlp.down_proj], pack)
        self._sites = [sites_of(base, index, names) for names in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))]
        self._blocks = sites_of(base, index, ("attention_out", "mlp_out"))
        self._width = attention.head_dim
        self._heads = attention.q_proj.out_features // self._width
        self._groups = attention.k_proj.out_features // self._width
        self._attend = grouped_attention if base.device.type == "cpu" else sdpa_attention_forward

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, masks: list[torch.Tensor | None], work: Pass
    ) -> torch.Tensor:
        """[rows, length, hidden] to the same; a mask for the rows of each arena."""
        plan, (qkv, o, gate_up, down) = work.plan, self._sites
        h = self._norm(x)
        h = _linear(self._qkv, plan, qkv, h)
        h = _linear(self._o, plan, o, self._mix(h, cos, sin, masks, work))
        x = x + _block(plan, self._blocks[0], h)
        h = _linear(self._gate_up, plan, gate_up, self._mlp_norm(x))
        gate, up = h.chunk(2, dim=-1)
        h = _linear(self._down, plan, down, functional.silu(gate) * up)
        return x + _block(plan, self._blocks[1], h)

    def _mix(
        self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, masks: list[torch.Tensor | None], work: Pass
    ) -> torch.Tensor:
        """Attention: [rows, length, q + k + v features] to [rows, length, q features].

        Each arena's rows read its memory as it lies there; everything else of a pass is done for all rows together.
        """
        rows, length, _ = qkv.shape
        lanes = qkv.view(rows, length, -1, self._width)
        rotated, values = lanes[:, :, : self._heads + self._groups], lanes[:, :, self._heads + self._groups :]
        if self._query_norm is not None and self._key_norm is not None:
            parts = rotated.split((self._heads, self._groups), dim=2)
            normed = [norm(part) for norm, part in zip((self._query_norm, self._key_norm), parts, strict=True)]
            rotated = torch.cat(normed, dim=2)
        rotated = _rotate(rotated, cos, sin).transpose(1, 2)
        queries, keys, values = rotated[:, : self._heads], rotated[:, self._heads :], values.transpose(1, 2)
        mixed = []
        for part, mask in zip(work.access.parts, masks, strict=True):
            own = part.exchange(self._index, keys[part.rows], values[part.rows])
            mixed.append(self._mix_part(queries[part.rows], *own, mask))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _mix_part(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        rows, _, length, _ = queries.shape
        if length == 1 and mask is not None:
            return self._mix_one(queries, keys, values, mask)
        more = {"is_causal": True} if mask is None else {}
        mixed, _ = self._attend(self._attention, queries, keys, values, mask, scaling=self._attention.scaling, **more)
        return mixed.reshape(rows, length, -1)

    def _mix_one(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one new token a row: one product for the heads that share keys and values.

        ``mask`` is [rows · groups, 1, places].
        """
        folded = queries.reshape(len(queries) * self._groups, -1, self._width)
        keys, values = keys.flatten(0, 1).transpose(1, 2), values.flatten(0, 1)
        scores = torch.baddbmm(mask, folded, keys, alpha=self._attention.scaling)
        return torch.bmm(torch.softmax(scores, dim=-1), values).view(len(queries), 1, -1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding: x cos + (-second half, first half) sin, the sign being in the sine already."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _linear(multiply: Product, plan: Plan, sites: tuple[Any, ...], x: torch.Tensor) -> torch.Tensor:
    effect = plan.linear(sites)
    if effect is None:
        return multiply(x)
    x = effect.before(x)
    return effect.after(x, multiply(x))


def _block(plan: Plan, site: Any, x: torch.Tensor) -> torch.Tensor:
    effect = plan.bottleneck(site)
    return x if effect is None else effect.after(x, x)


def _side_by_side(modules: Sequence[nn.Linear], pack: bool) -> Product:
    """x to the modules' outputs side by side; their weights are joined only where they are copied anyway."""
    if not pack:
        return lambda x: torch.cat([module(x) for module in modules], dim=-1)
    bias = None if modules[0].bias is None else torch.cat([module.bias.detach() for module in modules])
    return product(torch.cat([module.weight.detach() for module in modules]), bias, pack)
