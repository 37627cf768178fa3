"""Benchmarks by the lm-evaluation-harness: our model answers what its own does, and a task of ours goes through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_base

from tunescope.data.template import default_template
from tunescope.errors import DataError
from tunescope.methods import Customized, Full, LoRA, Method, PromptTuning, ZeroShot, compose, customize
from tunescope.objectives.reference import untouched

harness = pytest.importorskip("tunescope.evaluation.harness", reason="needs the extra lm-eval")
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

CONTINUED = [
    ("Once upon", " a time"), ("Once upon", " a mine"), ("Once upon ", "a time"), ("", "Once"), ("x", " " + "y" * 40),
    ("a" * 700, " end"),
]  # fmt: skip
TEXTS = ["short", "longer than one word", "very long " * 120]


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def moved(method: Method, seed: int = 0) -> Customized:
    """A customization that changes what the base answers."""
    base = tiny_base()
    made = customize(base, method, default_template(base.tokenizer, style="plain"), seed=seed)
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    return made


@pytest.mark.parametrize("method", [ZeroShot(), LoRA(rank=2)], ids=lambda method: method.name)
def test_it_answers_what_the_harness_itself_computes(method: Method) -> None:
    made = moved(method)
    ours = harness.HarnessModel(made)
    with made.active() as base:
        theirs = HFLM(base.model, tokenizer=base.tokenizer, max_length=base.context_length, batch_size=2)
        requests = asked("loglikelihood", *CONTINUED)
        expected = theirs.loglikelihood(requests, disable_tqdm=True)
        whole = asked("loglikelihood_rolling", *((text,) for text in TEXTS))
        rolling = theirs.loglikelihood_rolling(whole, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [nats for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-3)
    assert [same for _, same in found] == [bool(same) for _, same in expected]
    assert ours.loglikelihood_rolling(whole) == pytest.approx(rolling, rel=1e-5)
    assert ours.notes == ["Contexts lost their beginning: they are longer than the base's context."]


def test_what_is_greedy_is_what_is_generated() -> None:
    model = harness.HarnessModel(moved(LoRA(rank=2)))
    how = {"until": ["\n\n"], "max_gen_toks": 1}
    contexts = [f"tell {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    written = model.generate_until(asked("generate_until", *((context, how) for context in contexts)))
    told = [(c, text) for c, text in zip(contexts, written, strict=True) if text.strip() and text.isascii()]
    assert told, "a model made of noise writes a letter somewhere"
    found = model.loglikelihood(asked("loglikelihood", *told, *((context, "~!") for context, _ in told)))
    assert [same for _, same in found] == [True] * len(told) + [False] * len(told)


def test_an_answer_ends_before_what_ends_it() -> None:
    model = harness.HarnessModel(moved(LoRA(rank=2)))
    (text,) = model.generate_until(asked("generate_until", ("tell", {"until": [], "max_gen_toks": 8})))
    last = text[-1]
    one, two = model.generate_until(
        asked("generate_until", ("tell", {"until": last, "max_gen_toks": 8}), ("tell", {"max_gen_toks": 8}))
    )
    assert one == text[: text.index(last)] and two == text


def test_virtual_tokens_stand_before_every_text() -> None:
    made = moved(compose(PromptTuning(virtual_tokens=5), LoRA(rank=2)))
    model = harness.HarnessModel(made)
    assert model.max_length == made.base.context_length - 5
    plain = harness.HarnessModel(untouched(made))
    request = asked("loglikelihood", ("Once upon", " a time"))
    ((nats, _),) = model.loglikelihood(request)
    assert nats != pytest.approx(plain.loglikelihood(request)[0][0], abs=1e-3)
    prompt = made.template.virtual_ids + made.base.tokenizer("Once upon", add_special_tokens=False)["input_ids"]
    answer = made.base.tokenizer(" a time", add_special_tokens=False)["input_ids"]
    from tunescope.inference import Item, score

    assert nats == pytest.approx(score(made, [Item(prompt, [answer])])[0][0].logprob, abs=1e-4)


def task(folder: Path, **more: Any) -> Path:
    """A task of eight questions, in the harness's own format."""
    rows = [{"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": i % 2} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "task": "evens", "dataset_path": "json", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "doc_to_text": "{{question}} ", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1}, **more,
    }  # fmt: skip
    path = folder / "evens.yaml"
    path.write_text(json.dumps(given))  # JSON is YAML
    return path


@pytest.mark.parametrize("chat", [False, True])
def test_a_task_is_measured_before_and_after(chat: bool, tmp_path: Path) -> None:
    made = moved(LoRA(rank=2))
    card = harness.evaluate_standard(made, [str(task(tmp_path))], chat=chat)
    own = card["tasks"]["evens"]["acc"]
    assert own["rows"] == card["rows"] == 8
    assert own["gain"] == pytest.approx(own["after"] - own["before"]) and own["gain_low"] <= own["gain"]
    assert card["score"] == own["gain"] and 0 <= own["before"] <= 1
    same = harness.evaluate_standard(untouched(made), [str(task(tmp_path))], chat=chat)
    assert same["score"] == 0 and same["tasks"]["evens"]["acc"]["before"] == own["before"]


def test_the_base_of_full_is_the_one_that_was(tmp_path: Path) -> None:
    base = tiny_base()
    made = customize(base, Full(), default_template(base.tokenizer), seed=0)
    with torch.no_grad():
        for parameter in made.base.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    card = harness.evaluate_standard(made, [str(task(tmp_path))])
    before = harness.evaluate_standard(untouched(made), [str(task(tmp_path))])
    assert card["tasks"]["evens"]["acc"]["before"] == before["tasks"]["evens"]["acc"]["after"]


def test_what_it_cannot_do(tmp_path: Path) -> None:
    made = moved(LoRA(rank=2))
    with pytest.raises(DataError, match="no task 'no-such-task'"):
        harness.evaluate_standard(made, ["no-such-task"])
    with pytest.raises(DataError, match=r"nothing\.yaml: no such file"):
        harness.evaluate_standard(made, [str(tmp_path / "nothing.yaml")])
    (tmp_path / "empty.yaml").write_text("dataset_path: json\n")
    with pytest.raises(DataError, match="defines no task"):
        harness.evaluate_standard(made, [str(tmp_path / "empty.yaml")])
    with pytest.raises(DataError, match="num_beams"):
        harness.HarnessModel(made).generate_until(asked("generate_until", ("x", {"num_beams": 4})))
    split = moved(PromptTuning(virtual_tokens=2))
    split.customization.template = split.template.model_copy(update={"virtual_splits": (1, 1)})
    with pytest.raises(DataError, match="marked places"):
        harness.HarnessModel(split)
