"""Who may ask, for what and how much; what is wrong is said in OpenAI's form, and never as a server error."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import given, settings
from schemathesis.checks import not_a_server_error
from tests.serving.conftest import BASE, Server, serving
from tests.tiny import tiny_base

from tunescope.errors import BankError, DataError, EngineError
from tunescope.inference import Engine, Request
from tunescope.serving.app import make_app
from tunescope.serving.keys import Key, Keys, read_keys
from tunescope.serving.limits import Limits

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "lorra"}, 404, "Did you mean lora"),
    ({"model": "tasks:c"}, 404, "tasks:"),
    ({"model": "../bank/lora"}, 404, "does not exist"),
    ({"model": "other"}, 409, "tiny-mistral"),
    ({"model": "damaged"}, 409, "damaged"),
    ({"model": "full"}, 409, "weights of its own"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "user"}]}, 400, "message 1"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "king"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 600}]}, 400, "context of 512"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text"),
    ({"messages": [{"role": "user", "content": "half \ud800"}]}, 400, "lone surrogate"),
    ({"temprature": 1}, 400, "Did you mean temperature"),
    ({"temperature": -1}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"n": -2}, 400, "n:"),
    ({"n": 17}, 400, "at most 16"),
    ({"n": 3, "temperature": 0}, 400, "temperature 0"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 5000}, 400, "at most 1024"),
    ({"top_logprobs": 3}, 400, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    ({"stop": ""}, 400, "stop"),
    ({"stop_token_ids": [99999]}, 400, "stop_token_ids"),
    ({"frequency_penalty": 0.5}, 400, "repetition_penalty"),
    ({"stream_options": {"include_usage": True}}, 400, "stream"),
    ({"steer": {"quality": 4}}, 400, "not trained on attributes"),
    ({"model": "steered", "steer": {"quality": 9}}, 400, "from 0 to 4"),
    ({"model": "steered", "steer": {"kindness": 3}}, 400, "kindness"),
    ({"customization_scale": 0.5}, 400, "the base"),
    ({"model": "prompt", "customization_scale": 0.5}, 400, "no scale"),
    ({"model": "dora", "customization_scale": 0.5}, 400, "no scale"),
    ({"response_format": {"type": "json_schema"}}, 400, "json_schema"),
    ({"response_format": {"type": "xml"}}, 400, "response_format"),
    ({"response_format": {"type": "choice", "choices": ["a", "a"]}}, 400, "differ"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, 400, "json_schema"),
    ({"tools": [{"type": "function"}]}, 400, "tools"),
]


def message(answer: requests.Response) -> str:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return str(error["message"])


@pytest.mark.parametrize(("change", "status", "why"), WRONG, ids=[json.dumps(each[0])[:60] for each in WRONG])
def test_what_is_wrong_is_named(server: Server, change: dict[str, Any], status: int, why: str) -> None:
    for stream in (False, True):
        if stream and "stream_options" in change:
            continue
        body = {**CHAT, **change, **({"stream": True} if stream else {})}
        answer = requests.post(
            f"{server.url}/v1/chat/completions", data=json.dumps(body), headers={"Content-Type": "application/json"},
            timeout=60,
        )  # fmt: skip
        assert answer.status_code == status and why in message(answer), answer.text


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "no JSON"),
        (b"[]", "JSON object"),
        (b'"x"', "JSON object"),
        (b"", "JSON object"),
        (b'{"model": "tiny-llama", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (b"\xff\xfe", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_bodies_that_are_none(server: Server, body: bytes, why: str) -> None:
    answer = requests.post(
        f"{server.url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}, timeout=60
    )
    assert answer.status_code == 400 and why in message(answer)


def test_paths_that_are_none(server: Server) -> None:
    assert "no endpoint" in message(server.get("/v2/anything"))
    assert server.get("/v1/chat/completions").status_code == 405
    assert server.get("/studio/../app.py").status_code == 404


def test_prompts_that_are_none(server: Server) -> None:
    for prompt in ("", [], [""], [[]], [-5], [10**9], [[1, 2], [-1]]):
        answer = server.post("/v1/completions", {"model": BASE, "prompt": prompt, "max_tokens": 2})
        assert answer.status_code == 400, (prompt, answer.text)


def test_a_large_body_is_refused_before_it_is_read(bank_folder: Path) -> None:
    with serving(bank_folder, limits=Limits(max_body_kb=2)) as server:
        body = CHAT | {"messages": [{"role": "user", "content": "x" * 5000}]}
        assert server.post("/v1/chat/completions", body).status_code == 413
        chunks = (b"x" * 900 for _ in range(8))  # without a length that says so
        sent = requests.post(f"{server.url}/v1/completions", data=chunks, timeout=60)
        assert sent.status_code == 413 and "2 kB" in message(sent)
        assert server.chat(BASE)["choices"]


def test_keys_say_who_may_ask_for_what(bank_folder: Path, tmp_path: Path) -> None:
    secret = hashlib.sha256(b"the second key of all").hexdigest()
    (tmp_path / "keys.yaml").write_text(
        "- {name: all, key: the first key of all, updates: true}\n"
        f"- {{name: few, sha256: {secret}, models: [lora, 'tasks:*'], requests_per_minute: 3}}\n"
    )
    keys, path = read_keys(tmp_path / "keys.yaml"), "/v1/chat/completions"
    with serving(bank_folder, keys=keys, limits=Limits(allow_updates=True)) as server:
        few = {"headers": {"Authorization": "Bearer the second key of all"}}
        whole = {"headers": {"Authorization": "Bearer the first key of all"}}
        for headers in ({}, {"Authorization": "Bearer nothing"}, {"Authorization": "Basic the first key of all"}):
            for answer in (server.post(path, CHAT, headers=headers), server.get("/v1/models", headers=headers)):
                assert answer.status_code == 401 and "Bearer" in message(answer)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert server.get("/health").status_code == server.get("/").status_code == 200
        assert {each["id"] for each in server.get("/v1/models", **few).json()["data"]} == {"lora", "tasks:a", "tasks:b"}
        assert server.get("/v1/models/ia3", **few).status_code == 403
        assert server.post(path, CHAT | {"model": "tasks:a"}, **few).status_code == 200
        assert server.post(path, CHAT, **few).status_code == 403
        load = {"lora_name": "lora", "lora_path": "lora", "load_inplace": True}
        assert server.post("/v1/load_lora_adapter", load, **few).status_code == 403
        slower = server.post(path, CHAT | {"model": "lora"}, **few)
        assert slower.status_code == 429 and int(slower.headers["Retry-After"]) > 0
        assert server.post(path, CHAT, **whole).status_code == 200
        assert server.post("/v1/load_lora_adapter", load, **whole).status_code == 200


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "YAML"),
        ("name: x", "list"),
        ("[]", "list"),
        ("- {name: x}", "key or sha256"),
        ("- {name: x, key: short}", "16"),
        ("- {name: x, sha256: abc}", "key 1"),
        ("- {name: x, key: sixteen characters, model: [a]}", "Did you mean models"),
        ("- &a {name: x, key: sixteen characters}\n- *a", "twice"),
    ],
)
def test_a_file_of_keys_that_is_none(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "keys.yaml").write_text(text)
    with pytest.raises(DataError, match=why):
        read_keys(tmp_path / "keys.yaml")
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "missing.yaml")


def test_updates_are_off_unless_they_are_allowed(server: Server) -> None:
    for path, body in (
        ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "lora"}),
        ("/v1/unload_lora_adapter", {"lora_name": "lora"}),
        ("/v1/customizations", {"name": "x", "path": "lora"}),
    ):
        answer = server.post(path, body)
        assert answer.status_code == 403 and "--allow-updates" in message(answer)
    assert requests.delete(f"{server.url}/v1/customizations/lora", timeout=60).status_code == 403


def test_customizations_come_and_go_while_it_runs(bank_folder: Path) -> None:
    with serving(bank_folder, limits=Limits(allow_updates=True)) as server:
        wanted = server.chat("ia3")["choices"][0]["message"]["content"]
        load = {"lora_name": "mine", "lora_path": "ia3"}
        assert "Success" in server.post("/v1/load_lora_adapter", load).text
        assert server.chat("mine")["choices"][0]["message"]["content"] == wanted
        assert "load_inplace" in message(server.post("/v1/load_lora_adapter", load))
        adapter = load | {"lora_path": "adapter", "load_inplace": True}
        assert server.post("/v1/load_lora_adapter", adapter).status_code == 200
        assert server.chat("mine")["choices"] == server.chat("adapter")["choices"]
        assert "mine" in [each["id"] for each in server.get("/v1/customizations").json()["data"]]
        assert server.post("/v1/unload_lora_adapter", {"lora_name": "mine"}).status_code == 200
        assert server.post("/v1/chat/completions", CHAT | {"model": "mine"}).status_code == 404
        assert requests.delete(f"{server.url}/v1/customizations/lora", timeout=60).json()["deleted"]
        assert server.post("/v1/chat/completions", CHAT | {"model": "lora"}).status_code == 404
        added = server.post("/v1/customizations", {"name": "lora"})
        assert added.status_code == 201 and added.json()["loaded"]
        for body, status in (
            ({"name": BASE, "path": "lora"}, 409), ({"name": "a/b", "path": "lora"}, 400),
            ({"name": "x", "path": "../../etc"}, 403), ({"name": "x", "path": "/etc"}, 403),
            ({"name": "x", "path": "nothing"}, 404), ({"name": "x", "path": "other"}, 409),
        ):  # fmt: skip
            answer = server.post("/v1/customizations", body)
            assert answer.status_code == status, (body, answer.text)
        assert "cannot be unloaded" in message(server.post("/v1/unload_lora_adapter", {"lora_name": BASE}))


def test_a_link_out_of_the_bank_is_not_followed(bank_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    folder.mkdir()
    (folder / "away").symlink_to(bank_folder / "lora")
    with serving(folder, limits=Limits(allow_updates=True)) as server:
        assert server.post("/v1/customizations", {"name": "x", "path": "away"}).status_code == 403


def test_what_was_given_up_for_memory_comes_back(bank_folder: Path) -> None:
    with serving(bank_folder, customizations_mb=0.001) as server:
        wanted = {name: server.chat(name)["choices"] for name in ("lora", "ia3", "adapter")}
        assert {name: server.chat(name)["choices"] for name in wanted} == wanted
        assert server.app.state.service.engine.load_now.loaded < len(wanted)


def test_a_full_queue_is_answered_at_once(bank_folder: Path) -> None:
    with serving(bank_folder, slots=1, limits=Limits(max_waiting=4)) as server:
        long = CHAT | {"max_tokens": 300, "min_tokens": 300, "model": "lora"}
        with ThreadPoolExecutor(12) as pool:
            flood = [pool.submit(server.post, "/v1/chat/completions", long) for _ in range(10)]
            time.sleep(0.5)
            other = server.post("/v1/chat/completions", CHAT)  # its half of the queue was kept
            statuses = sorted(each.result().status_code for each in flood)
        assert other.status_code == 200
        assert statuses == [200] * 3 + [429] * 7
        refused = next(each.result() for each in flood if each.result().status_code == 429)
        assert refused.headers["Retry-After"] and "kept for others" in message(refused)


def test_a_deadline_ends_a_request(bank_folder: Path) -> None:
    with serving(bank_folder, limits=Limits(timeout=0.05)) as server:
        long = CHAT | {"max_tokens": 400, "min_tokens": 400}
        answer = server.post("/v1/chat/completions", long)
        assert answer.status_code == 504 and "0.05 s" in message(answer)
        streamed = server.post("/v1/chat/completions", long | {"stream": True}).text
        assert '"type":"timeout_error"' in streamed and streamed.endswith("data: [DONE]\n\n")
        assert server.app.state.service.engine.load_now.running <= 1


def test_metrics_have_the_names_that_are_charted(server: Server) -> None:
    server.chat("lora")
    text = server.get("/metrics").text
    for name in (
        "vllm:num_requests_running ", "vllm:num_requests_waiting ", "vllm:kv_cache_usage_perc ",
        'vllm:prompt_tokens_total{model_name="lora"}', 'vllm:generation_tokens_total{model_name="lora"}',
        'vllm:time_to_first_token_seconds_bucket{le="0.1",model_name="lora"}',
        'vllm:e2e_request_latency_seconds_count{model_name="lora"}',
        'vllm:inter_token_latency_seconds_sum{model_name="lora"}', "vllm:request_success_total",
    ):  # fmt: skip
        assert name in text, name


def test_the_log_has_no_prompts_unless_it_is_told_to(bank_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("tunescope.serving").propagate = True
    for texts in (False, True):
        with serving(bank_folder, limits=Limits(log_texts=texts)) as server, caplog.at_level(logging.INFO):
            caplog.clear()
            server.chat("lora", "a secret of mine", user="somebody")
            for _ in range(100):
                if caplog.messages:
                    break
                time.sleep(0.02)
        line = json.loads(caplog.messages[-1])
        assert line["model"] == "lora" and line["status"] == 200 and line["user"] == "somebody"
        assert line["usage"]["completion_tokens"] > 0
        assert ("a secret of mine" in caplog.messages[-1]) == texts


def test_a_server_that_stops_ends_what_is_under_way(bank_folder: Path) -> None:
    with serving(bank_folder) as server, ThreadPoolExecutor(1) as pool:
        long = pool.submit(server.post, "/v1/chat/completions", CHAT | {"max_tokens": 150, "min_tokens": 150})
        time.sleep(0.3)
        server.app.state.service.stopping = True
        assert server.get("/ready").status_code == 503 and server.get("/health").status_code == 200
        late = server.post("/v1/chat/completions", CHAT)
        assert late.status_code == 503
    assert long.result().json()["usage"]["completion_tokens"] == 150


def test_an_entry_with_the_name_of_the_base_is_refused(bank_folder: Path) -> None:
    with pytest.raises(BankError, match="rename"):
        make_app(Engine(tiny_base()), bank_folder, base_name="lora")


def test_models_tell_what_there_is(server: Server) -> None:
    listed = {each["id"]: each for each in server.get("/v1/models").json()["data"]}
    assert listed[BASE]["parent"] is None and listed[BASE]["kind"] == "base"
    assert listed["lora"]["parent"] == BASE and listed["lora"]["kind"] == "lora" and listed["lora"]["fingerprint"]
    assert listed["labels"]["labels"] == ["warm", "wet"]
    assert listed["steered"]["steer"]["names"] == ["quality", "verbosity"]
    assert listed["prompt"]["virtual_tokens"] == 4 and listed["reward"]["objective"] == "reward"
    assert server.get("/v1/models/tasks:a").json()["id"] == "tasks:a"


def test_origins_may_ask_only_where_they_are_named(bank_folder: Path, server: Server) -> None:
    headers = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in requests.options(
        f"{server.url}/v1/chat/completions", headers=headers, timeout=60
    ).headers  # fmt: skip
    with serving(bank_folder, origins=["https://app.example.org"]) as other:
        found = requests.options(f"{other.url}/v1/chat/completions", headers=headers, timeout=60)
        assert found.headers["access-control-allow-origin"] == "https://app.example.org"


def test_half_a_request_holds_nothing_up(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert server.chat(BASE)["choices"]
    assert threading.active_count() < 60


def test_a_key_compares_in_full() -> None:
    keys = Keys([Key(name="a", key="sixteen characters"), Key(name="b", key="seventeen letters!")])
    found = keys.of("Bearer seventeen letters!")
    assert found is not None and found.name == "b"


def test_nothing_that_a_client_sends_makes_the_server_fail(bank_folder: Path) -> None:
    """Whatever the OpenAPI description allows, and what it does not: no answer is a server error."""
    limits = Limits(allow_updates=True, max_tokens=4)
    app = make_app(Engine(tiny_base()), bank_folder, base_name=BASE, limits=limits)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)

    for operation in schema.get_all_operations():
        made = operation.ok()
        strategy = made.as_strategy()

        @settings(max_examples=15, deadline=None, database=None)
        @given(strategy)
        def one(case: Any) -> None:
            case.validate_response(case.call(), checks=[not_a_server_error])

        one()


def test_a_scale_beyond_numbers_hurts_nobody(server: Server) -> None:
    wanted = server.chat("lora")["choices"]
    for scale in (1e39, -11, 10.5):
        assert (
            server.post("/v1/chat/completions", CHAT | {"model": "lora", "customization_scale": scale}).status_code
            == 400
        )
    assert server.chat("lora")["choices"] == wanted
    with pytest.raises(EngineError, match="no finite numbers"):
        server.app.state.service.engine.submit(Request("x", "lora", scale=1e39))


@pytest.mark.parametrize(
    "change",
    [
        {"stop": ["x"] * 17}, {"stop": "x" * 201}, {"stop_token_ids": [1] * 65},
        {"response_format": {"type": "choice", "choices": [str(i) for i in range(600)]}},
    ],
    ids=["stops", "stop", "ids", "choices"],
)  # fmt: skip
def test_lists_that_would_hold_everyone_up_are_refused(server: Server, change: dict[str, Any]) -> None:
    assert server.post("/v1/chat/completions", CHAT | change).status_code == 400


def test_fields_that_ask_for_nothing_are_taken(server: Server) -> None:
    none = dict.fromkeys(("tools", "metadata", "reasoning_effort")) | {"tool_choice": "auto", "logit_bias": {}}
    none |= {"store": False, "service_tier": "auto", "modalities": ["text"], "parallel_tool_calls": True}
    assert server.post("/v1/chat/completions", CHAT | none).status_code == 200
    text = {"model": BASE, "prompt": "x", "max_tokens": 1, "echo": False, "best_of": 1, "suffix": None}
    assert server.post("/v1/completions", text).status_code == 200
    for body, why in (({"prompt": "x", "echo": True}, "not repeated"), ({"prompt": ["a", 1]}, "must be a text")):
        answer = server.post("/v1/completions", {"model": BASE, **body})
        assert answer.status_code == 400 and why in message(answer)
    answer = server.post(
        "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "x", "contnet": "y"}]}
    )
    assert answer.status_code == 400 and "contnet" in message(answer)


def test_token_ids_are_for_what_needs_no_template(server: Server) -> None:
    body = {"prompt": [115, 97, 121], "max_tokens": 4, "temperature": 0}
    found = {model: server.post("/v1/completions", body | {"model": model}) for model in (BASE, "prompt", "lora")}
    texts = {model: answer.json()["choices"][0]["text"] for model, answer in found.items()}
    assert texts["prompt"] != texts[BASE]
    usage = found["prompt"].json()["usage"]
    assert usage["prompt_tokens"] == 3 and usage["prompt_tokens_details"]["virtual_tokens"] == 4
    refused = server.post("/v1/completions", body | {"model": "few-shot"})
    assert refused.status_code == 400 and "template" in message(refused)


def test_prompts_of_one_call_are_sampled_apart(server: Server) -> None:
    body = {"model": BASE, "prompt": ["say 1"] * 4, "max_tokens": 12, "temperature": 1}
    assert len({choice["text"] for choice in server.post("/v1/completions", body).json()["choices"]}) > 1


def test_an_entry_that_is_written_anew_is_served_anew(bank_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bank_folder / "ia3", tmp_path / "bank" / "mine")
    with serving(tmp_path / "bank") as server, serving(bank_folder) as other:
        assert server.chat("mine")["choices"] == other.chat("ia3")["choices"]
        shutil.rmtree(tmp_path / "bank" / "mine")
        shutil.copytree(bank_folder / "prompt", tmp_path / "bank" / "mine")
        os.utime(tmp_path / "bank" / "mine" / "customization.json")
        answer = server.chat("mine")
        assert answer["choices"] == other.chat("prompt")["choices"]
        assert answer["usage"]["prompt_tokens_details"]["virtual_tokens"] == 4
        assert server.get("/v1/models/mine").json()["kind"] == "prompt-tuning"
        shutil.rmtree(tmp_path / "bank" / "mine")
        gone = server.post("/v1/chat/completions", CHAT | {"model": "mine"})
        assert gone.status_code == 404 and str(tmp_path) not in gone.text


def test_a_key_reaches_nothing_by_another_name(bank_folder: Path) -> None:
    keys = Keys([Key(name="few", key="sixteen characters", models=("mine*",), updates=True)])
    with serving(bank_folder, keys=keys, limits=Limits(allow_updates=True)) as server:
        few = {"headers": {"Authorization": "Bearer sixteen characters"}}
        assert server.post("/v1/customizations", {"name": "mine", "path": "lora"}, **few).status_code == 403
        for path in ("/metrics", "/v1/models/lorx"):
            answer = server.get(path, **few)
            assert answer.status_code == 403 and "lora" not in answer.text
        unknown = server.post("/v1/chat/completions", CHAT | {"model": "mine-lora"}, **few)
        assert unknown.status_code == 404 and "Did you mean" not in unknown.text


def test_links_and_paths_out_of_the_bank_tell_nothing(bank_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bank"
    folder.mkdir()
    (folder / "away").symlink_to(bank_folder / "lora")
    with serving(folder, limits=Limits(allow_updates=True)) as server:
        assert server.post("/v1/chat/completions", CHAT | {"model": "away"}).status_code == 403
        answer = server.post("/v1/customizations", {"name": "x", "path": f"../../{bank_folder.parent.name}/bank:zz"})
        assert answer.status_code == 403 and "adapter" not in answer.text


def test_answers_of_one_prompt_need_room_each_by_itself(server: Server) -> None:
    body = {"model": "reward", "text_1": "say 3", "text_2": ["x" * 200] * 3}
    assert len(server.post("/score", body).json()["data"]) == 3
    many = {"model": "reward", "text_1": "say 3", "text_2": ["x"] * 250}
    assert len(server.post("/score", many).json()["data"]) == 250
    assert server.post("/score", many | {"text_2": ["x"] * 257}).status_code == 400


def test_names_of_other_hosts_are_refused_where_they_are_not_meant(bank_folder: Path) -> None:
    with serving(bank_folder, hosts=("127.0.0.1", "localhost")) as server:
        assert server.get("/health", headers={"Host": "evil.example"}).status_code == 400
        assert server.get("/health").status_code == 200


def test_a_failure_is_logged_as_one(bank_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(bank_folder) as server:
        server.app.state.service.models.listed = None
        with caplog.at_level(logging.INFO):
            answer = server.get("/v1/models")
        assert answer.status_code == 500 and answer.headers["x-request-id"] in message(answer)
