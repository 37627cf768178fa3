"""Generation against transformers' own, and its sampling against the formula."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.data.template import default_template
from tunescope.errors import DataError
from tunescope.inference import Sampling, generate
from tunescope.inference.generation import choose, generate_ids
from tunescope.methods import Customization, Customized, ZeroShot


def base_of(arch: str = "llama") -> Customized:
    base = tiny_base(arch)
    return Customized(base, Customization(ZeroShot(), default_template(base.tokenizer), {}), base)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_greedy_batch_equals_transformers_alone(arch: str) -> None:
    customized = base_of(arch)
    prompts = [list(range(60, 60 + n)) for n in (3, 17, 9)]
    found = generate_ids(customized, prompts, Sampling(max_new_tokens=8))
    for prompt, generated in zip(prompts, found, strict=True):
        ids = customized.base.model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=list(customized.template.stop)
        )
        assert generated.tokens == ids[0, len(prompt) :].tolist()


def test_what_prompts_share_is_computed_once() -> None:
    customized, positions = base_of(), []
    begin = list(range(40, 90))
    prompts = [[*begin, n, *range(n)] for n in (3, 9, 5)]
    alone = [generate_ids(customized, [prompt], Sampling(max_new_tokens=6))[0] for prompt in prompts]
    handle = customized.base.embedding.register_forward_pre_hook(lambda _m, args: positions.append(args[0].numel()))
    try:
        together = generate_ids(customized, prompts, Sampling(max_new_tokens=6))
    finally:
        handle.remove()
    assert together == alone
    assert positions[:2] == [50, 3 * 10]


def test_stops_at_the_stop_token_and_leaves_it_out_of_the_text() -> None:
    customized = base_of()
    free = generate_ids(customized, [[65, 66]], Sampling(max_new_tokens=6))[0].tokens
    customized.customization.template = customized.template.model_copy(update={"stop": (free[2],)})
    stopped = generate_ids(customized, [[65, 66]], Sampling(max_new_tokens=6))[0]
    cut = free[: free.index(free[2]) + 1]
    assert stopped.finished
    assert stopped.tokens == cut
    assert stopped.text == customized.base.tokenizer.decode(cut[:-1], skip_special_tokens=True)


def test_prompt_longer_than_the_context_is_named() -> None:
    with pytest.raises(DataError, match=r"Prompt 2 has \d+ tokens.*context of 512"):
        generate(base_of(), ["short", "x" * 600], Sampling(max_new_tokens=4))


def test_sampling_frequencies_follow_temperature_and_top_p() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=2.0, top_p=0.8)
    drawn = torch.bincount(choose(logits.expand(20000, 4), sampling, generator), minlength=4) / 20000
    p = torch.softmax(logits / 2, 0)
    kept = p * torch.tensor([1, 1, 1, 0])  # 0.455 + 0.276 < 0.8, so the third stays and the fourth goes
    assert torch.allclose(drawn, kept / kept.sum(), atol=0.015)


def test_same_seed_same_text() -> None:
    customized = base_of()
    texts = [
        generate(customized, ["hello"], Sampling(max_new_tokens=12, temperature=1.5, seed=s))[0].tokens
        for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
