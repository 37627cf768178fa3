"""Answers that keep to a JSON schema."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.mix import customized
from tests.tiny import tiny_base

from tunescope.errors import EngineError, TunescopeError
from tunescope.inference import Engine, Request, Sampling

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["spam", "ham"]}, "sure": {"type": "boolean"}},
    "required": ["label", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    made = Engine(tiny_base("llama"))
    made.load("lora", customized("lora", "llama"))
    return made


def ask(prompt: str, schema: object, name: str | None = None, **settings: object) -> Request:
    return Request(prompt, name, Sampling(json_schema=json.dumps(schema), **{"max_new_tokens": 120, **settings}))  # type: ignore[arg-type]


@settings(max_examples=20, deadline=None)
@given(
    prompt=st.text("abc ", min_size=1).filter(str.strip),
    seed=st.integers(0, 1000),
    name=st.sampled_from([None, "lora"]),
)
def test_whatever_is_drawn_keeps_to_the_schema(engine: Engine, prompt: str, seed: int, name: str | None) -> None:
    free = Request(prompt, name, Sampling(max_new_tokens=5))
    held, beside = engine.generate([ask(prompt, SCHEMA, name, temperature=2.0, seed=seed), free])
    assert held.error is None and held.finished and held.reason == "stop"
    value = json.loads(held.text)
    assert value["label"] in ("spam", "ham") and isinstance(value["sure"], bool) and len(value) == 2
    assert beside.tokens == engine.generate([free])[0].tokens  # its neighbor is as it is alone


def test_samples_of_one_prompt_each_have_a_grammar_of_their_own(engine: Engine) -> None:
    answer = engine.generate([ask("hello", SCHEMA, temperature=1.5, n=6)])[0]
    texts = [answer.text, *(other.text for other in answer.others)]
    assert len({json.loads(text)["label"] for text in texts}) == 2


def test_an_answer_that_is_cut_off_says_so(engine: Engine) -> None:
    answer = engine.generate([ask("hello", SCHEMA, max_new_tokens=3)])[0]
    assert answer.reason == "length" and not answer.finished


@pytest.mark.parametrize("schema", [{"type": "nothing"}, {"$ref": "#/nowhere"}, 3])
def test_a_schema_that_is_none_is_refused_before_anything_runs(engine: Engine, schema: object) -> None:
    with pytest.raises(EngineError, match="json_schema"):
        engine.submit(ask("hello", schema))
    with pytest.raises(EngineError, match="json_schema"):
        engine.submit(Request("hello", None, Sampling(json_schema="{")))


def test_settings_that_contradict_a_schema() -> None:
    for more in ({"choices": ("a", "b")}, {"min_new_tokens": 3}):
        with pytest.raises(TunescopeError, match="json_schema"):
            Sampling(json_schema="{}", **more)  # type: ignore[arg-type]
