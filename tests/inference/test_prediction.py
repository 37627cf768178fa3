"""Rows are answered through a customization's own template: as it was trained, one answer for each row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.mix import METHODS, customized, reference_logits
from tests.tiny import tiny_base

import tunescope as ts
from tunescope.bank import BaseRecord, Record, save
from tunescope.data.encoding import Encoder
from tunescope.data.reading import read, table_of
from tunescope.data.rows import to_rows
from tunescope.errors import BankError, DataError
from tunescope.evaluation.task import measure_task
from tunescope.inference import Predictor, Request, Sampling, Score, predict, prediction
from tunescope.inference.generation import engine_for
from tunescope.methods import Customized
from tunescope.training import TrainSettings

PATTERN = "{text} kind: {label}"
LABELS = ("complaint", "praise", "question about it")
ROWS = [
    {"text": f"the {word} of day {i}", "label": LABELS[i % 3]} for i, word in enumerate(["sun", "rain", "wind"] * 3)
]


def patterned(name: str, style: str = "chat", pattern: str | None = PATTERN) -> Customized:
    made = customized(name)
    template = made.template.model_copy(update={"style": style, "pattern": pattern})
    made = Customized(made.base, made.customization.__class__(made.method, template, {}), made.origin)
    made.customization.effects = dict(customized(name).customization.effects)
    return made


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("name", METHODS)
def test_probabilities_are_those_of_whole_labels(name: str, style: str) -> None:
    made = patterned(name, style)
    encoder = Encoder(made.base.tokenizer, made.template, made.base.context_length)
    rows = to_rows(table_of(ROWS[:2]), PATTERN)
    found = predict(made, ROWS[:2], labels=LABELS)
    for row, answer in zip(rows, found, strict=True):
        prompt, candidates = encoder.candidates(row.messages, LABELS)
        logprobs = []
        for ids in candidates:
            logits = reference_logits(customized(name), prompt, ids)
            logprobs.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
        wanted = torch.stack(logprobs).softmax(0)
        assert answer.probabilities is not None and list(answer.probabilities) == list(LABELS)
        assert torch.tensor(list(answer.probabilities.values())) == pytest.approx(wanted, abs=2e-4)
        assert answer.text == answer.label == LABELS[int(wanted.argmax())]
        assert answer.probability == max(answer.probabilities.values()) and answer.error is None


@pytest.mark.parametrize("max_length", [None, 40])
def test_labels_are_those_that_the_evaluation_chooses(max_length: int | None) -> None:
    made = patterned("lora")
    longest = [{"text": "word " * n, "label": LABELS[2]} for n in (1, 5, 150)]  # the longest label cuts alike
    found = predict(made, longest, labels=LABELS, max_length=max_length)
    scores = measure_task(made, to_rows(table_of(longest), PATTERN), LABELS, max_length=max_length)
    assert [float(answer.label == LABELS[2]) for answer in found] == scores.per_row


def test_texts_are_those_of_the_engine_at_the_rendered_prompt() -> None:
    made = patterned("prompt-tuning+lora")
    found = predict(made, ROWS, max_new_tokens=7)
    requests = [
        Request(f"{row['text']} kind:", "customization", Sampling(max_new_tokens=7)) for row in ROWS
    ]  # what a user would have to type
    assert [answer.text for answer in found] == [answer.text for answer in engine_for(made).generate(requests)]
    assert all(answer.label is None and answer.probability is None for answer in found)
    assert not all(answer.finished for answer in found)


@pytest.mark.parametrize(
    "label", [lambda i: {}, lambda i: {"label": None}, lambda i: {"label": ""}, lambda i: {"label": "  "},
              lambda i: {"label": float("nan")}, lambda i: {"label": "praise"} if i % 3 else {}],
    ids=["no column", "null", "empty", "blank", "NaN", "some rows"],
)  # fmt: skip
def test_rows_need_no_label(label: Callable[[int], dict[str, Any]]) -> None:
    made = patterned("lora")
    wanted = predict(made, ROWS, labels=LABELS)
    assert predict(made, [{"text": row["text"], **label(i)} for i, row in enumerate(ROWS)], labels=LABELS) == wanted


@pytest.mark.parametrize("completion", [{}, {"completion": None}, {"completion": ""}])
def test_without_a_pattern_rows_are_read_by_convention(completion: dict[str, Any]) -> None:
    made = patterned("lora", pattern=None)
    texts = [f"{row['text']} kind:" for row in ROWS]
    wanted = [answer.text for answer in predict(patterned("lora"), ROWS, max_new_tokens=5)]
    rows = [{"prompt": text, **completion} for text in texts]
    assert [answer.text for answer in predict(made, rows, max_new_tokens=5)] == wanted
    turns = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    assert [answer.text for answer in predict(made, turns, max_new_tokens=5)] == wanted


BAD = [
    {"text": "good"},
    {"text": ""},
    {"text": ["a"]},
    {},
    {"label": "praise"},
    {"text": "also good"},
    {"text": "x", "label": ["y"]},
]


def test_rows_that_cannot_be_answered_are_named_or_keep_their_place() -> None:
    made = patterned("lora")
    with pytest.raises(DataError, match=r"(?s)rows: 2 bad rows.\n  line 4: .*\n  line 5: has no text.*--skip-bad 2"):
        predict(made, BAD, labels=LABELS, skip_bad=1)
    with pytest.raises(DataError, match=r"(?s)rows: 5 bad rows.\n  line 2: text is empty.*line 4.*--skip-bad 5"):
        predict(made, BAD, labels=LABELS, skip_bad=4)
    seen: list[int] = []
    found = predict(made, BAD, labels=LABELS, skip_bad=5, on_row=seen.append)
    assert [bool(answer.error) for answer in found] == [False, True, True, True, True, False, True]
    assert [answer.text for answer in found if answer.error] == [""] * 5 and sum(seen) == 2
    assert [found[0], found[5]] == predict(made, [BAD[0], BAD[5]], labels=LABELS)
    with pytest.raises(DataError, match=r"(?s)line 1: text is empty.*line 2"):
        predict(made, [{"text": ""}, {"text": " "}], labels=LABELS)
    with pytest.raises(DataError, match="the template names text, but the columns are other"):
        predict(made, [{"other": "x"}], labels=LABELS)
    with pytest.raises(DataError, match="holds no rows"):
        predict(made, [], labels=LABELS)


@pytest.mark.parametrize("labels", [LABELS, ()])
def test_long_rows_are_cut_to_fit_the_context(labels: tuple[str, ...]) -> None:
    made = patterned("few-shot")
    rows = [{"text": "long " * n} for n in (1, 20, 100, 200, 1000)]
    given = {} if labels else {"max_new_tokens": 20}
    questions = Predictor(made, labels, **given).questions(table_of(rows))
    assert questions.cut == 3
    found = predict(made, rows, labels=labels, **given)
    assert [answer.error for answer in found] == [None] * 5
    with pytest.raises(DataError, match=r"line 1: is too long: nothing of its text fits"):
        predict(made, rows, labels=labels, max_length=5, **given)


def test_what_has_no_meaning_is_refused() -> None:
    made = patterned("lora")
    with pytest.raises(DataError, match="max_new_tokens has no meaning where the answer is one of the labels"):
        predict(made, ROWS, labels=LABELS, max_new_tokens=3)
    with pytest.raises(DataError, match="max_new_tokens 600 leaves no room in the base's context of 512"):
        predict(made, ROWS, max_new_tokens=600)


def test_entries_and_trained_know_their_labels_and_length(tmp_path: Path) -> None:
    rows = to_rows(table_of(ROWS * 2), PATTERN)
    settings = TrainSettings(max_steps=2, max_length=48)
    trained = ts.train(
        tiny_base(), ts.LoRA(), data=rows, pattern=PATTERN, settings=settings, out=tmp_path / "kinds", labels=LABELS
    )
    long = [*ROWS, {"text": "many words " * 20}]
    found = predict(trained, long)
    assert found == predict(trained.customized, long, labels=LABELS, max_length=48)
    assert found != predict(trained, long, max_length=100)
    assert [answer.label for answer in found] == [answer.text for answer in found]
    loaded = ts.load(tmp_path / "kinds", tiny_base())
    assert predict(replace(trained, customized=loaded), long) == found
    texts = predict(trained, ROWS, labels=(), max_new_tokens=3)
    assert all(answer.label is None for answer in texts)
    with pytest.raises(BankError, match="reward model gives texts numbers"):
        predict(replace(trained, record=trained.record.model_copy(update={"objective": "reward"})), ROWS)


def test_an_entry_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = patterned("lora")
    base = tiny_base()
    record = Record(
        tunescope="0", method=made.method.name, method_settings=made.method.model_dump(mode="json"), objective="sft",
        template=made.template, base=BaseRecord(name="tiny", fingerprint=base.fingerprint), labels=LABELS,
    )  # fmt: skip
    save(customized("lora"), tmp_path / "kinds", record)
    monkeypatch.setattr("tunescope.bank.entry.load_base", lambda name: base)
    for path in (tmp_path / "kinds", str(tmp_path / "kinds")):
        assert ts.predict(path, ROWS) == predict(made, ROWS, labels=LABELS)


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf"), float("inf")])
def test_probabilities_that_are_no_numbers_are_no_label(logprob: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(made: Customized, items: list[Any]) -> list[list[Score]]:
        return [[Score(logprob if i == 1 else -1.0, 1) for _ in LABELS] for i, _ in enumerate(items)]

    monkeypatch.setattr(prediction, "score", broken)
    with pytest.raises(DataError, match="line 2: the model's probabilities are not finite"):
        predict(patterned("lora"), [{"text": "same"}] * 3, labels=LABELS)
    found = predict(patterned("lora"), [{"text": "same"}] * 3, labels=LABELS, skip_bad=1)
    assert [answer.error is None for answer in found] == [True, False, True]


def test_rows_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("label,text\n" + "".join(f",{row['text']}\n" for row in ROWS), encoding="utf-8")
    assert predict(patterned("lora"), read(path), labels=LABELS) == predict(patterned("lora"), ROWS, labels=LABELS)
