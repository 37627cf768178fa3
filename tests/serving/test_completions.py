"""What clients of OpenAI's API get: the same as the engine gives, in the form that they read."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import requests
from tests.serving.conftest import BASE, Server, events, serving
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.inference import Engine, Request, Sampling

GENERATORS = (BASE, "lora", "dora", "ia3", "adapter", "prompt", "few-shot", "labels", "steered", "tasks:a", "tasks:b")


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def engine(bank_folder: Path) -> Engine:
    """One to compare with, asked one request at a time."""
    made = Engine(tiny_base())
    for name in GENERATORS[1:]:
        made.load(name, bank_folder / name)
    return made


def alone(engine: Engine, model: str, text: str, **sampling: object) -> str:
    name = None if model == BASE else model
    text = f"{text} topic:" if model == "labels" else text  # its template's pattern
    return engine.generate([Request(text, name, Sampling(max_new_tokens=8, **sampling))])[0].text  # type: ignore[arg-type]


@pytest.mark.parametrize("model", GENERATORS)
def test_a_chat_is_answered_as_the_engine_answers(client: openai.OpenAI, engine: Engine, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "say 3"}], temperature=0, max_tokens=8
    )
    choice = answer.choices[0]
    assert choice.message.content == alone(engine, model, "say 3") and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and answer.model == model
    template = bank.read_record(_entry(engine, model)).template if model != BASE else None
    virtual = template.virtual_tokens if template else 0
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.model_extra == {"virtual_tokens": virtual}
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def _entry(engine: Engine, model: str) -> Path:
    path = engine._loaded.get(model).path
    assert path is not None
    return path


@pytest.mark.parametrize("model", [BASE, "lora", "prompt"])
def test_a_stream_says_the_same_in_parts(client: openai.OpenAI, model: str) -> None:
    asked = {
        "model": model, "messages": [{"role": "user", "content": "say 5"}], "temperature": 0.9, "seed": 7, "n": 3,
        "max_tokens": 9, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    parts = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    for usage in (whole.usage, parts[-1].usage):
        usage.prompt_tokens_details.cached_tokens = None  # the second call finds what the first one kept
    assert parts[-1].usage == whole.usage and not parts[-1].choices
    for choice in whole.choices:
        mine = [part.choices[0] for part in parts if part.choices and part.choices[0].index == choice.index]
        assert "".join(each.delta.content or "" for each in mine) == choice.message.content
        assert mine[0].delta.role == "assistant"
        assert [each.finish_reason for each in mine][-1] == choice.finish_reason
        assert all(each.finish_reason is None for each in mine[:-1])
        streamed = [token for each in mine for token in (each.logprobs.content if each.logprobs else [])]
        for token, wanted in zip(streamed, choice.logprobs.content, strict=True):
            assert (token.token, token.bytes) == (wanted.token, wanted.bytes)
            assert token.logprob == pytest.approx(wanted.logprob, abs=1e-4)
            assert len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob + 1e-6


def test_the_base_goes_on_with_a_text_as_it_stands(client: openai.OpenAI, engine: Engine) -> None:
    base = tiny_base()
    answer = client.completions.create(model=BASE, prompt="once upon", temperature=0, max_tokens=8, logprobs=2)
    ids = base.tokenizer("once upon")["input_ids"]
    wanted = engine.generate_ids([ids], None, Sampling(max_new_tokens=8, logprobs=True))[0]
    assert answer.choices[0].text == wanted.text
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids)
    found = answer.choices[0].logprobs
    assert found is not None and found.token_logprobs == pytest.approx(wanted.logprobs)
    assert all(len(each) == 2 for each in found.top_logprobs or [])
    by_ids = client.completions.create(model=BASE, prompt=ids, temperature=0, max_tokens=8)
    assert by_ids.choices[0].text == wanted.text


def test_several_prompts_of_one_call_come_back_in_order(client: openai.OpenAI, engine: Engine) -> None:
    prompts = ["say 1", "say 2", "say 9"]
    answer = client.completions.create(model="lora", prompt=prompts, temperature=0, max_tokens=8)
    assert [choice.text for choice in answer.choices] == [alone(engine, "lora", prompt) for prompt in prompts]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_seeds_and_the_default_temperature(server: Server) -> None:
    def texts(**more: object) -> set[str]:
        return {server.chat(BASE, **more)["choices"][0]["message"]["content"] for _ in range(6)}

    assert len(texts(temperature=1, seed=3)) == 1 and len(texts(temperature=1, seed=-3)) == 1
    assert len(texts(temperature=None)) > 1  # OpenAI's default is 1


def test_steering_and_scale_reach_the_engine(server: Server, engine: Engine) -> None:
    long = server.chat("steered", steer={"quality": 4, "verbosity": 0})["choices"][0]["message"]["content"]
    wanted = engine.generate([Request("say 3", "steered", Sampling(max_new_tokens=8), {"quality": 4, "verbosity": 0})])[
        0
    ]
    assert long == wanted.text
    off = server.chat("ia3", customization_scale=0)["choices"][0]["message"]["content"]
    assert off == server.chat(BASE)["choices"][0]["message"]["content"]


def test_json_and_choices(server: Server) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = server.chat("lora", response_format=form, temperature=1.5, max_tokens=60)["choices"][0]
    assert isinstance(json.loads(answer["message"]["content"])["sure"], bool) and answer["finish_reason"] == "stop"
    chosen = server.chat("labels", "the rain today", response_format={"type": "choice", "choices": ["warm", "wet"]})
    choice = chosen["choices"][0]
    assert choice["message"]["content"] in ("warm", "wet")
    assert sum(choice["probabilities"].values()) == pytest.approx(1)
    assert choice["probabilities"][choice["message"]["content"]] >= 0.5


def test_many_clients_and_customizations_at_once_each_get_their_own(bank_folder: Path, engine: Engine) -> None:
    asked = [(GENERATORS[i % len(GENERATORS)], f"say {i % 4}") for i in range(66)]
    wanted = {each: alone(engine, *each) for each in set(asked)}
    with serving(bank_folder, slots=7) as server, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda each: server.chat(*each)["choices"][0]["message"]["content"], asked))
    assert found == [wanted[each] for each in asked]


def test_a_client_that_leaves_ends_its_request(bank_folder: Path) -> None:
    with serving(bank_folder) as server:
        body = {"model": "lora", "messages": [{"role": "user", "content": "x"}], "max_tokens": 480, "min_tokens": 480}
        engine = server.app.state.service.engine
        for stream in (True, False):
            with pytest.raises(requests.exceptions.RequestException), requests.Session() as session:
                answer = session.post(f"{server.url}/v1/chat/completions", json={**body, "stream": stream},
                                      stream=True, timeout=0.15)  # fmt: skip
                next(answer.iter_content(1))
                answer.close()
                raise requests.exceptions.RequestException
        done = threading.Event()
        for _ in range(200):
            if engine.load_now.running == 0:
                done.set()
                break
            done.wait(0.05)
        assert done.is_set() and server.app.state.service._rows == Counter({"lora": 0})


def test_streaming_events_end_with_done(server: Server) -> None:
    body = {"model": BASE, "prompt": "abc", "max_tokens": 3, "min_tokens": 3, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    found = events(server.post("/v1/completions", body))
    assert found[-1]["usage"]["completion_tokens"] == 3 and found[-1]["choices"] == []


def test_the_client_of_the_documentation(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    exec(block.replace("http://127.0.0.1:8000", server.url), {})
    assert capsys.readouterr().out.strip()
