"""Token healing: answers that must begin with the prompt's last characters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.data.test_encoding import KINDS, tokenizer_of
from tests.tiny import tiny_model

from tunescope.base import Base
from tunescope.data.encoding import Encoder, PromptTokens
from tunescope.data.template import default_template
from tunescope.errors import EngineError
from tunescope.inference import Engine, Request, Sampling
from tunescope.inference.detokenizing import Detokenizer
from tunescope.inference.healing import TokenTexts
from tunescope.methods import Customization, Customized, ZeroShot


def base_of(kind: str) -> Base:
    tokenizer = tokenizer_of(kind)
    model = tiny_model("llama")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
    return Base(model, tokenizer, name=f"tiny-{kind}", dtype=torch.float32)


def healing(base: Base, style: str = "plain", **template: Any) -> Customized:
    made = default_template(base.tokenizer, style=style).model_copy(update={"heal": True, **template})
    return Customized(base, Customization(ZeroShot(), made, {}), base)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_tokens_are_those_behind_others(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    texts = TokenTexts(tokenizer)
    ids = tokenizer("a delivery\n    return x", add_special_tokens=False)["input_ids"]
    behind_the_first = "".join(map(texts.text, ids[1:]))
    assert "a delivery\n    return x".replace("\n    ", " " if kind == "words" else "\n    ").endswith(behind_the_first)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("owed", ["\n", "\n    ", " ", "return"])
def test_an_answer_begins_with_what_is_owed_and_does_not_show_it(owed: str, temperature: float) -> None:
    base = base_of("bytes")
    engine = Engine(base)
    engine.load("x", healing(base))
    ids = base.tokenizer("def f(x):", add_special_tokens=False)["input_ids"]
    sampling = Sampling(max_new_tokens=6, temperature=temperature, seed=3, min_new_tokens=6)
    answers = engine.generate_ids([PromptTokens(ids, owed), ids], "x", sampling)
    whole = base.tokenizer.decode(answers[0].tokens, skip_special_tokens=True)
    assert whole.startswith(owed)
    assert answers[0].text == whole[len(owed) :]
    # Tokens that only pay back do not count against the limit; the row beside it is what it is alone.
    texts = TokenTexts(base.tokenizer)
    paying, left = 0, owed
    while left and len(texts.text(answers[0].tokens[paying])) <= len(left):
        left = left[len(texts.text(answers[0].tokens[paying])) :]
        paying += 1
    assert len(answers[0].tokens) == 6 + paying
    assert answers[1].tokens == engine.generate_ids([ids], "x", sampling)[0].tokens


def test_a_request_is_healed_where_its_template_says_so() -> None:
    base = base_of("bytes")
    engine = Engine(base)
    engine.load("x", healing(base))
    engine.load("y", healing(base, heal=False))
    healed, plain = engine.generate(
        [Request("def f(x):\n", name, Sampling(max_new_tokens=3, min_new_tokens=3)) for name in ("x", "y")]
    )
    assert healed.prompt_tokens == plain.prompt_tokens - 1
    assert base.tokenizer.decode(healed.tokens).startswith("\n")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", ["chat", "plain"])
def test_choices_are_scored_as_the_whole_texts(kind: str, style: str) -> None:
    base = base_of(kind)
    engine = Engine(base)
    made = healing(base, style)
    engine.load("x", made)
    choices = ("complaint", "question", "    y")
    answer = engine.generate([Request("a delivery\n", "x", Sampling(choices=choices))])[0]
    encoder = Encoder(base.tokenizer, made.template, 512)
    prompt, rests = encoder.candidates([{"role": "user", "content": "a delivery\n"}], choices)
    for choice, rest in zip(choices, rests, strict=True):
        with torch.no_grad():
            logits = base.model(torch.tensor([prompt + rest])).logits[0].log_softmax(-1)
        nats = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(rest))
        assert answer.choice_logprobs is not None
        assert answer.choice_logprobs[choice] == pytest.approx(nats, abs=1e-4)


def test_choices_need_a_text() -> None:
    base = base_of("bytes")
    with pytest.raises(EngineError, match="give it as text"):
        Engine(base).submit_ids([1, 2], None, Sampling(choices=("a", "b")))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_owed_is_left_out_however_it_is_paid(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for tokens in ([" return"], [" ", "return"]):
        text = Detokenizer(tokenizer, (), " ")
        for piece in tokens:
            for token in tokenizer(piece, add_special_tokens=False)["input_ids"]:
                text.add(token)
        text.close()
        assert text.text.strip() == "return"
