"""Our methods against PEFT's own layers: the same weights give the same logits and the same gradients.

PEFT is also the oracle of its own checkpoint format: what we write it opens, and what it writes we open.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_base

from tunescope.bank.peft import export_peft, import_peft
from tunescope.base import Base
from tunescope.data.template import default_template
from tunescope.errors import BankError, TunescopeError
from tunescope.methods import IA3, Customized, LoRA, Method, PromptTuning, PTuning, customize
from tunescope.methods.p_tuning import EncodedSoftPrompt

peft = pytest.importorskip("peft")

ARCHITECTURES = ["llama", "gpt2", "gpt_neox", "phi3", "opt", "qwen2", "falcon", "falcon_grouped", "bloom", "starcoder2"]
EVERYWHERE = pytest.mark.parametrize("arch", ARCHITECTURES)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to float32's rounding: within 1e-5 of the largest value, as sums round at the size of what they add up."""
    largest = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found, expected, atol=1e-5 * largest, rtol=1e-5)


def _ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 10), generator=torch.Generator().manual_seed(3))


def _ours(customized: Customized) -> torch.Tensor:
    virtual = -1 - torch.arange(customized.template.virtual_tokens)
    ids = torch.cat([virtual.expand(2, -1), _ids()], dim=1)
    with customized.active() as base:
        return base.forward(ids, torch.ones_like(ids))[:, customized.template.virtual_tokens :]


def _theirs(model: Any, virtual: int = 0) -> torch.Tensor:
    ids = _ids()
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, virtual:]


def _shake(module: torch.nn.Module, size: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def _customized(base: Base, method: Method) -> Customized:
    return customize(base, method, default_template(base.tokenizer), seed=1)


def _peft_model(base: Base, config: Any) -> Any:
    return peft.get_peft_model(copy.deepcopy(base.model), config)


LORAS = {
    "lora": LoRA(rank=4, alpha=8, targets=("all-linear",)),
    "rslora": LoRA(rank=4, rslora=True, targets=("o", "up", "down")),
    "dora": LoRA(rank=3, dora=True, targets=("q", "v", "down")),
    "patterns": LoRA(
        rank=4, targets=("q", "k", "down"), rank_pattern={"k": 2, "1.down": 6}, alpha_pattern={"0.*": 3.0}
    ),
    "one-layer": LoRA(rank=4, layers=(1,)),
}
EXPORTED: dict[str, Method] = {
    **LORAS,
    "ia3": IA3(),
    "ia3-other": IA3(targets=("q", "o", "0.down"), feedforward=("o",)),
    "prompt-tuning": PromptTuning(virtual_tokens=4),
    "p-tuning-mlp": PTuning(virtual_tokens=4),
    "p-tuning-lstm": PTuning(virtual_tokens=4, encoder="lstm", encoder_hidden=8),
}


@EVERYWHERE
@pytest.mark.parametrize("name", EXPORTED)
def test_peft_opens_what_we_export_with_the_same_logits(name: str, arch: str, tmp_path: Path) -> None:
    customized = _customized(tiny_base(arch), EXPORTED[name])
    _shake(customized.customization)
    customized.finish()
    export_peft(customized, tmp_path / "adapter")
    with torch.no_grad():
        expected = _ours(customized)
        model = peft.PeftModel.from_pretrained(copy.deepcopy(customized.base.model), tmp_path / "adapter")
        found = _theirs(model.eval(), customized.template.virtual_tokens)
        assert_close(found, expected)
        again = import_peft(tmp_path / "adapter", customized.base)
        assert_close(_ours(again), expected)
        assert again.template.virtual_tokens == customized.template.virtual_tokens


@EVERYWHERE
def test_peft_opens_a_lora_on_top_of_a_lora(arch: str, tmp_path: Path) -> None:
    first = _customized(tiny_base(arch), LoRA(rank=4, targets=("q", "down")))
    _shake(first.customization)
    first.finish()
    above = LoRA(rank=3, rslora=True, targets=("q", "v"))
    made = customize(first.base, above, first.template, seed=2, start=first.customization)
    _shake(made.customization)
    made.finish()
    export_peft(made, tmp_path / "adapter")
    with torch.no_grad():
        model = peft.PeftModel.from_pretrained(copy.deepcopy(made.base.model), tmp_path / "adapter")
        assert_close(_theirs(model.eval()), _ours(made))


def test_peft_has_no_place_for_other_chains(tmp_path: Path) -> None:
    first = _customized(tiny_base(), LoRA(rank=4))
    first.finish()
    for above in (LoRA(dora=True), IA3(), PromptTuning(virtual_tokens=2)):
        made = customize(first.base, above, first.template, start=first.customization)
        with pytest.raises(BankError, match="--to transformers"):
            export_peft(made, tmp_path / "adapter")


_TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "opt": ["q_proj", "fc1", "fc2"],
    "qwen2": ["k_proj", "up_proj"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "falcon_grouped": ["query_key_value", "dense_4h_to_h"],
    "bloom": ["query_key_value", "dense_4h_to_h"],
    "starcoder2": ["q_proj", "mlp.c_proj"],
}


def _configs(arch: str) -> dict[str, Any]:
    targets = _TARGETS[arch]
    down = [name for name in targets if name in ("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2")]
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=4)
    return {
        "lora": lora,
        "lora-all": peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_alpha=3, r=5),
        "rslora": peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, use_rslora=True, lora_dropout=0.1),
        "dora": peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, use_dora=True),
        "patterns": peft.LoraConfig(
            task_type="CAUSAL_LM",
            target_modules=rf".*\.1\..*({'|'.join(targets)})".replace("mlp.c", r"mlp\.c"),
            rank_pattern={targets[0]: 2},
            alpha_pattern={rf".*{targets[1]}": 5},
        ),
        "layers": peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, layers_to_transform=[0]),
        "ia3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=down),
        "prompt-tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "p-tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=8),
    }


