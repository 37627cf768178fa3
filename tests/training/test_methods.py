"""Every method through the loop: it learns, an interrupted run goes on unbroken, and what was trained is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.inference import Item, score
from tunescope.methods import IA3, Adapter, LoRA, Method, PromptTuning, PTuning, compose
from tunescope.training import StepMetrics, TrainSettings, train

PATTERN = "<|VIRTUAL_PROMPT_0|> {word} <|VIRTUAL_PROMPT_1|> kind: {label}"
METHODS: dict[str, Method] = {
    "prompt-tuning": PromptTuning(virtual_tokens=4, initialize="labels"),
    "prompt-tuning-split": PromptTuning(virtual_tokens=5, splits=(2, 3)),
    "p-tuning-mlp": PTuning(virtual_tokens=4),
    "p-tuning-lstm": PTuning(virtual_tokens=4, encoder="lstm", encoder_hidden=8),
    "ia3": IA3(),
    "adapter": Adapter(placement="houlsby", bottleneck=4),
    "lora": LoRA(rank=2, plus_ratio=4, rank_pattern={"v": 1}),
    "prompt-tuning+lora": compose(PromptTuning(virtual_tokens=3), LoRA(rank=2)),
    "p-tuning+ia3": compose(PTuning(virtual_tokens=3), IA3()),
}


class Stopped(Exception):
    """Stands for whatever ends a run in the middle."""


def _rows(marked: bool) -> list[Row]:
    texts = [f"<|VIRTUAL_PROMPT_0|> word {i} <|VIRTUAL_PROMPT_1|> kind:" if marked else f"word {i}" for i in range(12)]
    return [Row(({"role": "user", "content": text},), ("yes", "no")[i % 2], i + 1) for i, text in enumerate(texts)]


@pytest.mark.parametrize("name", METHODS)
def test_trained_interrupted_and_served(name: str, tmp_path: Path) -> None:
    base, method, marked = tiny_base(), METHODS[name], "split" in name
    rows = _rows(marked)
    settings = TrainSettings(max_steps=8, batch_size=4, lr=3e-2, checkpoint_every=2)
    common = {"data": rows, "settings": settings, "pattern": PATTERN if marked else None}
    whole = train(base, method, out=tmp_path / "whole", **common)
    assert whole.result.losses[-1] < whole.result.losses[0]

    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(base, method, out=tmp_path / "again", on_step=stop, **common)
    again = train(base, method, out=tmp_path / "again", **common)
    assert again.result.losses == whole.result.losses

    served = bank.load(tmp_path / "again", base)
    prompt = Encoder(base.tokenizer, served.template, base.context_length).prompt(rows[0].messages).ids
    assert sum(token < 0 for token in prompt) == served.template.virtual_tokens
    item = Item(prompt, [[1, 2, 3], [4]])
    assert score(served, [item]) == score(whole.customized, [item])
    assert not any("encoder" in name for name in served.customization.tensors())
