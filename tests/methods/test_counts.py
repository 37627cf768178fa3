"""The exact number of trained parameters on SmolLM2-135M's shape, without its weights."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig

from tunescope.base import Base
from tunescope.data.template import default_template
from tunescope.methods import IA3, Adapter, Customization, LoRA, Method, PromptTuning, PTuning, compose

HIDDEN, LAYERS, HEADS, GROUPS, MIDDLE, VOCABULARY = 576, 30, 9, 3, 1536, 49152
KEY = HIDDEN // HEADS * GROUPS  # 192: what the three key-value heads have together
TOTAL = 134_515_008


@functools.cache
def smollm2_shape() -> Base:
    """A base on the meta device: every shape is there, no number is."""
    config = LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        intermediate_size=MIDDLE,
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    base = object.__new__(Base)  # without numbers there is nothing to fingerprint
    base.model, base.tokenizer, base.name, base.folder = model, tiny_tokenizer(), "smollm2-135m", None
    return base


def trained(method: Method) -> int:
    base = smollm2_shape()
    template = default_template(base.tokenizer)
    return Customization(method, template, method.effects(base, torch.Generator())).trainable_parameters


# At the defaults.
PROMPT = 20 * HIDDEN
IA3_COUNT = LAYERS * (KEY + KEY + MIDDLE)
LORA = LAYERS * 8 * ((HIDDEN + HIDDEN) + (HIDDEN + KEY))
ADAPTER = LAYERS * (36 * HIDDEN + 36 + HIDDEN * 36 + HIDDEN)
MLP = 20 * HIDDEN + 3 * (HIDDEN * HIDDEN + HIDDEN)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (PromptTuning(), PROMPT),
        (IA3(), IA3_COUNT),
        (LoRA(), LORA),
        (Adapter(), ADAPTER),
        (PTuning(), MLP),
        (LoRA(dora=True), LORA + LAYERS * (HIDDEN + KEY)),
        (LoRA(rank=4, targets=("all-linear",)), LAYERS * 4 * (4 * HIDDEN + 2 * (HIDDEN + KEY) + 3 * (HIDDEN + MIDDLE))),
        (LoRA(layers=(0, 29), rank_pattern={"v": 2}), 2 * (8 * 2 * HIDDEN + 2 * (HIDDEN + KEY))),
        (Adapter(placement="houlsby", bottleneck=64), LAYERS * 2 * (64 * 2 * HIDDEN + 64 + HIDDEN)),
        (compose(PromptTuning(), IA3()), PROMPT + IA3_COUNT),
        (
            PTuning(encoder="lstm", encoder_hidden=64),
            20 * HIDDEN
            + 2 * (4 * 64 * (HIDDEN + 64 + 2) + 4 * 64 * (128 + 64 + 2))
            + (128 * 128 + 128)
            + (128 * HIDDEN + HIDDEN),
        ),
    ],
)
def test_the_count_is_exact(method: Method, count: int) -> None:
    assert trained(method) == count


def test_the_order_of_the_spectrum() -> None:
    assert (PROMPT, IA3_COUNT, LORA, ADAPTER) == (11_520, 57_600, 460_800, 1_262_520)
    assert smollm2_shape().parameters == TOTAL
    assert PROMPT < IA3_COUNT < LORA < ADAPTER < TOTAL
    assert trained(PromptTuning()) < trained(IA3()) < trained(LoRA()) < trained(Adapter()) < TOTAL
