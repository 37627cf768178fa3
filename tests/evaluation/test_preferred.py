"""How often a customization prefers the better completion, by one measure for trained methods and prompts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.objectives.pairs import PAIRS, RANKINGS
from tests.tiny import tiny_base

from tunescope.data.encoding import Encoder
from tunescope.data.identity import row_keys
from tunescope.data.pairs import Pair
from tunescope.data.rankings import Ranking
from tunescope.errors import DataError
from tunescope.evaluation import preferred
from tunescope.evaluation.preference_accuracy import evaluate_preferences
from tunescope.evaluation.preferred import PreferenceMeter
from tunescope.inference import Item, score
from tunescope.methods import LoRA, Method, PromptTuning, System, ZeroShot
from tunescope.objectives import DPO, SFT, PreferenceObjective, Reward
from tunescope.objectives.reference import untouched
from tunescope.training import TrainSettings, train

SETTINGS = TrainSettings(max_steps=4, lr=1e-2)


@pytest.fixture(autouse=True)
def _own_cache(empty_cache: Path) -> None:
    """References are kept for the test alone."""


@pytest.mark.parametrize("method", [LoRA(), PromptTuning(virtual_tokens=3)], ids=lambda method: method.name)
@pytest.mark.parametrize(
    "objective",
    [DPO(beta=0.5), DPO(length_normalize=True), DPO(loss="simpo"), Reward()],
    ids=["dpo", "a token", "simpo", "reward"],
)
def test_of_trained_ones_it_is_what_eval_measures(method: Method, objective: PreferenceObjective) -> None:
    customized = train(tiny_base(), method, objective, PAIRS, settings=SETTINGS).customized
    rows = [*PAIRS, *(Pair(p.messages, p.rejected, p.chosen, p.number) for p in PAIRS[:5])]
    found, card = (
        PreferenceMeter(objective, rows, None).measure(customized),
        evaluate_preferences(customized, objective, rows),
    )
    assert found.score == pytest.approx(card["score"])
    losses = [math.log1p(math.exp(-margin)) for margin in _margins(customized, objective, rows)]
    assert found.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert found.row_keys == row_keys(rows) and not found.notes


def _margins(customized: object, objective: PreferenceObjective, rows: list[Pair]) -> list[float]:
    """One pair at a time."""
    return [evaluate_preferences(customized, objective, [row])["margin"] for row in rows]  # type: ignore[arg-type]


def test_the_base_prefers_neither() -> None:
    customized = train(tiny_base(), ZeroShot(), data=[p.best for p in PAIRS]).customized
    found = PreferenceMeter(DPO(), PAIRS, None).measure(customized)
    assert found.per_row == [0.5] * len(PAIRS) and found.loss == pytest.approx(math.log(2))


def test_a_system_text_is_compared_with_the_base_without_it() -> None:
    customized = train(tiny_base(), System(instruction="Be brief."), data=[p.best for p in PAIRS]).customized
    found = PreferenceMeter(DPO(beta=1.0), PAIRS, None).measure(customized)
    losses = []
    for pair in PAIRS:
        apart = []
        for each in (customized, untouched(customized)):
            encoded = Encoder(each.base.tokenizer, each.template, each.base.context_length).encode_pairs([pair])[0]
            chosen, rejected = score(each, [Item(encoded.prompt, [encoded.chosen, encoded.rejected])])[0]
            apart.append(chosen.logprob - rejected.logprob)
        losses.append(-float(torch.nn.functional.logsigmoid(torch.tensor(apart[0] - apart[1]))))
    assert found.loss == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert set(found.per_row) <= {0.0, 1.0}


def test_a_ranking_counts_once_and_ties_half() -> None:
    rows = [*RANKINGS, Ranking(PAIRS[0].messages, ("yes", "no", "perhaps"), (1, 2, 2), 99)]
    found = preferred._judged(rows[-1], torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))
    assert found[0] == 0.25 and found[1] == pytest.approx((math.log(2) + math.log1p(math.e)) / 2)
    customized = train(tiny_base(), LoRA(), Reward(), rows, settings=SETTINGS).customized
    card = evaluate_preferences(customized, Reward(), rows)
    assert PreferenceMeter(Reward(), rows, None).measure(customized).score == pytest.approx(card["score"])


def test_the_base_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(customized: object, items: list[Item]) -> object:
        asked.append(len(items))
        return score(customized, items)  # type: ignore[arg-type]

    monkeypatch.setattr(preferred, "score", counted)
    measured = PreferenceMeter(DPO(), PAIRS, None)
    for method in (ZeroShot(), System()):
        measured.measure(train(tiny_base(), method, data=[p.best for p in PAIRS]).customized)
    assert asked == [len(PAIRS)] * 3


def test_rows_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Pair(PAIRS[0].messages, "word " * 600, "no", 1)
    customized = train(tiny_base(), LoRA(), SFT(), [p.best for p in PAIRS], settings=SETTINGS).customized
    found = PreferenceMeter(DPO(), [long, *PAIRS], None).measure(customized)
    assert len(found.per_row) == len(PAIRS) and found.notes == [
        f"1 of {len(PAIRS) + 1} rows did not fit and were left out."
    ]
    with pytest.raises(DataError, match="No pair fits"):
        PreferenceMeter(DPO(), [long], None).measure(customized)
    with pytest.raises(DataError, match="gives no rewards"):
        PreferenceMeter(Reward(), PAIRS, None).measure(customized)
