from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.inference.mix import METHODS, customized, reference_logits
from tests.tiny import tiny_base

from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import DataError
from tunescope.evaluation import evaluate_judged
from tunescope.evaluation.judged import win_rate
from tunescope.inference import Engine, Request
from tunescope.judging import Samples
from tunescope.judging.functions import Function
from tunescope.methods import Customization, Customized, ZeroShot

ROWS = [Row(({"role": "user", "content": f"tell me of {thing}"},), None, i + 1) for i, thing in enumerate("abcd")]
SAMPLING = Samples(n=3, max_new_tokens=5)
LENGTH = Function("m:length", lambda prompt, text: len(text))


def untouched() -> Customized:
    base = tiny_base()
    return Customized(base, Customization(ZeroShot(), default_template(base.tokenizer), {}), base)


def test_what_did_not_move_moved_nothing() -> None:
    card = evaluate_judged(untouched(), ROWS, LENGTH, SAMPLING)
    assert card["kl"] == card["kl_low"] == card["kl_high"] == card["difference"] == 0
    assert card["score"] == card["base_score"] and card["win_rate"] == 0.5
    assert (card["rows"], card["samples"], card["metric"]) == (4, 12, "judge m:length")
    assert len(card["notes"]) == 1 and "difference and kl: the same on every row" in card["notes"][0]


@pytest.mark.parametrize("name", METHODS)
def test_the_divergence_is_the_mean_of_the_log_ratios(name: str) -> None:
    """Against full sequences, one at a time, without any cache."""
    made = customized(name)
    card = evaluate_judged(made, ROWS, LENGTH, SAMPLING)
    engine = Engine(made.base)
    engine.load("it", made)
    found = []
    for row in ROWS:
        sampling = SAMPLING.model_copy(update={"seed": 7919 * row.number})
        answer = engine.generate([Request(row.messages, "it", sampling)])[0]
        for sample in (answer, *answer.others):
            nats = []
            for whose in (made, untouched()):
                prompt = Encoder(whose.base.tokenizer, whose.template, 512).prompt(row.messages).ids
                spread = reference_logits(whose, prompt, sample.tokens).log_softmax(-1)
                nats.append(spread.gather(-1, torch.tensor(sample.tokens)[:, None]).sum().item())
            found.append(nats[0] - nats[1])
    assert card["kl"] == pytest.approx(np.mean(found), abs=1e-4)
    assert card["kl_per_token"] == pytest.approx(card["kl"] / card["tokens"])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_win_rates(ours: list[int], theirs: list[int]) -> None:
    wins = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    assert win_rate(np.array(ours), np.array(theirs)) == pytest.approx(np.mean(wins))
    assert win_rate(np.array(ours), np.array(theirs)) + win_rate(np.array(theirs), np.array(ours)) == pytest.approx(1)


def test_failures_and_tempered_samples_are_said() -> None:
    def fails_for_b(prompt: str, text: str) -> float:
        return float("nan") if prompt.endswith("b") else 1.0

    judge = Function("m:f", fails_for_b)
    tempered = SAMPLING.model_copy(update={"temperature": 0.5})
    card = evaluate_judged(untouched(), ROWS, judge, tempered, skip_unjudged=6)
    assert card["rows"] == 3 and len(card["notes"]) == 3
    assert "line 2, sample 1: the judge returned nan" in card["notes"][0] and "temperature 1" in card["notes"][2]
    with pytest.raises(DataError, match="no score for 3 samples, and 2 may be left out"):
        evaluate_judged(untouched(), ROWS, judge, SAMPLING, skip_unjudged=2)
    with pytest.raises(DataError, match=r"No prompt has samples(.|\n)*line 2, sample 1: the judge returned nan"):
        evaluate_judged(untouched(), ROWS[1:2], judge, SAMPLING, skip_unjudged=6)


def test_it_may_be_compared_with_another_customization() -> None:
    """Against itself nothing differs; against the base it is what it is without ``against``."""
    made = untouched()
    alone, same = (evaluate_judged(made, ROWS, LENGTH, SAMPLING, against=other) for other in (None, made))
    assert same["difference"] == same["kl"] == 0 and same["distinct_2"] == same["base_distinct_2"]
    assert alone["score"] == same["score"] and 0 <= alone["stop_share"] <= 1 and 0 <= alone["distinct_2"] <= 1
