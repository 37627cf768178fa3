"""The real SmolLM2-135M and real data, end to end: few steps, true claims."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tunescope as ts
from tunescope import bank
from tunescope.base import Base, load_base
from tunescope.data.reading import read
from tunescope.data.rows import Row, label_set, to_rows
from tunescope.data.splitting import split
from tunescope.evaluation.forgetting import Probes, default_probes, measure_forgetting
from tunescope.evaluation.task import measure_task
from tunescope.inference import Item, Sampling, generate, score
from tunescope.methods import ZeroShot
from tunescope.training import TrainSettings, train

pytestmark = [pytest.mark.smollm2, pytest.mark.data]


@pytest.fixture(scope="module")
def base() -> Iterator[Base]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield load_base("smollm2-135m")
    torch.set_num_threads(threads)  # tests that compare runs bit for bit want as many in each


@pytest.fixture(scope="module")
def rows() -> tuple[list[Row], list[Row]]:
    train_rows, test_rows = to_rows(read("reuters-r8")), to_rows(read("reuters-r8", split="test"))
    _, chosen = split(len(test_rows), [row.completion for row in test_rows], 48, 0)
    return train_rows, [test_rows[i] for i in chosen]


def test_it_is_smollm2(base: Base) -> None:
    assert base.parameters == 134_515_008
    assert base.sites.layers == 30
    assert base.context_length == 8192
    cities = Sampling(choices=("London", "Paris", "Rome"))
    assert generate(untuned(base), ["What is the capital of France?"], cities)[0].text == "Paris"


def untuned(base: Base) -> ts.Customized:
    return train(base, ZeroShot()).customized


def test_grouped_attention_equals_the_eager_one(base: Base) -> None:
    ids = torch.arange(300, 420).view(2, 60)
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    with torch.no_grad():
        ours = base.forward(ids, mask)[:, 7:].float()
        kind = base.model.config._attn_implementation
        base.model.set_attn_implementation("eager")
        theirs = base.forward(ids, mask)[:, 7:].float()
        base.model.set_attn_implementation(kind)
    # The two round to bfloat16 at other places; what they predict is the same but for that.
    assert (ours - theirs).abs().mean() < 0.1
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.95


def test_lora_learns_reuters_and_is_served_as_trained(
    base: Base, rows: tuple[list[Row], list[Row]], tmp_path: Path
) -> None:
    train_rows, test_rows = rows
    labels = label_set(train_rows)
    plain = measure_task(untuned(base), test_rows, labels, generate_rows=0, max_length=160)
    settings = TrainSettings(max_steps=14, max_length=160)
    trained = train(base, ts.LoRA(), data=train_rows, settings=settings, labels=labels, out=tmp_path / "lora")
    tuned = measure_task(trained.customized, test_rows, labels, generate_rows=0, max_length=160)
    assert tuned.nll_per_token < 0.5 * plain.nll_per_token
    assert trained.customized.trainable_parameters == 460_800
    loaded = bank.load(tmp_path / "lora", base)
    item = Item(list(range(1000, 1040)), [[5, 6, 7]])
    assert score(loaded, [item]) == score(trained.customized, [item])
    whole = default_probes()
    sample = Probes(whole.texts[:1], {name: found[:8] for name, found in whole.questions.items()})
    forgotten = measure_forgetting(loaded, sample)
    assert forgotten.forgetting_off == 0.0
    assert forgotten.forgetting_on != 0.0
