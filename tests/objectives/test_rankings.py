"""Ranked responses against the slow obvious way: each text by itself, each comparison by its formula."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.pairs import RANKINGS, encoded_pairs, encoded_rankings
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.base import Base
from tunescope.data.batching import collate_pairs
from tunescope.data.encoding import EncodedPreference
from tunescope.data.rankings import EncodedRanking
from tunescope.data.template import Template
from tunescope.errors import DataError
from tunescope.methods import Customized, LoRA, Method, PromptTuning, customize
from tunescope.objectives import DPO, PreferenceObjective, Reward, losses
from tunescope.objectives.forward import packed_hidden
from tunescope.objectives.preference import completion_logprobs
from tunescope.objectives.reference import with_reference
from tunescope.objectives.reward_model import HEAD
from tunescope.training import TrainSettings, train

SCORES = st.lists(st.tuples(st.floats(-20, 20), st.integers(1, 4)), min_size=2, max_size=6)


def of(drawn: Sequence[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    scores, ranks = zip(*drawn, strict=True)
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(ranks)


# The loss over a list


@given(SCORES)
def test_plackett_luce_is_the_product_of_choices(drawn: list[tuple[float, int]]) -> None:
    expected = 0.0
    for score, rank in drawn:
        left = [other for other, its in drawn if its >= rank]  # with ties: Breslow's
        expected -= math.log(math.exp(score) / sum(map(math.exp, left)))
    assert losses.plackett_luce_loss(*of(drawn)).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5))
def test_plackett_luce_is_a_probability_of_rankings(drawn: list[float]) -> None:
    scores = torch.tensor(drawn, dtype=torch.float64)
    orders = itertools.permutations(range(1, len(drawn) + 1))
    total = sum(math.exp(-losses.plackett_luce_loss(scores, torch.tensor(ranks)).item()) for ranks in orders)
    assert total == pytest.approx(1)


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_plackett_luce_of_two_is_bradley_terry(better: float, worse: float) -> None:
    found, expected = [], []
    for loss, gradients in ((losses.plackett_luce_loss, found), (losses.bradley_terry_loss, expected)):
        scores = torch.tensor([worse, better], dtype=torch.float64, requires_grad=True)
        value = loss(scores, torch.tensor([2, 1])) if loss is losses.plackett_luce_loss else loss(scores[1] - scores[0])
        value.backward()
        gradients += [value.item(), *scores.grad.tolist()]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.floats(0.1, 5), st.floats(-3, 3))
def test_a_tie_pulls_rewards_together(apart: float, worse: float) -> None:
    ranks = torch.tensor([1, 1, 2])
    equal = losses.plackett_luce_loss(torch.tensor([0.0, 0.0, worse]), ranks)
    # The same share of the tied ones together, parted unequally.
    both = math.log(2 / (math.exp(apart) + math.exp(-apart)))
    unequal = losses.plackett_luce_loss(torch.tensor([apart + both, -apart + both, worse]), ranks)
    assert unequal > equal


# The objectives


def apart(base: Base, prompt: list[int], completion: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and last hidden state of one text, in a pass of its own."""
    ids = torch.tensor([prompt + completion])
    logits = base.forward(ids, torch.ones_like(ids))[0].log_softmax(-1)
    begin = len(prompt)
    logprob = sum(logits[begin - 1 + i, token] for i, token in enumerate(completion))
    return logprob, base.hidden(ids, torch.ones_like(ids))[0, -1]


def slow_loss(objective: PreferenceObjective, customized: Customized, example: EncodedRanking) -> torch.Tensor:
    """Of one list, in float64: the scores of its texts, then the formula, comparison by comparison."""
    scores, likelihoods = [], []
    for i, completion in enumerate(example.completions):
        logprob, hidden = apart(customized.base, example.prompt, completion)
        likelihoods.append(logprob.double() / len(completion))
        if isinstance(objective, Reward):
            scores.append(customized.customization.heads[HEAD](hidden)[0].double())
        elif objective.loss == "simpo":
            scores.append(likelihoods[-1])
        else:
            scores.append(logprob.double() - example.reference[i])
    if isinstance(objective, Reward) and objective.loss == "plackett-luce":
        return sum(
            -torch.log(
                s.exp() / sum(other.exp() for other, its in zip(scores, example.ranks, strict=True) if its >= rank)
            )
            for s, rank in zip(scores, example.ranks, strict=True)
        )
    found = []
    for (w, better), (v, worse) in itertools.permutations(enumerate(example.ranks), 2):
        if better >= worse:
            continue
        d = scores[w] - scores[v]
        if isinstance(objective, Reward):
            found.append(-torch.log(torch.sigmoid(d)) + objective.centering * (scores[w] + scores[v]) ** 2)
        elif objective.loss == "simpo":
            found.append(-torch.log(torch.sigmoid(1.5 * d - 1)))
        else:
            found.append(-torch.log(torch.sigmoid(0.1 * d)) - objective.nll_weight * likelihoods[w])
    return sum(found) / len(found)


