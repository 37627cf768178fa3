"""Labels, rewards and attributes over HTTP equal those in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.serving.conftest import BASE, Server
from tests.tiny import tiny_base

import tunescope as ts
from tunescope.inference import Engine, ScoreRequest
from tunescope.inference.prediction import probabilities_of


def test_labels_equal_the_engine(server: Server, bank_folder: Path) -> None:
    rows = [{"text": "the sun today"}, {"text": "a rain at night"}, {"text": "neither"}]
    engine = Engine(tiny_base())
    engine.load("labels", bank_folder / "labels")
    labels = ts.Sampling(choices=("warm", "wet"))
    asked = [ts.Request(f"{row['text']} topic:", "labels", labels) for row in rows]
    wanted = engine.generate(asked)
    for given in (rows, [row["text"] for row in rows]):
        answer = server.post("/classify", {"model": "labels", "input": given}).json()
        assert [each["label"] for each in answer["data"]] == [each.text for each in wanted]
        for found, each in zip(answer["data"], wanted, strict=True):
            shares = probabilities_of(each.choice_logprobs or {})
            assert found["probabilities"] == pytest.approx(shares, abs=1e-5)
            assert found["num_classes"] == 2 and sum(found["probs"]) == pytest.approx(1)


@pytest.mark.parametrize("prompts", ["say 3", ["say 3", "say 3", "say 4"]])
def test_rewards_equal_the_engine(server: Server, bank_folder: Path, prompts: str | list[str]) -> None:
    engine = Engine(tiny_base())
    engine.load("reward", bank_folder / "reward")
    answers = ["good 3", "bad 3", "so"]
    each = [prompts] * 3 if isinstance(prompts, str) else prompts
    wanted = [
        engine.generate([ScoreRequest(prompt, [text], "reward")])[0].scores[0][0]  # type: ignore[index]
        for prompt, text in zip(each, answers, strict=True)
    ]
    answer = server.post("/score", {"model": "reward", "text_1": prompts, "text_2": answers}).json()
    assert [found["score"] for found in answer["data"]] == pytest.approx(wanted, abs=1e-5)
    talks = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        for prompt, text in zip(each, answers, strict=True)
    ]
    pooled = server.post("/pooling", {"model": "reward", "messages": talks}).json()
    assert [found["data"][0] for found in pooled["data"]] == pytest.approx(wanted, abs=1e-5)


def test_attributes_by_name(server: Server) -> None:
    talk = [{"role": "user", "content": "say 3"}, {"role": "assistant", "content": "well well"}]
    found = server.post("/pooling", {"model": "raters", "messages": talk}).json()["data"][0]
    assert list(found["attributes"]) == ["quality", "verbosity"]
    assert list(found["attributes"].values()) == found["data"]


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/classify", {"model": "lora", "input": "x"}, "not trained on labels"),
        ("/classify", {"model": BASE, "input": "x"}, "not trained on labels"),
        ("/classify", {"model": "labels", "input": []}, "0 inputs"),
        ("/classify", {"model": "labels", "input": {"other": "x"}}, "text"),
        ("/score", {"model": "lora", "text_1": "a", "text_2": "b"}, "writes answers"),
        ("/score", {"model": "raters", "text_1": "a", "text_2": "b"}, "gives attributes"),
        ("/score", {"model": "reward", "text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "2 prompts"),
        ("/score", {"model": "reward", "text_1": [], "text_2": []}, "0 prompts"),
        ("/pooling", {"model": "reward", "messages": [{"role": "user", "content": "x"}]}, "assistant's answer"),
        ("/pooling", {"model": "reward", "messages": []}, "empty"),
        ("/pooling", {"model": "lora", "messages": [{"role": "user", "content": "x"}]}, "writes answers"),
    ],
)
def test_what_cannot_be_scored_says_why(server: Server, path: str, body: dict[str, object], why: str) -> None:
    answer = server.post(path, body)
    assert answer.status_code == 400 and why in answer.json()["error"]["message"]


@pytest.mark.parametrize("model", ["reward", "raters"])
def test_an_entry_for_scores_never_writes_as_the_base(server: Server, model: str) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 400 and "gives scores" in answer.json()["error"]["message"]
