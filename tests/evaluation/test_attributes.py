"""Attribute models and steering, measured; rows labelled by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.objectives.pairs import RATED
from tests.tiny import tiny_base

from tunescope import bank, storage
from tunescope.data.encoding import Encoder
from tunescope.data.reading import Table, read, table_of
from tunescope.data.rows import Row
from tunescope.errors import BankError, DataError, Interrupted, TrainingError, TunescopeError
from tunescope.evaluation.attribute_accuracy import evaluate_attributes
from tunescope.evaluation.statistics import rank_correlation
from tunescope.evaluation.steering import evaluate_steering
from tunescope.inference import Engine, Request, Sampling
from tunescope.judging.annotation import AttributeModel, Measures, annotate_file
from tunescope.methods import LoRA
from tunescope.objectives import SFT, Attributes, Reward
from tunescope.training import TrainSettings, train
from tunescope.training.run import Trained

NAMES = ("mood", "length")
SETTINGS = TrainSettings(max_steps=60, batch_size=6, lr=2e-2)


def length(prompt: str, completion: str) -> float:
    """Characters, a judge of the tests."""
    return float(len(completion))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("bank") / "attributes"
    return train(tiny_base(), LoRA(rank=4), Attributes(columns=NAMES), RATED, settings=SETTINGS, out=out)


@pytest.fixture(scope="module")
def steered() -> Trained:
    """Learns to write as many exclamation marks as it is asked for."""
    rows = [
        Row(({"role": "user", "content": f"say {i % 3}"},), "!" * (2 * i % 10 + 1), i).with_attributes(
            {"length": i % 5}
        )
        for i in range(40)
    ]
    settings, method = TrainSettings(max_steps=300, batch_size=10, lr=5e-3), LoRA(rank=8, targets=("all-linear",))
    return train(tiny_base(), method, SFT(steer_columns=("length",)), rows, settings=settings)


def table() -> Table:
    return table_of([{"prompt": row.prompt, "completion": row.completion} for row in RATED])


def test_rank_correlation_is_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    asked, realized = generator.integers(0, 5, (30, 5)), generator.normal(size=(30, 5))
    realized = realized + asked
    found = rank_correlation(asked, realized)
    assert found is not None
    assert found[0] == pytest.approx(stats.spearmanr(asked.ravel(), realized.ravel()).statistic, abs=1e-12)
    assert found[1].low < found[0] < found[1].high
    assert rank_correlation(np.ones(5), np.arange(5)) is None


def test_an_attribute_model_is_measured_on_the_values_that_are_there(model: Trained) -> None:
    card = evaluate_attributes(model.customized, Attributes(columns=NAMES), RATED)
    assert card["attributes"]["mood"]["rows"] == 9 and card["attributes"]["length"]["rows"] == 12
    for name in NAMES:
        own = card["attributes"][name]
        truth = np.array([row.attributes[name] for row in RATED if name in row.attributes])
        assert own["constant_mae"] == pytest.approx(np.abs(truth - np.median(truth)).mean())
        assert own["mae"] < 0.6 * own["constant_mae"] and own["spearman"] > 0.8
        assert own["better_than_constant"] == pytest.approx(own["constant_mae"] - own["mae"])


def test_rows_are_labelled_rounded_and_within_the_range(model: Trained, tmp_path: Path) -> None:
    out = tmp_path / "labelled.jsonl"
    who = AttributeModel(model.customized, model.record, "it")
    found = annotate_file([who, Measures(["size=tests.evaluation.test_attributes:length"], tiny_base())], table(), out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [list(row) for row in rows] == [["prompt", "completion", *NAMES, "size"]] * len(RATED)
    exact = who(RATED)
    assert [[row[name] for name in NAMES] for row in rows] == [[min(max(round(v), 0), 4) for v in o] for o in exact]
    assert [row["size"] for row in rows] == [min(len(row.completion or ""), 4) for row in RATED]
    assert found.counts()["mood"].keys() <= {0, 1, 2, 3, 4}
    with pytest.raises(TunescopeError, match="--overwrite"):
        annotate_file([who], table(), out)
    with pytest.raises(DataError, match="has a column mood already"):
        annotate_file([who], table_of(rows), tmp_path / "other.jsonl")


def test_labelling_goes_on_where_it_was_stopped(
    model: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunescope.judging.annotation._PART", 5)
    who = AttributeModel(model.customized, model.record, "it")

    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="Stopped after 5 of 12 rows"):
        annotate_file([who], table(), tmp_path / "a.jsonl", on_done=stop)
    assert not (tmp_path / "a.jsonl").exists()
    with pytest.raises(DataError, match="other settings"):
        annotate_file([Measures(["n=tokens:3"], tiny_base())], table(), tmp_path / "a.jsonl")
    assert annotate_file([who], table(), tmp_path / "a.jsonl").resumed == 5
    annotate_file([who], table(), tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert not storage.unfinished.partial_path(tmp_path / "a.jsonl").exists()


def test_who_cannot_label_is_refused(model: Trained, tmp_path: Path) -> None:
    other = train(tiny_base(), LoRA(), SFT(), RATED, settings=TrainSettings(max_steps=1))
    with pytest.raises(BankError, match="--objective attributes"):
        AttributeModel(other.customized, other.record, "it")
    for given in ("tokens:3", "=tokens:3", "a:b=tokens:3"):
        with pytest.raises(TunescopeError):
            Measures([given], tiny_base())
    assert model.path is not None
    with pytest.raises(BankError, match="was made for tiny-llama"):
        bank.load(model.path, tiny_base("qwen2"))
    same = [row.with_attributes({"mood": 1, "length": i}) for i, row in enumerate(RATED[:5])]
    with pytest.raises(DataError, match="mood is 1 in every row"):
        train(tiny_base(), LoRA(), Attributes(columns=NAMES), same)
    with pytest.raises(DataError, match="mood has no value in any row"):
        train(tiny_base(), LoRA(), SFT(steer_columns=NAMES), [r.with_attributes({"length": 1}) for r in RATED])


def test_an_attribute_model_never_reads_its_labels(tmp_path: Path) -> None:
    """On top of a steered entry, whose template would write them into the prompt."""
    few = TrainSettings(max_steps=2, batch_size=4)
    train(tiny_base(), LoRA(), SFT(steer_columns=NAMES), RATED, settings=few, out=tmp_path / "steered")
    made = train(tiny_base(), LoRA(), Attributes(columns=NAMES), RATED, settings=few, start=tmp_path / "steered")
    assert made.customized.template.steering is None
    encoder = Encoder(tiny_base().tokenizer, made.customized.template, 512)
    texts = [tiny_base().tokenizer.decode(each.prompt) for each in encoder.encode_all(RATED)]
    assert not any("mood" in text or "length" in text for text in texts)


def test_values_may_stand_in_columns_in_objects_and_nowhere() -> None:
    """As docs/steerlm.md shows them."""
    rows = [
        {"prompt": "What is a cat?", "completion": "A small animal.", "quality": 3, "verbosity": 0},
        {"prompt": "What is a dog?", "completion": "Dogs …", "attributes": {"quality": 4, "verbosity": 2}},
        {"prompt": "What is a cow?", "completion": "Big.", "quality": None, "attributes": {"quality": 1}},
    ]
    made = train(tiny_base(), LoRA(), SFT(steer_columns=("quality", "verbosity")), rows,
                 settings=TrainSettings(max_steps=1, batch_size=3))  # fmt: skip
    steering = made.customized.template.steering
    assert steering is not None and [each.default for each in steering.attributes] == [3, 1]


def test_what_goes_on_from_a_steered_entry_keeps_its_line(tmp_path: Path) -> None:
    few = TrainSettings(max_steps=1, batch_size=4)
    columns: Any = {"steer_columns": NAMES}
    train(tiny_base(), LoRA(), SFT(steer_place="system", **columns), RATED, settings=few, out=tmp_path / "a")
    again = train(tiny_base(), LoRA(), SFT(**columns), RATED, settings=few, continued=tmp_path / "a")
    assert again.customized.template.steering is not None and again.customized.template.steering.place == "system"
    for changed, message in (({"steer_place": "answer"}, "line at system"), ({"steer_high": 9}, "--steer-high 4")):
        with pytest.raises(TrainingError, match=message):
            train(tiny_base(), LoRA(), SFT(**columns, **changed), RATED, settings=few, continued=tmp_path / "a")
    with pytest.raises(TrainingError, match="name the same"):
        train(tiny_base(), LoRA(), SFT(steer_columns=("length",)), RATED, settings=few, continued=tmp_path / "a")


def test_labels_that_some_rows_have_are_kept(model: Trained, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "mood": 4}, {"prompt": "a", "completion": "c"}]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    who = AttributeModel(model.customized, model.record, "it")
    with pytest.raises(DataError, match="has a column mood already"):
        annotate_file([who], read(tmp_path / "some.jsonl", optional=("mood",)), tmp_path / "out.jsonl")


def test_what_is_asked_for_is_written(steered: Trained) -> None:
    rows = [Row(({"role": "user", "content": f"say {i}"},), None, i) for i in range(3)]
    judge = Measures(["length=tests.evaluation.test_attributes:halves"], tiny_base())
    card = evaluate_steering(steered.customized, rows, [judge], Sampling(max_new_tokens=16, temperature=0.2))
    own = card["attributes"]["length"]
    assert own["spearman"] > 0.8 and own["monotone"] and len(own["means"]) == 5
    assert (own["base_spearman"] or 0.0) < 0.6
    assert card["leakage"] == {"length": {"length": own["spearman"]}}
    with pytest.raises(DataError, match="Nobody measures length"):
        evaluate_steering(steered.customized, rows, [Measures(["mood=tokens:3"], tiny_base())], Sampling())


def halves(prompt: str, completion: str) -> float:
    """Half of the characters, a judge of the tests."""
    return len(completion) / 2


def test_rows_of_a_batch_are_steered_each_by_its_own_values(steered: Trained) -> None:
    engine = Engine(tiny_base(), slots=4)
    engine.load("it", steered.customized)
    requests = [Request("say 1", "it", Sampling(max_new_tokens=16), {"length": i}) for i in range(5)]
    alone = [engine.generate([request])[0].text for request in requests]
    assert [answer.text for answer in engine.generate([*requests, Request("say 1", "it")])][:5] == alone
    assert len(alone[4]) > len(alone[0])
    refused = engine.generate([Request("a", "it", steer={"tone": 1}), Request("a", None, steer={"length": 1})])
    assert [answer.error for answer in refused] == [
        "Unknown attribute 'tone'. Known: length.",
        "The base was not trained on attributes, so nothing steers it: leave steer out.",
    ]


def test_a_reward_model_says_that_it_is_none(tmp_path: Path) -> None:
    from tests.objectives.pairs import PAIRS

    made: Any = train(tiny_base(), LoRA(), Reward(), PAIRS, settings=TrainSettings(max_steps=1))
    with pytest.raises(BankError, match="was trained for reward"):
        AttributeModel(made.customized, made.record, "it")