def customized_on(arch: str, method: Method, objective: PreferenceObjective) -> Customized:
    base = tiny_base(arch)
    generator = torch.Generator().manual_seed(1)
    made = customize(base, method, Template(style="plain"), seed=1, added=objective.effects(base, generator))
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


def loss_and_gradients(
    objective: PreferenceObjective, customized: Customized, examples: Sequence[EncodedPreference]
) -> tuple[float, dict[str, torch.Tensor]]:
    customized.customization.zero_grad()
    with customized.active():
        loss = objective.batch_loss(customized, objective.collate(examples)).total
        loss.backward()
    parameters = customized.customization.named_parameters()
    return loss.item(), {name: p.grad.clone() for name, p in parameters if p.grad is not None}


OBJECTIVES: dict[str, PreferenceObjective] = {
    "reward": Reward(centering=0.1),
    "plackett-luce": Reward(loss="plackett-luce"),
    "dpo": DPO(nll_weight=0.3),
    "simpo": DPO(loss="simpo", beta=1.5),
}


CELLS: list[tuple[str, str, Method]] = [
    *((name, arch, LoRA(rank=2)) for name in ("reward", "dpo") for arch in ARCHITECTURES),
    *((name, "llama", PromptTuning(virtual_tokens=3)) for name in OBJECTIVES),
    *((name, "gemma2", LoRA(rank=2)) for name in ("plackett-luce", "simpo")),
]


@pytest.mark.parametrize(("name", "arch", "method"), CELLS, ids=lambda part: getattr(part, "name", part))
def test_loss_and_gradients_are_the_formula_over_texts_apart(name: str, arch: str, method: Method) -> None:
    objective = OBJECTIVES[name]
    customized = customized_on(arch, method, objective)
    examples = encoded_rankings(customized.template.virtual_tokens)
    loss, grads = loss_and_gradients(objective, customized, examples)
    customized.customization.zero_grad()
    with customized.active():
        expected = sum(slow_loss(objective, customized, example) for example in examples)
        expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    assert grads
    for key, parameter in customized.customization.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(grads[key], parameter.grad, atol=3e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "objective",
    [
        Reward(),
        Reward(centering=0.1),
        *(DPO(loss=loss) for loss in ("sigmoid", "ipo", "hinge", "robust", "simpo", "orpo")),
    ],
    ids=lambda objective: f"{objective.name}-{objective.loss}",
)
def test_a_list_of_two_is_a_pair(objective: PreferenceObjective) -> None:
    customized, pairs = customized_on("llama", LoRA(rank=2), objective), encoded_pairs()
    lists = [EncodedRanking(p.prompt, p.completions, (1, 2), number=p.number, reference=p.reference) for p in pairs]
    loss, grads = loss_and_gradients(objective, customized, lists)
    expected, expected_grads = loss_and_gradients(objective, customized, pairs)
    assert loss == expected
    assert all(torch.equal(grad, expected_grads[name]) for name, grad in grads.items()) and grads
    if isinstance(objective, Reward):
        listed, listed_grads = loss_and_gradients(
            objective.model_copy(update={"loss": "plackett-luce"}), customized, lists
        )
        assert listed == pytest.approx(expected, rel=1e-6)
        for name, grad in listed_grads.items():
            torch.testing.assert_close(grad, expected_grads[name], atol=3e-6, rtol=1e-5)


