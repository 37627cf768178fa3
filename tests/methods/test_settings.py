"""Settings that select places: what they name, and that none of them is silently without an effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import tiny_base

from tunescope.data.template import default_template
from tunescope.errors import BaseModelError, TrainingError, TunescopeError, UnknownNameError
from tunescope.methods import IA3, Adapter, Full, LoRA, Method, PromptTuning, PTuning, System, compose, customize
from tunescope.methods.registry import METHODS


def _effects(method: Method, arch: str = "llama") -> dict[str, Any]:
    base = tiny_base(arch)
    return customize(base, method, default_template(base.tokenizer)).customization.effects


@pytest.mark.parametrize(
    ("targets", "layers", "keys"),
    [
        (("q", "v"), None, ["0.q", "0.v", "1.q", "1.v"]),
        (("down",), (1,), ["1.down"]),
        (("0.q", "1.?"), None, ["0.q", "1.q", "1.k", "1.v", "1.o"]),
        (("q", "0.q", "*.q"), None, ["0.q", "1.q"]),
        (("all-linear",), (0,), ["0.q", "0.k", "0.v", "0.o", "0.gate", "0.up", "0.down"]),
    ],
)
def test_targets_name_sites(targets: tuple[str, ...], layers: tuple[int, ...] | None, keys: list[str]) -> None:
    assert list(_effects(LoRA(targets=targets, layers=layers))) == [f"{key}.low_rank" for key in keys]


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "opt"])
def test_all_linear_is_what_the_architecture_has(arch: str) -> None:
    keys = {key.split(".")[1] for key in _effects(LoRA(targets=("all-linear",)), arch)}
    assert keys == {"q", "k", "v", "o", "up", "down"}


@pytest.mark.parametrize(
    "method",
    [
        LoRA(targets=("query",)),
        LoRA(targets=("q_proj",)),
        LoRA(targets=("7.*",)),
        LoRA(targets=("1.q",), layers=(0,)),
        LoRA(rank_pattern={"k": 2}),
        LoRA(alpha_pattern={"7.*": 2.0}),
        IA3(targets=("k", "v")),  # feedforward names down, which is not among the targets
        IA3(feedforward=("up",)),
    ],
)
def test_what_matches_nothing_is_refused(method: Method) -> None:
    with pytest.raises(UnknownNameError, match="Known:"):
        _effects(method)


@pytest.mark.parametrize("method", [LoRA(layers=(2,)), Adapter(layers=(-1,)), IA3(layers=(0, 9))])
def test_layers_that_are_not_there_are_refused(method: Method) -> None:
    with pytest.raises(BaseModelError, match="layers 0 to 1"):
        _effects(method)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (LoRA, {"rank": 0}),
        (LoRA, {"rank": -1}),
        (LoRA, {"alpha": 0}),
        (LoRA, {"dropout": 1.0}),
        (LoRA, {"targets": ()}),
        (LoRA, {"layers": ()}),
        (LoRA, {"rank_pattern": {"q": 0}}),
        (LoRA, {"alpha_pattern": {"q": float("nan")}}),
        (LoRA, {"plus_ratio": 0}),
        (Adapter, {"bottleneck": 0}),
        (Adapter, {"reduction_factor": 0.5}),
        (Adapter, {"bottleneck": 8, "reduction_factor": 4}),
        (Adapter, {"layers": ()}),
        (Adapter, {"activation": "step"}),
        (PTuning, {"encoder_hidden": 0}),
        (PTuning, {"task": ""}),
        (IA3, {"target": ("k",)}),
    ],
)
def test_bad_settings_are_refused(kind: type[Method], values: dict[str, Any]) -> None:
    with pytest.raises(TunescopeError, match=kind.__name__):
        kind(**values)


def test_patterns_give_sites_ranks_and_alphas() -> None:
    effects = _effects(
        LoRA(rank=4, alpha=8, targets=("q", "v"), rank_pattern={"v": 2, "1.v": 6}, alpha_pattern={"0.*": 2})
    )
    shapes = {key: (effect.A.shape[0], effect.scaling) for key, effect in effects.items()}
    assert shapes == {
        "0.q.low_rank": (4, 2 / 4),
        "0.v.low_rank": (2, 2 / 2),
        "1.q.low_rank": (4, 8 / 4),
        "1.v.low_rank": (6, 8 / 6),
    }


def test_the_width_of_an_adapter() -> None:
    widths = {Adapter(): 2, Adapter(reduction_factor=4): 8, Adapter(reduction_factor=100): 1, Adapter(bottleneck=5): 5}
    for method, width in widths.items():
        assert {effect.down.out_features for effect in _effects(method).values()} == {width}
    assert list(_effects(Adapter(placement="houlsby"))) == [
        f"{layer}.{place}.bottleneck" for layer in (0, 1) for place in ("attention_out", "mlp_out")
    ]


def test_scaling_a_shared_input_is_refused() -> None:
    with pytest.raises(TrainingError, match="computed together"):
        _effects(IA3(targets=("up",), feedforward=("up",)), "phi3")


def test_lora_plus_gives_b_its_rate() -> None:
    base = tiny_base("llama")
    customized = customize(base, LoRA(plus_ratio=16, dora=True), default_template(base.tokenizer))
    rates = {name: customized.method.rate_of(name) for name, _ in customized.customization.named_parameters()}
    assert len(rates) == 12
    assert all(rate == (16 if name.endswith(".B") else 1) for name, rate in rates.items())


def test_dropout_acts_in_training_only() -> None:
    base = tiny_base("llama")
    customized = customize(base, LoRA(dropout=0.5), default_template(base.tokenizer))
    with torch.no_grad():
        for effect in customized.customization.effects.values():
            effect.B.add_(1.0)
    ids = torch.arange(8)[None]

    def logits() -> torch.Tensor:
        with torch.no_grad(), customized.active():
            return base.forward(ids, torch.ones_like(ids))

    customized.customization.train()
    assert not torch.equal(logits(), logits())
    customized.customization.eval()
    assert torch.equal(logits(), logits())


# Compositions.


def test_a_composition_has_the_settings_of_its_parts() -> None:
    kind = METHODS.load("lora+prompt-tuning")
    assert kind is METHODS.load("prompt-tuning+lora") and kind.name == "prompt-tuning+lora"
    method = kind(virtual_tokens=3, rank=2)
    assert method.parts == (PromptTuning(virtual_tokens=3), LoRA(rank=2))
    assert method == compose(LoRA(rank=2), PromptTuning(virtual_tokens=3))
    assert kind.parse(method.model_dump(mode="json")) == method
    with pytest.raises(UnknownNameError, match="rank"):
        kind(rnk=3)


def test_names_in_several_parts_get_the_part_s_name() -> None:
    method = METHODS.load("lora+ia3")
    assert {"lora_targets", "ia3_targets", "lora_layers", "ia3_layers", "rank", "feedforward"} <= set(
        method.model_fields
    )
    made = method(lora_targets=("q",), ia3_targets=("k", "down"))
    assert set(_effects(made)) == {f"{i}.{key}" for i in (0, 1) for key in ("q.low_rank", "k.scale", "down.scale")}


def test_parts_keep_their_own_rates() -> None:
    base = tiny_base("llama")
    method = compose(PromptTuning(virtual_tokens=3), LoRA(plus_ratio=4))
    customized = customize(base, method, default_template(base.tokenizer))
    for name, _ in customized.customization.named_parameters():
        own = PromptTuning.learning_rate if "prefix" in name else LoRA.learning_rate * (4 if name.endswith(".B") else 1)
        assert method.learning_rate * method.rate_of(name) == pytest.approx(own)


@pytest.mark.parametrize(
    "parts", [(LoRA(), LoRA()), (PromptTuning(), PTuning()), (LoRA(),), (LoRA(), Full()), (System(), LoRA())]
)
def test_what_cannot_be_together_is_refused(parts: tuple[Method, ...]) -> None:
    with pytest.raises(TunescopeError, match="composition"):
        compose(*parts)


def test_bad_parts_of_a_composition_say_so() -> None:
    with pytest.raises(TunescopeError, match="add up"):
        METHODS.load("prompt-tuning+lora")(virtual_tokens=3, splits=(1, 1))
    with pytest.raises(UnknownNameError, match="method"):
        METHODS.load("prompt-tuning+lroa")


def test_the_spectrum_is_in_order() -> None:
    assert METHODS.names()[:9] == [
        "zero-shot", "system", "few-shot", "prompt-tuning", "p-tuning", "ia3", "lora", "adapter", "full",
    ]  # fmt: skip
    assert [METHODS.load(name).name for name in METHODS.names()] == METHODS.names()
