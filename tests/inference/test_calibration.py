"""Contextual calibration: the prior by the formula, and the same answers wherever labels are chosen from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.tiny import tiny_base

import tunescope as ts
from tunescope import bank
from tunescope.data.inputs import understand
from tunescope.errors import TrainingError
from tunescope.evaluation.task import measure_task
from tunescope.inference import Engine, Request, Sampling
from tunescope.inference.calibration import CONTENT_FREE, label_prior
from tunescope.methods import FewShot, Method, System, ZeroShot

LABELS = ("warm", "wet")
ROWS = [{"text": f"the {('sun', 'rain')[i % 2]} of {i}", "label": LABELS[i % 2]} for i in range(20)]
PATTERN = "{text} kind: {label}"


def plain(method: Method) -> ts.Trained:
    return ts.train(tiny_base(), method, data=ROWS, pattern=PATTERN)


@pytest.mark.parametrize("kind", [ZeroShot, System, FewShot])
def test_the_prior_is_the_mean_over_texts_that_say_nothing(kind: type[Method]) -> None:
    """By ``predict``, which shares nothing with the prior's own scoring but the template."""
    asked = ts.predict(plain(kind()), [{"text": text} for text in CONTENT_FREE])
    calibrated = plain(kind(calibrate=True))
    prior = calibrated.customized.template.label_prior
    for label in LABELS:
        mean = sum((each.probabilities or {})[label] for each in asked) / len(asked)
        assert prior[label] == pytest.approx(math.log(mean), abs=1e-5)


def test_answers_are_divided_by_the_prior_everywhere(tmp_path: Path) -> None:
    before, after = plain(FewShot(shots=2)), plain(FewShot(shots=2, calibrate=True))
    prior = after.customized.template.label_prior
    asked = [{"text": row["text"]} for row in ROWS[:6]]
    for raw, found in zip(ts.predict(before, asked), ts.predict(after, asked), strict=True):
        assert raw.probabilities is not None and found.probabilities is not None
        shares = {label: raw.probabilities[label] / math.exp(prior[label]) for label in LABELS}
        for label in LABELS:
            assert found.probabilities[label] == pytest.approx(shares[label] / sum(shares.values()), rel=1e-3)
    # The engine chooses the same, from memory and from an entry.
    bank.save(after.customized, tmp_path / "entry", after.record)
    for customized in (after.customized, bank.load(tmp_path / "entry", tiny_base())):
        engine = Engine(customized.base)
        engine.load("few", customized)
        prompts = [f"{row['text']} kind:" for row in asked]
        answers = engine.generate([Request(prompt, "few", Sampling(choices=LABELS)) for prompt in prompts])
        assert [answer.text for answer in answers] == [each.label for each in ts.predict(after, asked)]
        other = engine.generate([Request(prompts[0], "few", Sampling(choices=(*LABELS, "dry")))])[0]
        assert other.choice_logprobs is not None  # other choices than the labels are not calibrated
        raw_engine = Engine(before.customized.base)
        raw_engine.load("few", before.customized)
        raw = raw_engine.generate([Request(prompts[0], "few", Sampling(choices=(*LABELS, "dry")))])[0]
        assert other.choice_logprobs == pytest.approx(raw.choice_logprobs)


def test_the_accuracy_is_of_calibrated_answers() -> None:
    trained = plain(ZeroShot(calibrate=True))
    given = understand(ROWS, PATTERN).rows
    found = measure_task(trained.customized, given, LABELS, generate_rows=0)
    predicted = ts.predict(trained, [{"text": row["text"]} for row in ROWS])
    right = [float(each.label == row["label"]) for each, row in zip(predicted, ROWS, strict=True)]
    assert found.per_row == right
    raw = measure_task(plain(ZeroShot()).customized, given, LABELS, generate_rows=0)
    assert found.nll_per_token == raw.nll_per_token  # a loss is the model's own


def test_only_labels_are_calibrated() -> None:
    rows = [{"prompt": f"say {i}", "completion": f"word {i} and {i}"} for i in range(30)]
    with pytest.raises(TrainingError, match="only labels are"):
        ts.train(tiny_base(), ZeroShot(calibrate=True), data=rows)


def test_a_row_without_a_pattern_says_nothing_too() -> None:
    rows = [{"prompt": row["text"], "completion": row["label"]} for row in ROWS]
    trained = ts.train(tiny_base(), ZeroShot(), data=rows)
    prior = label_prior(trained.customized, LABELS)
    assert sum(map(math.exp, prior.values())) == pytest.approx(1, abs=1e-4)
