"""The choices that depend on the device, tried on fakes of devices that the machine need not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_base, tiny_model, tiny_tokenizer

from tunescope import peak_memory
from tunescope.base import Base, device, load_base, loading
from tunescope.base.attention import NAME
from tunescope.base.device import available_devices, random_states, resolve_device, resolve_dtype, set_random_states
from tunescope.errors import TunescopeError
from tunescope.training.loop import _checksum

CUDA, SECOND, MPS, CPU = (torch.device(name) for name in ("cuda", "cuda:1", "mps", "cpu"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have this machine so many CUDA devices, and MPS or not."""

    def have(cuda: int = 0, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    ("cuda", "mps", "known"),
    [(0, False, ["cpu"]), (2, False, ["cuda", "cuda:0", "cuda:1", "cpu"]), (0, True, ["mps", "cpu"])],
)
def test_the_accelerator_comes_first_and_what_is_not_there_is_refused(
    machine: Any, cuda: int, mps: bool, known: list[str]
) -> None:
    machine(cuda, mps)
    assert available_devices() == known
    assert resolve_device(None) == torch.device(known[0])
    for name in known:
        assert resolve_device(name) == resolve_device(torch.device(name)) == torch.device(name)
    for name in {"cuda", "cuda:1", "cuda:2", "mps", "meta", "gpu", "", "cpu:1", "cuda:-1"} - set(known):
        with pytest.raises(TunescopeError, match=f"no device '{name}'.*Give one of: {', '.join(known)}"):
            resolve_device(name)


@pytest.mark.parametrize("where", [CUDA, SECOND])
def test_emulated_bfloat16_is_not_taken(monkeypatch: pytest.MonkeyPatch, where: torch.device) -> None:
    chosen: list[Any] = []

    class Chosen:
        def __init__(self, index: Any) -> None:
            self.index = index

        def __enter__(self) -> None:
            chosen.append(self.index)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "device", Chosen)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_dtype("auto", where) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_dtype("auto", where) == torch.bfloat16
    assert resolve_dtype("float32", where) == torch.float32
    assert chosen == ([SECOND] * 2 if where is SECOND else [])  # asked of the device itself
    assert resolve_dtype("auto", MPS) == torch.float32


def test_the_peak_is_of_the_device_that_works(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=2)
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", asked.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda where: asked.append(where) or 5e6)
    peak_memory.reset_peak(CPU)
    assert peak_memory.peak_mb(CPU) > 5 and asked == []
    peak_memory.reset_peak(SECOND)
    assert peak_memory.peak_mb(SECOND) == 5 and asked == [SECOND, SECOND]


def test_random_states_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    state, put = torch.zeros(3, dtype=torch.uint8), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda where: state + where.index)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda new, where: put.append((new.tolist(), where)))
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: state + 7)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: put.append((new.tolist(), MPS)))
    on_cuda, on_mps, on_cpu = (random_states(where) for where in (SECOND, MPS, CPU))
    assert (set(on_cuda), set(on_mps), set(on_cpu)) == ({"cpu", "cuda"}, {"cpu", "mps"}, {"cpu"})
    set_random_states(SECOND, on_cuda)
    set_random_states(MPS, on_mps)
    set_random_states(SECOND, on_cpu)  # a run that was begun on the CPU
    assert put == [([1, 1, 1], SECOND), ([7, 7, 7], MPS)]


def test_the_device_that_works_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(MPS))
    for where in (SECOND, MPS, CPU):
        device.synchronize(where)
    assert waited == [SECOND, MPS]


class OnMps:
    """A parameter as MPS would have it: only its copy on the CPU is a tensor."""

    device = MPS

    def __init__(self, tensor: torch.Tensor) -> None:
        self.cpu = lambda: tensor
        self.detach = lambda: self


def test_bits_are_summed_on_the_cpu_where_the_device_cannot() -> None:
    tensors = [torch.arange(5.0), torch.ones(2, 3, dtype=torch.bfloat16)]
    model: Any = SimpleNamespace(parameters=lambda: [OnMps(tensor) for tensor in tensors], buffers=list)
    plain: Any = SimpleNamespace(parameters=lambda: [torch.nn.Parameter(tensor) for tensor in tensors], buffers=list)
    assert _checksum(model) == _checksum(plain)


def test_weights_get_their_precision_before_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().double()
    moved: list[set[torch.dtype]] = []
    to = type(model).to

    def recorded(self: Any, *given: Any) -> Any:
        moved.append({parameter.dtype for parameter in self.parameters()})
        return to(self, *given)

    monkeypatch.setattr(type(model), "to", recorded)
    base = Base(model, tiny_tokenizer(), dtype=torch.float32, device=torch.device("meta"))
    assert base.device.type == "meta" and moved == [{torch.float32}]


def test_a_comparison_names_the_device_it_ran_on(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: f"Fake {where}")
    assert device.device_name(SECOND) == "Fake cuda:1"
    assert not device.device_name(tiny_base().device).startswith("Fake")


@pytest.mark.parametrize(
    ("arch", "where", "kind"),
    [("llama", "meta", "sdpa"), ("gemma2", "meta", "eager"), ("llama", "cpu", NAME), ("gemma2", "cpu", NAME)],
)
def test_the_attention_is_one_that_the_device_and_the_architecture_have(
    arch: str, where: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(arch).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "resolve_device", torch.device)  # meta stands for an accelerator
    base = load_base(tmp_path, dtype="float32", device=where)
    assert base.device.type == where
    assert base.model.config._attn_implementation == kind


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no oneDNN products in bfloat16 here")
def test_shapes_of_products_are_not_kept_for_ever() -> None:
    program = (
        "import tunescope.base, torch\n"
        "weight = torch.ones(64, 64, dtype=torch.bfloat16)\n"
        "for rows in 2 * list(range(1, 201)): torch.ones(rows, 64, dtype=torch.bfloat16) @ weight"
    )
    own = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"}
    environment = {name: value for name, value in os.environ.items() if name not in own}
    environment["ONEDNN_VERBOSE"] = "profile_create"
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    made = run.stdout.count("create:cache_miss")
    assert made > 300, "200 shapes, twice: the second time most have to be made anew"