@EVERYWHERE
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", list(_configs("llama")))
def test_we_open_what_peft_saves_with_the_same_logits(name: str, arch: str, tmp_path: Path) -> None:
    base, config = tiny_base(arch), _configs(arch)[name]
    model = _peft_model(base, config)
    _shake(model)
    model.eval().save_pretrained(tmp_path)
    virtual = 5 if "tuning" in name else 0
    with torch.no_grad():
        imported = import_peft(tmp_path, base)
        assert_close(_ours(imported), _theirs(model, virtual))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "ia3"])
def test_gradients_equal_those_of_peft(name: str, arch: str, tmp_path: Path) -> None:
    base, config = tiny_base(arch), _configs(arch)[name]
    if name != "ia3":
        config.lora_dropout = 0.0
    model = _peft_model(base, config)
    _shake(model)
    model.save_pretrained(tmp_path)
    ours = import_peft(tmp_path, base)
    ours.customization.requires_grad_(True)
    _theirs(model).square().mean().backward()
    _ours(ours).square().mean().backward()
    theirs = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    # Each of theirs has the size of the sum over its sites of ours: compare by the rows they hold.
    compared = 0
    for site in base.sites.all:
        for tensor, their_name in (
            ("low_rank.B", "lora_B.default.weight"),
            ("low_rank.magnitude", "lora_magnitude_vector.default.weight"),
            ("scale.vector", "ia3_l.default"),
        ):
            grad = theirs.get(f"base_model.model.{site.path}.{their_name}")
            effect = ours.customization.effects.get(f"{site.key}.{tensor.partition('.')[0]}")
            if grad is None or effect is None:
                continue
            own = getattr(effect, tensor.partition(".")[2]).grad
            grad = grad.flatten() if own.ndim == 1 else grad
            rows = slice(None) if site.part is None else site.part
            assert_close(own, grad[rows])
            compared += 1
        a = theirs.get(f"base_model.model.{site.path}.lora_A.default.weight")
        together = [
            s for s in base.sites.all if s.path == site.path and f"{s.key}.low_rank" in ours.customization.effects
        ]
        if a is not None and together:
            # A fused module has one A there and one a site here: the gradients add up.
            own = sum(ours.customization.effects[f"{s.key}.low_rank"].A.grad for s in together)
            assert_close(own, a)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["prompt-tuning", "mlp", "lstm"])
def test_prompts_equal_peft_with_gradients(kind: str, arch: str) -> None:
    base = tiny_base(arch)
    if kind == "prompt-tuning":
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        method: Method = PromptTuning(virtual_tokens=4)
    else:
        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=4,
            encoder_hidden_size=12,
            encoder_num_layers=2,
            encoder_reparameterization_type=kind.upper(),
        )
        method = PTuning(virtual_tokens=4, encoder=kind, encoder_hidden=12)
    model, ours = _peft_model(base, config), _customized(base, method)
    encoder = model.prompt_encoder["default"]
    effect: Any = ours.customization.effects["embedding.prefix"]
    if isinstance(effect, EncodedSoftPrompt):
        pairs = [(effect.inputs, encoder.embedding.weight)]
        for own, their in (("head", "mlp_head"), *([("lstm", "lstm_head")] if kind == "lstm" else [])):
            own_parameters = dict(getattr(effect.encoder, own).named_parameters())
            pairs += [(own_parameters[n], p) for n, p in getattr(encoder, their).named_parameters()]
    else:
        pairs = [(effect.embeddings, encoder.embedding.weight)]
    assert len(pairs) == len(list(effect.parameters()))
    with torch.no_grad():
        for own, their in pairs:
            their.copy_(own.reshape(their.shape))  # ours has a row a task
    expected, found = _theirs(model, 4), _ours(ours)
    assert_close(found, expected)
    expected.square().mean().backward()
    found.square().mean().backward()
    for own, their in pairs:
        assert own.grad is not None
        assert_close(own.grad.reshape(their.shape), their.grad)


def test_feedforward_on_a_fused_input_is_refused(tmp_path: Path) -> None:
    base = tiny_base("phi3")
    config = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["gate_up_proj"], feedforward_modules=["gate_up_proj"]
    )
    _peft_model(base, config).save_pretrained(tmp_path)
    with pytest.raises(TunescopeError, match="several sites at once"):
        import_peft(tmp_path, base)
