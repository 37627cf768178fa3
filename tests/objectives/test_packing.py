"""Texts behind a shared prefix against each text by itself: pairs, and a step of fine-tuning."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.pairs import encoded_pairs
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.base import Base
from tunescope.base.quantized import split_name
from tunescope.data import batching
from tunescope.data.batching import collate, collate_pairs
from tunescope.data.encoding import Encoded, EncodedPair
from tunescope.data.template import Template
from tunescope.methods import IA3, Adapter, Customized, Full, LoRA, Method, PromptTuning, customize
from tunescope.objectives import DPO, SFT, Objective, PreferenceObjective, Reward
from tunescope.objectives.forward import packed_hidden
from tunescope.objectives.preference import completion_logprobs
from tunescope.objectives.reward_model import HEAD


def logprobs_of(base: Base, examples: list[EncodedPair]) -> torch.Tensor:
    batch = collate_pairs(examples)
    return completion_logprobs(base, batch, packed_hidden(base, batch.packed))


def apart(base: Base, example: EncodedPair) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The slow obvious version: log-probability and last hidden state of chosen and of rejected, one pass each."""
    logprobs, hidden = [], []
    for completion in (example.chosen, example.rejected):
        ids = torch.tensor([example.prompt + completion])
        logits = base.forward(ids, torch.ones_like(ids))[0].log_softmax(-1)
        begin = len(example.prompt)
        logprobs.append(sum(logits[begin - 1 + i, token] for i, token in enumerate(completion)))
        hidden.append(base.hidden(ids, torch.ones_like(ids))[0, -1])
    return logprobs, hidden


def customized_on(arch: str, method: Method, objective: Objective) -> Customized:
    base = tiny_base(arch)
    generator = torch.Generator().manual_seed(1)
    made = customize(base, method, Template(style="plain"), seed=1, added=objective.effects(base, generator))
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made


OBJECTIVES: list[PreferenceObjective] = [DPO(), DPO(loss="simpo", beta=1.5), Reward(loss="margin", centering=0.1)]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("objective", OBJECTIVES, ids=["dpo", "simpo", "reward"])
@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(virtual_tokens=3)], ids=lambda m: m.name)
def test_loss_and_gradients_equal_those_of_separate_sequences(
    arch: str, objective: PreferenceObjective, method: Method
) -> None:
    customized = customized_on(arch, method, objective)
    examples = encoded_pairs(virtual=customized.template.virtual_tokens)
    parameters = dict(customized.customization.named_parameters())
    found = []
    for packed in (True, False):
        customized.customization.zero_grad()
        with customized.active() as base:
            if packed:
                loss = objective.batch_loss(customized, collate_pairs(examples)).total
            else:
                results = [apart(base, example) for example in examples]
                batch = collate_pairs(examples)
                logprobs = torch.stack([each for result in results for each in result[0]])
                hidden = torch.stack([each for result in results for each in result[1]])
                if isinstance(objective, DPO):
                    scores = objective._scores(logprobs, batch).view(-1, 2).T
                    loss = objective._losses(scores, batch.margins).sum()
                else:
                    chosen, rejected = customized.customization.heads[HEAD](hidden)[..., 0].view(-1, 2).T
                    loss = -torch.nn.functional.logsigmoid(chosen - rejected - batch.margins).sum()
                    loss = loss + 0.1 * (chosen + rejected).square().sum()
            loss.backward()
        found.append((loss.item(), {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}))
    (loss, grads), (expected, expected_grads) = found
    assert loss == pytest.approx(expected, abs=1e-5 * max(1, abs(expected)))
    assert grads.keys() == expected_grads.keys() and grads
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name], atol=2e-5, rtol=1e-3)


TOKENS = st.lists(st.integers(0, 255), min_size=1, max_size=30)


@settings(max_examples=25)
@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4))
def test_any_pairs(drawn: list[tuple[list[int], list[int], list[int]]]) -> None:
    base = tiny_base()
    examples = [EncodedPair(*tokens) for tokens in drawn]
    with torch.no_grad():
        found = logprobs_of(base, examples).view(-1, 2).T
        for i, example in enumerate(examples):
            torch.testing.assert_close(found[:, i], torch.stack(apart(base, example)[0]), atol=1e-4, rtol=0)


def test_the_prompt_is_computed_once() -> None:
    base, seen = tiny_base(), []
    handle = base.embedding.register_forward_pre_hook(lambda _m, args: seen.append(args[0].numel()))
    example = encoded_pairs(1)[0]
    try:
        logprobs_of(base, [example])
    finally:
        handle.remove()
    assert seen == [len(example.prompt) + len(example.chosen) + len(example.rejected)]


# Fine-tuning behind a shared prefix


SFT_METHODS: list[Method] = [
    LoRA(rank=2, dora=True),
    IA3(),
    Adapter(bottleneck=4),
    PromptTuning(virtual_tokens=3),
    Full(),
]


def sft_examples(virtual: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    prefix = [-1 - i for i in range(virtual)] + torch.randint(0, 256, (17,), generator=generator).tolist()
    examples = []
    for number, (own, completion) in enumerate(((9, 3), (4, 1), (0, 6), (14, 2))):
        prompt = prefix + torch.randint(0, 256, (own,), generator=generator).tolist()
        examples.append(
            Encoded(prompt, torch.randint(0, 256, (completion,), generator=generator).tolist(), number=number)
        )
    return examples


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("method", SFT_METHODS, ids=lambda m: m.name)
def test_a_prefix_computed_once_gives_the_loss_and_gradients_of_rows_apart(
    arch: str, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    if arch == "mixtral" and isinstance(method, IA3):
        pytest.skip("IA3 on experts is refused")
    if split_name(arch)[1] is not None and isinstance(method, Full):
        pytest.skip("quantized weights do not move")
    customized = customized_on(arch, method, SFT())
    examples = sft_examples(customized.template.virtual_tokens)
    trained = customized.base.model if customized.moves_base else customized.customization
    found = []
    for worth in (0.0, math.inf):
        monkeypatch.setattr(batching, "_WORTH", worth)
        trained.requires_grad_(True).zero_grad()
        batch = collate(examples)
        with customized.active():
            loss = SFT().batch_loss(customized, batch).total
            loss.backward()
        grads = {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}
        found.append((batch.packed.computed, loss.item(), grads))
    (many, expected, expected_grads), (few, loss, grads) = found
    assert few < 0.6 * many
    assert loss == pytest.approx(expected, rel=1e-5)
    assert grads.keys() == expected_grads.keys() and grads
    for name, grad in grads.items():
        scale = max(1.0, expected_grads[name].abs().max().item())
        torch.testing.assert_close(grad / scale, expected_grads[name] / scale, atol=1e-5, rtol=1e-4)
