"""Forgetting: measured on and off, zero where it must be, and never assumed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_base

from tunescope.data.template import Template
from tunescope.errors import DataError
from tunescope.evaluation.forgetting import (
    Probes,
    Question,
    _sample,
    default_probes,
    measure_forgetting,
    untouched,
    user_probes,
)
from tunescope.methods import Customization, Customized, Full, LoRA
from tunescope.methods.customization import customize

TEXTS = ["Once upon a time there was a miller who had three sons. " * 3, "A fox and a crane. " * 5]
QUESTIONS = [Question(f"What is {n}?", ("one", "two", "a longer three"), n % 3) for n in range(9)]


def probes() -> Probes:
    return Probes(TEXTS, {"toy": QUESTIONS}, True)


def lora(noise: float) -> Customized:
    base, method = tiny_base(), LoRA(rank=2)
    effects = method.effects(base, torch.Generator().manual_seed(0))
    for effect in effects.values():
        torch.nn.init.normal_(effect.B, std=noise)  # type: ignore[arg-type]
    return Customized(base, Customization(method, Template(style="plain"), effects), base)


def test_off_is_exactly_zero_and_on_is_not() -> None:
    found = measure_forgetting(lora(0.5), probes())
    assert found.forgetting_off == 0.0
    assert found.forgetting_on != 0.0
    assert found.general.accuracy.keys() == {"toy"}


def test_at_its_identity_nothing_is_forgotten() -> None:
    found = measure_forgetting(lora(0.0), probes())
    assert found.forgetting_on == found.forgetting_off == 0.0
    assert found.general == found.general_base


def test_full_has_no_off() -> None:
    customized = customize(tiny_base(), Full(), Template(style="plain"))
    with torch.no_grad():
        for parameter in customized.base.model.parameters():
            parameter.mul_(1.1)
    found = measure_forgetting(customized, probes())
    assert found.forgetting_off == found.forgetting_on != 0.0


def test_general_loss_equals_the_slow_version() -> None:
    base = tiny_base()
    found = probes().of_base(base)
    nll = tokens = 0.0
    for text in TEXTS:
        ids = base.tokenizer(text)["input_ids"]
        for begin in range(0, len(ids), 256):
            chunk = torch.tensor([ids[begin : begin + 256]])
            if chunk.shape[1] > 1:
                logprobs = base.model(chunk).logits[0].log_softmax(-1)
                nll -= logprobs[:-1].gather(1, chunk[0, 1:, None]).sum().item()
                tokens += chunk.shape[1] - 1
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nll / tokens, abs=1e-4)


def test_accuracy_is_by_mean_log_likelihood() -> None:
    base = tiny_base()
    right = 0
    for question in QUESTIONS:
        means = []
        for choice in question.choices:
            prompt = base.tokenizer(f"Question: {question.text}\nAnswer:")["input_ids"]
            answer = base.tokenizer(" " + choice)["input_ids"]
            logprobs = base.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            means.append(sum(logprobs[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer)) / len(answer))
        right += means.index(max(means)) == question.answer
    assert probes().of_base(base).accuracy["toy"] == right / len(QUESTIONS)


def test_sample_is_fixed_and_stratified() -> None:
    many = [Question(str(n), ("a", "b"), int(n % 10 == 0)) for n in range(3000)]
    sample = _sample(many, everything=False)
    assert sample == _sample(many, everything=False)
    assert len(sample) == 60
    assert sum(q.answer for q in sample) == 30
    assert len(_sample(many, everything=True)) == 3000


def test_user_probe_takes_the_defaults_place(tmp_path: Path) -> None:
    file = tmp_path / "probe.jsonl"
    file.write_text(json.dumps({"question": "?", "choices": ["a", "b"], "answer": "b"}) + "\n")
    assert user_probes(file).questions["probe.jsonl"][0].answer == 1
    file.write_text(json.dumps({"text": "some text"}) + "\n")
    assert user_probes(file).texts == ["some text"]
    file.write_text(json.dumps({"other": "some text"}) + "\n")
    with pytest.raises(DataError, match="needs the column text"):
        user_probes(file)
    file.write_text(json.dumps({"question": "?", "choices": ["a", "b"], "answer": "c"}) + "\n")
    with pytest.raises(DataError, match=r"line 1.*'c' is not among"):
        user_probes(file)


def test_how_a_probe_was_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tunescope"), "propagate", True)  # a command of another test ends it
    file = tmp_path / "probe.csv"
    file.write_text("text;by\nsome text;Ann\n")
    with caplog.at_level("INFO", logger="tunescope"):
        assert user_probes(file).texts == ["some text"]
    assert f"{file}: the delimiter is a semicolon." in caplog.messages


@pytest.mark.data
def test_default_probes_are_whole() -> None:
    found = default_probes()
    assert {name: len(questions) for name, questions in found.questions.items()} == {
        "openbookqa": 500,
        "piqa": 1500,
        "commonsenseqa": 1221,
    }
    assert len(found.texts) == 54


def test_prompting_forgets_nothing_by_construction() -> None:
    found = measure_forgetting(untouched(tiny_base()), probes())
    assert found.forgetting_on == found.forgetting_off == 0.0
