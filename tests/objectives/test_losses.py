"""The losses over pairs: their formulas, what they are zero at, and settings that contradict each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunescope.errors import TunescopeError
from tunescope.objectives import DPO, Reward, losses

SCORES = st.floats(-30, 30)
BETAS = st.floats(0.01, 5)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tensor(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float64)


@given(d=SCORES, beta=BETAS, epsilon=st.floats(0, 0.45))
def test_formulas(d: float, beta: float, epsilon: float) -> None:
    kept, flipped = -math.log(sigma(beta * d)), -math.log(sigma(-beta * d))
    expected = {
        "sigmoid": (losses.sigmoid_loss(tensor(d), beta), kept),
        "cdpo": (losses.sigmoid_loss(tensor(d), beta, epsilon), (1 - epsilon) * kept + epsilon * flipped),
        "robust": (
            losses.robust_loss(tensor(d), beta, epsilon),
            ((1 - epsilon) * kept - epsilon * flipped) / (1 - 2 * epsilon),
        ),
        "hinge": (losses.hinge_loss(tensor(d), beta), max(0.0, 1 - beta * d)),
        "ipo": (losses.ipo_loss(tensor(d), beta), (d - 1 / (2 * beta)) ** 2),
        "simpo": (losses.simpo_loss(tensor(d), beta, 0.7), -math.log(sigma(beta * d - 0.7))),
        "bradley-terry": (losses.bradley_terry_loss(tensor(d), 0.7), -math.log(sigma(d - 0.7))),
        "scaled": (losses.scaled_bradley_terry_loss(tensor(d), tensor(3.0)), -3 * math.log(sigma(d))),
    }
    for name, (found, value) in expected.items():
        assert found.item() == pytest.approx(value, rel=1e-9, abs=1e-9), name


@given(p=st.floats(0.001, 0.999), q=st.floats(0.001, 0.999))
def test_odds_ratio(p: float, q: float) -> None:
    ratio = (p / (1 - p)) / (q / (1 - q))
    found = losses.odds_ratio_loss(tensor(math.log(p)), tensor(math.log(q)))
    assert found.item() == pytest.approx(-math.log(sigma(math.log(ratio))), abs=1e-9)


def test_odds_of_a_certain_completion_are_finite() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    loss = losses.odds_ratio_loss(chosen, torch.tensor([-200.0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(chosen.grad).all()


@given(d=st.floats(-8, 8), margin=st.floats(0, 8), beta=BETAS, scale=st.floats(0.1, 3))
def test_rpo_is_a_distance(d: float, margin: float, beta: float, scale: float) -> None:
    def log_sigma(x: float) -> float:
        return -math.log1p(math.exp(-x))

    given_, implied = scale * margin, beta * d
    expected = sigma(given_) * (log_sigma(given_) - log_sigma(implied)) + sigma(-given_) * (
        log_sigma(-given_) - log_sigma(-implied)
    )
    found = losses.rpo_loss(tensor(d), tensor(margin), beta, scale).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert found >= -1e-12
    there = losses.rpo_loss(tensor(scale * margin / beta), tensor(margin), beta, scale).item()
    assert there == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"beta": 0.0}, r"DPO\.beta.*greater than 0"),
        ({"beta": -1.0}, r"DPO\.beta.*greater than 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing.*less than 0\.5"),
        ({"label_smoothing": 0.1, "loss": "ipo"}, "belongs to the losses sigmoid and robust"),
        ({"gamma": 1.0}, "gamma belongs to the loss simpo"),
        ({"reward_scale": 1.0}, "reward_scale belongs to the loss rpo"),
        ({"loss": "simpo", "length_normalize": True}, "already"),
        ({"loss": "orpo", "nll_weight": 1.0}, "nll_weight is 1 in the loss orpo"),
        ({"loss": "dpo"}, r"DPO\.loss"),
        ({"bta": 1.0}, "beta"),
    ],
)
def test_bad_settings(values: dict[str, object], said: str) -> None:
    with pytest.raises(TunescopeError, match=said):
        DPO(**values)


def test_settings_survive_the_record() -> None:
    for objective in (DPO(loss="simpo", gamma=0.5), DPO(loss="rpo"), Reward(loss="scaled", centering=0.01)):
        assert type(objective).parse(objective.model_dump(mode="json")) == objective


def test_strength() -> None:
    assert (DPO().strength, DPO(loss="simpo").strength, DPO(beta=0.3).strength) == (0.1, 2.0, 0.3)
