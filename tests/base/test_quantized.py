"""Bases in 4 and 8 bits: the numbers they keep, what is computed of them, and what belongs to them.

Methods, the engine, scoring, merging and plans on quantized bases are rows of the matrices (``tests.tiny``).
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import PATTERN, Ended, Place, cli, place, trained  # noqa: F401
from tests.tiny import tiny_base, tiny_model, tiny_tokenizer
from torch import nn

import tunescope as ts
from tunescope import bank
from tunescope.base import Base, quantized
from tunescope.base.quantized import QuantizedLinear, split_name, write_out
from tunescope.errors import BaseModelError, TrainingError

Cli = Callable[..., Ended]
ROWS = [{"text": f"the {('sun', 'rain')[i % 2]} of day {i}", "label": ("warm", "wet")[i % 2]} for i in range(16)]
# Quantiles of the normal distribution, scaled to end at -1 and 1, with zero among them: QLoRA's appendix E.
NORMAL_FLOAT = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def _linear(bias: bool = True) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(96, 40, bias=bias).requires_grad_(False)


def test_nf4_is_the_nearest_normal_float_of_every_64_weights() -> None:
    linear = _linear()  # rows of one and a half blocks
    blocks = linear.weight.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks / largest).unsqueeze(-1).sub(NORMAL_FLOAT).abs().argmin(dim=-1)
    expected = (NORMAL_FLOAT[nearest] * largest).reshape(40, 96)
    torch.testing.assert_close(QuantizedLinear(linear, "nf4").weight, expected)


def test_int8_is_within_half_a_step_of_each_outputs_scale() -> None:
    linear = _linear()
    linear.weight[3] = 0
    made = QuantizedLinear(linear, "int8")
    step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((made.weight - linear.weight).abs() <= step / 2 + 1e-9).all())
    assert bool((made.weight[3] == 0).all())
    assert made.packed.dtype == torch.int8 and made.packed.shape == (40, 96)


@pytest.mark.parametrize("kind", quantized.KINDS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_keeps_no_weight_for_the_backward_pass(kind: quantized.Quantization, bias: bool) -> None:
    made = QuantizedLinear(_linear(bias), kind)
    plain = nn.Linear(96, 40, bias=bias).requires_grad_(False)
    plain.weight, plain.bias = nn.Parameter(made.weight, requires_grad=False), made.bias
    given = [torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2)]
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: kept[0]):
        found = made(given[0])
    assert not kept
    torch.testing.assert_close(found, plain(given[1]))
    found.square().sum().backward()
    plain(given[1]).square().sum().backward()
    torch.testing.assert_close(given[0].grad, given[1].grad)


@pytest.mark.parametrize("arch", ["llama:nf4", "phi3:int8"])
def test_a_quantized_base_computes_what_its_weights_written_out_do(arch: str) -> None:
    base = tiny_base(arch)
    written = write_out(copy.deepcopy(base.model))
    assert not any(isinstance(module, QuantizedLinear) for module in written.modules())
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(3))
    plain = Base(written, base.tokenizer)
    torch.testing.assert_close(*(each.forward(ids, torch.ones_like(ids)) for each in (base, plain)))
    assert base.parameters == plain.parameters == tiny_base(split_name(arch)[0]).parameters


def test_what_stays_as_it_is() -> None:
    base, plain = tiny_base("llama:nf4"), tiny_base("llama")
    kept = dict(plain.model.named_parameters())
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, kept.pop(name)), name
    assert {name.split(".")[-2] for name in kept} == {
        f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")
    }


def test_its_fingerprint_names_the_base_and_the_bits(tmp_path: Path, empty_cache: Path) -> None:
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    whole, four, again, eight = (
        ts.load_base(f"{folder}{kind}", dtype="float32") for kind in ("", ":nf4", ":nf4", ":int8")
    )
    assert (whole.quantization, four.quantization, eight.quantization) == (None, "nf4", "int8")
    assert whole.fingerprint.weights == four.fingerprint.weights and whole.fingerprint.quantized is None
    assert four.fingerprint == again.fingerprint
    assert four.fingerprint.differs_in_bits_alone(whole.fingerprint)
    assert four.fingerprint.differs_in_bits_alone(eight.fingerprint)
    assert len({base.fingerprint.short for base in (whole, four, eight)}) == 3
    assert "quantized" not in whole.fingerprint.model_dump()  # records of earlier versions have no such field
    # Quantized from what is stored, whatever precision computes.
    assert ts.load_base(f"{folder}:nf4", dtype="bfloat16").fingerprint == four.fingerprint


def test_what_cannot_be_quantized_or_moved_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseModelError, match=r"gpt2 keeps its linear maps in a layout of its own.*without :nf4"):
        Base(tiny_model("gpt2"), tiny_tokenizer(), quantization="nf4")
    with pytest.raises(BaseModelError, match=r"cannot move. Take --base tiny-llama for full"):
        ts.train(tiny_base("llama:nf4"), ts.Full(), ts.SFT(), ROWS, pattern=PATTERN)
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"pip install 'tunescope\[quantize\]'"):
        Base(tiny_model(), tiny_tokenizer(), quantization="nf4")
    Base(tiny_model(), tiny_tokenizer(), quantization="int8")


@pytest.mark.parametrize("name", ["smollm2-135m:nf5", "organization/model:q4"])
def test_other_endings_are_told(name: str) -> None:
    with pytest.raises(BaseModelError, match=rf"{name}: behind the colon stands .* nf4 or int8, and '.*' is neither"):
        ts.load_base(name)


def test_no_code_is_fetched(tmp_path: Path) -> None:
    """bitsandbytes fetches code from the hub and runs it where a package of this name is installed."""
    (tmp_path / "kernels.py").write_text(
        f"def get_kernel(*_, **__):\n    open({str(tmp_path / 'ran')!r}, 'w')\n    raise RuntimeError\n"
    )
    code = "from tunescope.base.quantized import _bitsandbytes; _bitsandbytes(); import kernels; kernels.get_kernel"
    there = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    ended = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": there}, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert not (tmp_path / "ran").exists()


def test_packed_weights_that_move_are_noticed() -> None:
    base = Base(tiny_model(), tiny_tokenizer(), name="mine", quantization="nf4")
    module = next(module for module in base.model.modules() if isinstance(module, QuantizedLinear))

    def move(*_: object) -> None:
        module.packed[0] ^= 1

    with pytest.raises(TrainingError, match="changed while training"):
        ts.train(
            base, ts.LoRA(rank=2), ts.SFT(), ROWS, pattern=PATTERN,
            settings=ts.TrainSettings(max_steps=1), on_step=move,
        )  # fmt: skip


def test_an_entry_belongs_to_its_bits_until_it_is_rebased(cli: Cli, place: Place) -> None:  # noqa: F811
    four = f"{place.base}:nf4"
    options = ("--base", four, "--data", place.data, "--template", PATTERN, "--max-steps", 3, "--dtype", "float32")
    assert cli("train", "lora", *options, "--out", "bank/mine").code == 0
    assert cli("eval", "bank/mine", "--data", place.data, "--max-rows", 8).code == 0
    record = cli("bank", "show", "bank/mine", "--json").json
    assert record["base"]["name"] == four and record["base"]["fingerprint"]["quantized"] and record["card"]
    assert cli("predict", "bank/mine", "--data", place.data, "--out", "out.jsonl").code == 0
    refused = cli("eval", "bank/mine", "--data", place.data, "--base", place.base)
    assert refused.code == 2 and f"--base {place.base} --out bank/mine-rebased" in " ".join(refused.err.split())
    found = cli("bank", "rebase", "bank/mine", "--base", place.base, "--out", "bank/whole", "--json").json
    assert 0 < found["mean_logit_error"] < found["mean_logit"]
    whole = cli("bank", "show", "bank/whole", "--json").json
    assert whole["base"]["fingerprint"] == {k: v for k, v in record["base"]["fingerprint"].items() if k != "quantized"}
    assert whole["card"] is None and whole["training"]["rebased_from"] == four
    assert cli("bank", "verify", "bank/whole", "--json").json["verified"] is True
    assert cli("eval", "bank/whole", "--data", place.data, "--max-rows", 8).code == 0
    again = cli("bank", "rebase", "bank/whole", "--base", place.base, "--out", "bank/again")
    assert again.code == 2 and "is that very base" in again.err
    other = cli("bank", "rebase", "bank/whole", "--base", place.other, "--out", "bank/again")
    assert other.code == 2 and "another weights" in other.err


def test_a_base_of_its_own_is_quantized_by_its_name(cli: Cli, place: Place, trained: object) -> None:  # noqa: F811
    refused = cli("bank", "rebase", place.bank / "full", "--base", f"{place.base}:int8", "--out", "bank/eight")
    assert refused.code == 2 and f"--base {place.bank / 'full'}:nf4" in refused.err
    assert cli("generate", "--base", f"{place.bank / 'full'}:int8", "the sun", "--max-new-tokens", 2).code == 0


def test_merging_writes_the_weights_out(tmp_path: Path) -> None:
    base = tiny_base("llama:nf4")
    made = ts.train(
        base, ts.LoRA(rank=2), ts.SFT(), ROWS, pattern=PATTERN, settings=ts.TrainSettings(max_steps=3, lr=0.05)
    )
    found = bank.merge_into_base(made.customized, tmp_path / "merged")
    assert found.max_error < 1e-4
    whole = ts.load_base(tmp_path / "merged", dtype="float32")
    assert whole.quantization is None and whole.parameters == base.parameters


def test_plans_count_the_bits(cli: Cli, place: Place) -> None:  # noqa: F811
    def planned(base: str, *more: object) -> Any:
        options = ("--length", 32, "--texts", 8, "--methods", "lora", "--objectives", "sft", "--dtype", "float32")
        return cli("plan", "--base", base, *options, *more, "--json").json

    for kind in ("", ":int8", ":nf4"):
        base = ts.load_base(f"{place.base}{kind}", dtype="float32")
        held = sum(t.numel() * t.element_size() for t in (*base.model.parameters(), *base.model.buffers()))
        assert planned(f"{place.base}{kind}")["weights_mb"] == pytest.approx(held / 1e6, abs=0.06)
    refused = cli("plan", "--base", f"{place.base}:nf4", "--length", 32, "--methods", "full")
    assert refused.code == 2 and "which nf4 keeps still" in refused.err