def test_pairs_and_lists_in_one_batch_add_up() -> None:
    objective = Reward()
    customized, pairs, lists = customized_on("llama", LoRA(rank=2), objective), encoded_pairs(), encoded_rankings()
    both, _ = loss_and_gradients(objective, customized, [*pairs, *lists])
    parts = [loss_and_gradients(objective, customized, each)[0] for each in (pairs, lists)]
    assert both == pytest.approx(sum(parts), rel=1e-5)
    batch = objective.collate([*pairs, *lists])
    assert (objective.weight(batch), batch.units) == (8, len(pairs) + 3 + 8 + 1 + 3)
    assert batch.weights.sum().item() == pytest.approx(8)  # each prompt counts once


TOKENS = st.lists(st.integers(0, 255), min_size=1, max_size=20)


@settings(max_examples=20)
@given(st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=2, max_size=5)), min_size=1, max_size=3))
def test_any_lists(drawn: list[tuple[list[int], list[list[int]]]]) -> None:
    base = tiny_base()
    batch = collate_pairs([EncodedRanking(p, texts, tuple(range(1, len(texts) + 1))) for p, texts in drawn])
    with torch.no_grad():
        found = completion_logprobs(base, batch, packed_hidden(base, batch.packed))
        expected = torch.stack([apart(base, prompt, text)[0] for prompt, texts in drawn for text in texts])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# What is computed


@pytest.mark.parametrize(
    "objective", [Reward(), Reward(loss="plackett-luce"), DPO()], ids=lambda o: f"{o.name}-{o.loss}"
)
def test_the_prompt_and_each_response_are_computed_once(objective: PreferenceObjective) -> None:
    customized, seen = customized_on("llama", LoRA(rank=2), objective), []
    example = encoded_rankings()[1]
    handle = customized.base.embedding.register_forward_pre_hook(lambda _m, args: seen.append(args[0].numel()))
    try:
        loss_and_gradients(objective, customized, [example])
    finally:
        handle.remove()
    assert seen == [len(example)] == [len(example.prompt) + sum(len(each) for each in example.completions)]


def test_the_reference_of_each_completion_is_computed_once_and_kept(empty_cache: object) -> None:
    base, seen = tiny_base(), []
    examples = encoded_rankings()
    handle = base.embedding.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[0]))
    try:
        found = with_reference(base, examples)
        assert sum(seen) == len(examples)  # a group each
        seen.clear()
        assert with_reference(base, examples) == found and not seen
    finally:
        handle.remove()
    for example in found:
        with torch.no_grad():
            expected = [apart(base, example.prompt, each)[0].item() for each in example.completions]
        assert example.reference == pytest.approx(expected, abs=1e-4)


# What is measured


def test_what_is_reported_are_means_over_a_prompts_pairs() -> None:
    examples = encoded_rankings()
    batch = collate_pairs(examples)
    rewards = torch.randn(len(batch.ranks), generator=torch.Generator().manual_seed(5))
    found = Reward.measured(rewards, batch)
    expected = dict.fromkeys(found, 0.0)
    for example, own in zip(examples, rewards.split(batch.sizes), strict=True):
        tokens = [len(each) for each in example.completions]
        pairs = [(i, j) for i, j in itertools.permutations(range(len(own)), 2) if example.ranks[i] < example.ranks[j]]
        for i, j in pairs:
            values = (own[i], own[j], own[i] - own[j], float(own[i] > own[j]), tokens[i], tokens[j])
            for name, value in zip(found, values, strict=True):
                expected[name] += float(value) / len(pairs)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-4)


def test_a_run_reports_pairs_and_rows_a_second(empty_cache: object) -> None:
    trained = train(tiny_base(), LoRA(), Reward(), RANKINGS, settings=TrainSettings(max_steps=3, batch_size=4))
    result = trained.result
    assert result.rows == 12 and 12 * 5 <= result.units <= 12 * 6
    summary = trained.summary()
    assert summary["pairs_per_s"] == pytest.approx(summary["rows_per_s"] * result.units / 12, rel=0.01)
    assert trained.record.data is not None and trained.record.data.rows == 12


@pytest.mark.parametrize("objective", [DPO(loss="rpo"), Reward(loss="margin"), Reward(loss="scaled")])
def test_losses_of_margins_refuse_ranks(objective: PreferenceObjective) -> None:
    with pytest.raises(DataError, match=r"needs a margin for every pair, and line 1 has ranks"):
        train(tiny_base(), LoRA(), objective, RANKINGS)
