"""Choosing tokens against the formulas, and the sampling settings' contradictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.errors import TunescopeError
from tunescope.inference import Sampling
from tunescope.inference.sampling import Draw, choose

LOGITS = st.lists(st.floats(-6, 6, width=32), min_size=2, max_size=12)


def drawn(logits: list[float], sampling: Sampling, count: int = 4000) -> torch.Tensor:
    """How often each token is chosen."""
    draws = [Draw(sampling, sample) for sample in range(count)]
    tokens, _ = choose(torch.tensor(logits).repeat(count, 1), draws)
    return torch.bincount(tokens, minlength=len(logits)) / count


def expected(logits: list[float], sampling: Sampling) -> list[float]:
    """The distribution, token by token."""
    p = torch.softmax(torch.tensor(logits, dtype=torch.float64) / sampling.temperature, 0).tolist()
    order = sorted(range(len(p)), key=lambda i: -p[i])[: sampling.top_k]
    total, before, kept = sum(p[i] for i in order), 0.0, []
    for i in order:
        if before < sampling.top_p * (total if sampling.top_k else 1):
            kept.append(i)
        before += p[i]
    kept = [i for i in kept if p[i] >= sampling.min_p * max(p)]
    left = sum(p[i] for i in kept)
    return [p[i] / left if i in kept else 0.0 for i in range(len(p))]


@pytest.mark.parametrize(
    "cuts",
    [{}, {"top_p": 0.8}, {"top_k": 2}, {"min_p": 0.3}, {"top_k": 3, "top_p": 0.7}, {"top_p": 0.95, "min_p": 0.25}],
)
def test_frequencies_follow_the_distribution(cuts: dict[str, Any]) -> None:
    logits = [2.0, 1.0, 0.0, -1.0, 0.5]
    sampling = Sampling(temperature=2.0, **cuts)
    assert drawn(logits, sampling).tolist() == pytest.approx(expected(logits, sampling), abs=0.03)


@settings(max_examples=60, deadline=None)
@given(
    logits=LOGITS,
    temperature=st.floats(0.1, 3),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.9),
)
def test_nothing_outside_the_cuts_is_drawn(
    logits: list[float], temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    p = torch.softmax(torch.tensor(logits) / temperature, 0)
    found = drawn(logits, sampling, 40)
    wanted = torch.tensor(expected(logits, sampling))
    # Tokens as likely as the last one that stays may stay too: there is no order among equals.
    least = p[wanted > 0].min()
    assert not found[p < least * 0.999].any()


def test_top_p_of_many_that_are_equally_likely() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, 4999] = 1.0
    draws = [Draw(Sampling(temperature=1, top_p=0.9), sample) for sample in range(50)]
    tokens, _ = choose(logits.repeat(50, 1), draws)
    assert tokens.max() > 2000


@settings(max_examples=40)
@given(
    vocabulary=st.integers(200, 3000),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.1, 2.0, 8.0]),
    top_k=st.none() | st.integers(1, 600),
    top_p=st.sampled_from([0.1, 0.9, 0.999, 1.0]),
)
def test_a_token_is_where_the_distribution_function_exceeds_the_drawn_number(
    vocabulary: int, seed: int, spread: float, top_k: int | None, top_p: float
) -> None:
    """Over many blocks: of what the cuts leave, the drawn number lies between the sums before and with the token."""
    logits = spread * torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p, seed=seed)
    tokens, _ = choose(logits.clone(), [Draw(sampling, row) for row in range(4)])
    for row, token in enumerate(tokens.tolist()):
        left = torch.tensor(expected(logits[row].tolist(), sampling), dtype=torch.float64)
        number = Draw(sampling, row).uniform()
        together = left.cumsum(0)
        assert left[token] > 0
        assert together[token] - left[token] - 1e-5 <= number <= together[token] + 1e-5


def test_rows_have_settings_of_their_own() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0]] * 4)
    rows = [
        Draw(Sampling()),
        Draw(Sampling(temperature=1, top_k=1)),
        Draw(Sampling(repetition_penalty=10.0), seen={1}),
        Draw(Sampling(min_new_tokens=2), stop=frozenset({1})),
    ]
    tokens, logprobs = choose(logits, rows)
    assert tokens.tolist() == [1, 1, 2, 2] and logprobs is None


@pytest.mark.parametrize("broken", [[float("nan"), 1.0, 2.0], [float("inf"), 0.0, 0.0], [-float("inf")] * 3])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9), Sampling(logprobs=True)])
def test_a_row_whose_logits_are_not_finite_has_no_token_and_the_others_keep_theirs(
    broken: list[float], sampling: Sampling
) -> None:
    whole = [[0.0, 3.0, 2.0], [1.0, 0.5, 0.0]]
    draws = [Draw(sampling, row) for row in range(2)]
    wanted, nats = choose(torch.tensor(whole), draws)
    lost = Draw(sampling)
    found, beside = choose(torch.tensor([whole[0], broken, whole[1]]), [draws[0], lost, draws[1]])
    assert found.tolist() == [int(wanted[0]), -1, int(wanted[1])]
    if nats is not None and beside is not None:
        assert torch.equal(beside[[0, 2]], nats)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(
        st.builds(
            Sampling,
            temperature=st.sampled_from([1e-5, 0.5, 2.0]),
            top_k=st.none() | st.integers(1, 900),
            top_p=st.sampled_from([0.2, 0.95, 1.0]),
            min_p=st.sampled_from([0.0, 0.1]),
            repetition_penalty=st.sampled_from([1.0, 1.5]),
            min_new_tokens=st.integers(0, 2),
            seed=st.integers(0, 99),
        ),
        min_size=2,
        max_size=5,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_row_draws_what_it_draws_alone(rows: list[Sampling], dtype: torch.dtype) -> None:
    logits = 3 * torch.randn(len(rows), 700, generator=torch.Generator().manual_seed(rows[0].seed)).to(dtype)

    def draw(sampling: Sampling) -> Draw:
        return Draw(sampling, stop=frozenset({1, 2}), seen={3, 4})

    together, _ = choose(logits.clone(), [draw(each) for each in rows])
    alone = [int(choose(logits[i : i + 1].clone(), [draw(each)])[0]) for i, each in enumerate(rows)]
    assert together.tolist() == alone


def test_a_step_that_is_repeated_draws_the_same_number() -> None:
    draw = Draw(Sampling(temperature=1.0, seed=4))
    first = draw.uniform()
    assert draw.uniform() == first
    draw.took(7)
    assert draw.uniform() != first


def test_log_probabilities_are_the_models_own() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0]])
    _, logprobs = choose(logits.clone(), [Draw(Sampling(logprobs=True, repetition_penalty=10.0), seen={1})])
    assert logprobs is not None and logprobs.item() == pytest.approx(logits.log_softmax(-1)[0, 2].item())


def test_repetition_penalty_equals_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.tensor([[1.0, -2.0, 3.0, -0.5]])
    wanted = RepetitionPenaltyLogitsProcessor(7.0)(torch.tensor([[1, 2]]), logits.clone()).argmax(-1)
    tokens, _ = choose(logits, [Draw(Sampling(repetition_penalty=7.0), seen={1, 2})])
    assert tokens.tolist() == wanted.tolist() == [0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_p": 0.5}, "top_p has no meaning at temperature 0"),
        ({"top_k": 5}, "top_k has no meaning at temperature 0"),
        ({"n": 2}, "n has no meaning at temperature 0"),
        ({"stop": ("",)}, "empty text"),
        ({"choices": ("a", "a")}, "must be texts that all differ"),
        ({"choices": ("a", "b"), "stop": ("x",)}, "answered as a whole"),
        ({"min_new_tokens": 200}, "more than max_new_tokens 128"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-40}, "too low to divide by"),
        ({"stop": "x"}, "stop: Input should be a valid list, got 'x'"),
    ],
)
def test_contradictions_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TunescopeError, match=said):
        Sampling(**given)
