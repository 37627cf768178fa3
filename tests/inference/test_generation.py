"""Generation by one customization, against transformers' own."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import ARCHITECTURES, tiny_base

from tunescope.data.template import default_template
from tunescope.errors import DataError
from tunescope.inference import Sampling, generate, generate_ids
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
    with pytest.raises(DataError, match=r"Prompt 2: The prompt has \d+ tokens.*context of 512"):
        generate(base_of(), ["short", "x" * 600], Sampling(max_new_tokens=4))


def test_same_seed_same_text() -> None:
    customized = base_of()
    texts = [
        generate(customized, ["hello"], Sampling(max_new_tokens=12, temperature=1.5, seed=s))[0].tokens
        for s in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
