"""Sites are the same places on every architecture, fused modules included."""

from __future__ import annotations

import pytest
import torch
import transformers
from tests.tiny import ARCHITECTURES, tiny_base, tiny_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tunescope.base import Site, Sites
from tunescope.base.sites import LINEAR_SITES
from tunescope.errors import BaseModelError, UnknownNameError

_UNGATED = ("gpt2", "gpt_neox", "opt", "falcon", "falcon_grouped", "falcon_alibi", "bloom", "starcoder2")
_MLP: dict[str, set[str]] = {**{arch: {"up", "down"} for arch in _UNGATED}, "mixtral": set()}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_has_its_sites(arch: str) -> None:
    sites = tiny_base(arch).sites
    assert sites.layers == 2
    assert set(sites.names) == {"q", "k", "v", "o", "attention_out", "mlp_out"} | _MLP.get(arch, {"gate", "up", "down"})
    assert len(sites.all) == 2 * len(sites.names)
    assert all(sites[site.key] is site for site in sites.all)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_site_s_weight_makes_its_output(arch: str) -> None:
    base = tiny_base(arch)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def watch(site: Site) -> object:
        def effect(given: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            seen[site.key] = given, output.clone()  # Falcon adds to it in place afterwards
            return output

        return site.on_output(effect)

    linear = [site for site in base.sites.all if site.name in LINEAR_SITES]
    handles = [watch(site) for site in linear]
    ids = torch.arange(10)[None]
    with torch.no_grad():
        base.forward(ids, torch.ones_like(ids))
    for handle in handles:
        handle.remove()
    for site in linear:
        given, output = seen[site.key]
        assert site.weight.shape == (site.out_features, site.in_features)
        torch.testing.assert_close(functional.linear(given, site.weight, site.bias), output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_weights_are_written_where_they_are_read(arch: str) -> None:
    sites = Sites(tiny_model(arch))
    before = {site.key: site.weight.detach().clone() for site in sites.all if site.name in LINEAR_SITES}
    sites["1.k"].set_weight(torch.zeros_like(before["1.k"]))
    if sites["1.k"].bias is not None:
        sites["1.k"].set_bias(torch.full((sites["1.k"].out_features,), 7.0))
        assert (sites["1.k"].bias == 7).all() and not (sites["1.q"].bias == 7).any()
    for key, weight in before.items():
        assert torch.equal(sites[key].weight, torch.zeros_like(weight) if key == "1.k" else weight)


@pytest.mark.parametrize(
    "arch", ["llama", "gpt_neox", "gemma2", "mixtral", "falcon", "falcon_grouped", "bloom", "starcoder2", "olmo2"]
)
def test_blocks_are_what_is_added_to_the_residual_stream(arch: str) -> None:
    """With every block's output at zero the model sees the embeddings alone."""
    base = tiny_base(arch)
    blocks = [site for site in base.sites.all if site.name in ("attention_out", "mlp_out")]
    handles = [site.on_output(lambda _given, output: torch.zeros_like(output)) for site in blocks]
    ids = torch.arange(6)[None]
    with torch.no_grad():
        hidden = base.model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        assert torch.equal(hidden[1], hidden[0])


def test_unknown_architectures_name_what_was_seen() -> None:
    config = transformers.MptConfig(d_model=16, n_layers=1, n_heads=2, vocab_size=50)
    with pytest.raises(BaseModelError, match=r"'mpt' model.*attn\.Wqkv"):
        _ = Sites(AutoModelForCausalLM.from_config(config)).names


def test_a_fused_module_of_another_family_is_not_guessed() -> None:
    """GPT-BigCode names its modules like GPT-2 and orders their outputs otherwise."""
    config = transformers.GPTBigCodeConfig(n_embd=16, n_layer=1, n_head=2, vocab_size=50)
    with pytest.raises(BaseModelError, match="gpt_bigcode"):
        _ = Sites(AutoModelForCausalLM.from_config(config)).names


def test_plain_layers_among_experts_do_not_matter() -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )
    sites = Sites(AutoModelForCausalLM.from_config(config))
    assert set(sites.names) == {"q", "k", "v", "o", "attention_out", "mlp_out"}
    with pytest.raises(BaseModelError, match="mixture of experts"):
        sites.select(("down",))


def test_unknown_sites_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Known:"):
        tiny_base().sites.select(("query",))
    with pytest.raises(UnknownNameError, match=r"1\.q"):
        _ = tiny_base().sites["9.q"]
