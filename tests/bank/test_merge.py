"""A merged model computes what the customization does, and several LoRAs become one."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.bank.assemble import lora_parts
from tunescope.bank.merge import Combination, merge, merge_into_base, merged_model
from tunescope.base import Base, load_base
from tunescope.base.fingerprint import hash_weights
from tunescope.data.template import default_template
from tunescope.errors import BankError, TunescopeError
from tunescope.methods import IA3, Adapter, Customized, FewShot, Full, LoRA, Method, PromptTuning, compose, customize

MERGEABLE: dict[str, Method] = {
    "lora": LoRA(rank=3, alpha=2, targets=("all-linear",), rank_pattern={"q": 1}),
    "rslora": LoRA(rank=4, rslora=True),
    "dora": LoRA(rank=2, dora=True, targets=("q", "k", "o")),
    "ia3-attention": IA3(targets=("q", "k", "v", "o"), feedforward=("o",)),
    "ia3": IA3(),
    "lora+ia3": compose(LoRA(targets=("k", "v")), IA3(targets=("k", "v"), feedforward=())),
}


def _ids() -> torch.Tensor:
    return torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(3))


def _logits(customized: Customized) -> torch.Tensor:
    ids = _ids()
    with torch.no_grad(), customized.active() as base:
        return base.forward(ids, torch.ones_like(ids))


def _moved(method: Method, base: Base, seed: int = 5) -> Customized:
    customized = customize(base, method, default_template(base.tokenizer), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in customized.customization.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    customized.finish()
    return customized


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", MERGEABLE)
def test_merged_equals_unmerged_and_the_base_stays(name: str, arch: str) -> None:
    if arch == "mixtral" and name == "ia3":
        pytest.skip("experts have no such sites")
    customized = _moved(MERGEABLE[name], tiny_base(arch))
    before = hash_weights(customized.base.model)
    model = merged_model(customized.base, customized.customization)
    ids = _ids()
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(found, _logits(customized), atol=1e-5, rtol=1e-5)
    assert hash_weights(customized.base.model) == before


def test_the_folder_is_a_base_of_its_own(tmp_path: Path) -> None:
    customized = _moved(LoRA(), tiny_base("llama"))
    merged = merge_into_base(customized, tmp_path / "merged")
    assert merged.dtype == "float32" and merged.max_error <= 1e-5 < merged.mean_logit
    again = load_base(tmp_path / "merged", dtype="float32", device="cpu")
    ids = _ids()
    with torch.no_grad():
        found = again.forward(ids, torch.ones_like(ids))
    torch.testing.assert_close(found, _logits(customized), atol=1e-5, rtol=1e-5)
    assert again.model.generation_config.eos_token_id == list(customized.template.stop)
    with pytest.raises(TunescopeError, match="exists already"):
        merge_into_base(customized, tmp_path / "merged")


def test_the_error_of_bfloat16_is_measured(tmp_path: Path) -> None:
    merged = merge_into_base(_moved(LoRA(), tiny_base("llama")), tmp_path / "merged", dtype=torch.bfloat16)
    assert merged.dtype == "bfloat16"
    assert 0 < merged.mean_error < merged.max_error < merged.mean_logit


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (PromptTuning(virtual_tokens=3), "virtual tokens are inputs"),
        (Adapter(), "nonlinear"),
        (compose(PromptTuning(virtual_tokens=3), LoRA()), "virtual tokens are inputs"),
        (FewShot(shots=1), "nothing to merge"),
        (Full(), "is a model already"),
    ],
)
def test_what_cannot_be_merged_says_why(method: Method, why: str, tmp_path: Path) -> None:
    base = tiny_base("llama")
    if isinstance(method, FewShot):
        from tunescope.data.rows import Row

        rows = [Row(({"role": "user", "content": "a"},), "b", 1)]
        customized = customize(base, method, default_template(base.tokenizer), rows)
    else:
        customized = customize(base, method, default_template(base.tokenizer))
    with pytest.raises(BankError, match=why):
        merge_into_base(customized, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_linear_is_the_exact_weighted_sum(arch: str) -> None:
    base = tiny_base(arch)
    first, second = _moved(LoRA(rank=2), base, 1), _moved(LoRA(rank=3, targets=("v", "o"), rslora=True), base, 2)
    one, error = merge([first, second], [0.3, -1.5])
    assert error == 0.0
    found, (a, b) = lora_parts(one), (lora_parts(first), lora_parts(second))
    assert set(found) == set(a) | set(b)
    for key, part in found.items():
        wanted = sum(w * p[key].delta() for w, p in ((0.3, a), (-1.5, b)) if key in p)
        torch.testing.assert_close(part.delta(), wanted, atol=1e-6, rtol=1e-5)
    assert one.method.parse(one.method.model_dump(mode="json")) == one.method


@pytest.mark.parametrize("weights", [None, (0.25, 0.75), (0.5, 0.25, 0.25)])
@pytest.mark.parametrize("how", get_args(Combination))
def test_an_entry_merged_with_itself_is_that_entry(how: Combination, weights: tuple[float, ...] | None) -> None:
    lora = _moved(LoRA(rank=2), tiny_base("llama"))
    one, error = merge([lora] * len(weights or "ab"), weights, how=how, density=1.0)
    assert error < 1e-5
    for key, part in lora_parts(one).items():
        torch.testing.assert_close(part.delta(), lora_parts(lora)[key].delta(), atol=1e-5, rtol=1e-4)


def test_ties_takes_weights_by_their_ratio_and_dare_as_given() -> None:
    base = tiny_base("llama")
    lora, nothing = _moved(LoRA(rank=2), base), customize(base, LoRA(rank=2), default_template(base.tokenizer))
    for how, weights, share in (
        ("ties", (3, 3), 1.0),
        ("ties", (-2, 1), -1.0),
        ("dare", None, 0.5),
        ("dare", (2, 9), 2),
    ):
        one, _ = merge([lora, nothing], weights, how=how, density=1.0)
        for key, part in lora_parts(one).items():
            torch.testing.assert_close(part.delta(), share * lora_parts(lora)[key].delta(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
def test_ties_trims_over_all_sites_together(density: float) -> None:
    from tunescope.bank.merge import _threshold

    parts = list(
        lora_parts(_moved(LoRA(rank=2, targets=("q", "v"), alpha_pattern={"v": 100}), tiny_base("llama"))).values()
    )
    sizes = torch.cat([part.delta().abs().flatten() for part in parts]).sort(descending=True).values
    assert _threshold(parts, density) == sizes[round(density * len(sizes)) - 1].item()


def test_ties_keeps_the_agreeing_sign() -> None:
    from tunescope.bank.merge import _ties

    trimmed = torch.tensor([[[4.0, -1.0, 0.0]], [[2.0, 3.0, 0.0]], [[-1.0, 5.0, 0.0]]])
    # Where two signs meet the heavier one wins, and its mean is taken: (4 + 2) / 2, (3 + 5) / 2.
    assert torch.equal(_ties(trimmed, torch.ones(3, 1, 1)), torch.tensor([[3.0, 4.0, 0.0]]))
    # By weights 1, 1, 6: 4 + 2 - 6 is a tie of no sign; (3 · 1 + 5 · 6) / 7.
    found = _ties(trimmed, torch.tensor([1.0, 1.0, 6.0])[:, None, None])
    torch.testing.assert_close(found, torch.tensor([[0.0, 33 / 7, 0.0]]))


def test_dare_keeps_the_expected_sum() -> None:
    from tunescope.bank.merge import _dare

    deltas = torch.ones(2, 200, 200)
    found = _dare(deltas, 0.25, torch.Generator().manual_seed(0)).sum(dim=0)
    assert abs(found.mean().item() - 2.0) < 0.05
    assert set(found.unique().tolist()) == {0.0, 4.0, 8.0}


def test_a_cut_says_how_much_it_lost() -> None:
    base = tiny_base("llama")
    loras = [_moved(LoRA(rank=4), base, seed) for seed in (1, 2)]
    _, small = merge(loras, how="ties", rank=2)
    _, large = merge(loras, how="ties", rank=12)
    assert 0 < large < small < 1


def test_what_cannot_be_combined_says_why() -> None:
    base = tiny_base("llama")
    lora, dora, ia3 = _moved(LoRA(), base), _moved(LoRA(dora=True), base), _moved(IA3(), base)
    with pytest.raises(BankError, match="two or more"):
        merge([lora])
    with pytest.raises(BankError, match="2 LoRAs, 1 weights"):
        merge([lora, lora], [1.0])
    with pytest.raises(BankError, match="DoRA is not one"):
        merge([lora, dora])
    with pytest.raises(BankError, match="ia3 is not one"):
        merge([ia3, lora])
    with pytest.raises(BankError, match="different bases"):
        merge([lora, _moved(LoRA(), tiny_base("qwen2"))])
    with pytest.raises(BankError, match="not all zero"):
        merge([lora, lora], [0.0, 0.0])
    with pytest.raises(BankError, match="finite"):
        merge([lora, lora], [float("nan"), 1.0])
    with pytest.raises(BankError, match="density"):
        merge([lora, lora], how="dare", density=0.0)
    plain = customize(base, LoRA(), default_template(base.tokenizer, style="plain"))
    with pytest.raises(BankError, match="templates"):
        merge([lora, plain])
