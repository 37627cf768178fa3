"""Scoring packed candidates over shared beginnings against one forward pass a text."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.base import Base
from tunescope.data.template import Template
from tunescope.inference import Item, score
from tunescope.methods import Customization, Customized, LoRA, ZeroShot


def plain(base: Base) -> Customized:
    return Customized(base, Customization(ZeroShot(), Template(style="plain"), {}), base)


def alone(customized: Customized, prompt: list[int], candidate: list[int]) -> float:
    """The slow obvious version."""
    with torch.no_grad(), customized.active() as base:
        ids = torch.tensor([prompt + candidate])
        logprobs = base.model(ids).logits[0].log_softmax(-1)
    return sum(logprobs[len(prompt) - 1 + i, token].item() for i, token in enumerate(candidate))


TOKENS = st.lists(st.integers(0, 255), min_size=1, max_size=9)
ITEMS = st.lists(st.tuples(TOKENS, st.lists(TOKENS, min_size=1, max_size=4)), min_size=1, max_size=5)


@settings(max_examples=30)
@given(begin=st.lists(st.integers(0, 255), max_size=40), items=ITEMS)
def test_any_mix_equals_one_at_a_time(begin: list[int], items: list[tuple[list[int], list[list[int]]]]) -> None:
    customized = plain(tiny_base())
    made = [Item(begin + prompt, candidates) for prompt, candidates in items]
    for item, scores in zip(made, score(customized, made), strict=True):
        for candidate, found in zip(item.candidates, scores, strict=True):
            assert found.tokens == len(candidate)
            assert found.logprob == pytest.approx(alone(customized, item.prompt, candidate), abs=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(arch: str) -> None:
    customized = plain(tiny_base(arch))
    begin = list(range(40, 70))
    made = [Item(begin + [7] * n, [[1], [2, 3], [4, 5, 6, 7]]) for n in (1, 4, 9)]
    for item, scores in zip(made, score(customized, made), strict=True):
        expected = [alone(customized, item.prompt, c) for c in item.candidates]
        assert [s.logprob for s in scores] == pytest.approx(expected, abs=2e-4)


def test_under_a_customization() -> None:
    base = tiny_base()
    effects = LoRA(rank=4).effects(base, torch.Generator().manual_seed(0))
    for effect in effects.values():
        torch.nn.init.normal_(effect.B, std=0.3)
    customized = Customized(base, Customization(LoRA(rank=4), Template(style="plain"), effects), base)
    item = Item(list(range(30)), [[1, 2], [3]])
    found = score(customized, [item, item])[1]
    assert [s.logprob for s in found] == pytest.approx(
        [alone(customized, item.prompt, c) for c in item.candidates], abs=1e-4
    )
    assert found[0].logprob != pytest.approx(score(plain(base), [item])[0][0].logprob, abs=1e-3)


def test_shared_beginning_is_computed_once() -> None:
    base, positions = tiny_base(), []
    handle = base.model.get_input_embeddings().register_forward_pre_hook(
        lambda _m, args: positions.append(args[0].numel())
    )
    try:
        score(plain(base), [Item([*range(100), n], [[1, 2], [3, 4, 5]]) for n in range(10)])
    finally:
        handle.remove()
    # 100 shared tokens once, then for each of ten prompts its last token and all but the last of each candidate.
    assert positions == [100, 10 * (1 + 1 + 2)]
