"""Task metrics against slow obvious versions."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import tiny_base

from tunescope.data.encoding import Encoder
from tunescope.data.identity import row_keys
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import DataError
from tunescope.evaluation import evaluate
from tunescope.evaluation.task import measure_task
from tunescope.methods import Customization, Customized, ZeroShot

LABELS = ("high", "low", "no")


def row(i: int) -> Row:
    return Row(({"role": "user", "content": f"item {i} {'z' * (i * 3 % 11)}"},), LABELS[i % 3], i + 1)


ROWS = [row(i) for i in range(12)]


@pytest.fixture
def customized() -> Customized:
    base = tiny_base()
    return Customized(base, Customization(ZeroShot(), default_template(base.tokenizer), {}), base)


def test_accuracy_and_loss_equal_one_forward_a_text(customized: Customized) -> None:
    found = measure_task(customized, ROWS, LABELS)
    encoder = Encoder(customized.base.tokenizer, customized.template, 512)
    right, nll, tokens = [], 0.0, 0
    for each in ROWS:
        sums = {}
        for label in LABELS:
            prompt = encoder.prompt(each.messages).ids
            answer = encoder.candidates(each.messages, [label])[1][0]
            logprobs = customized.base.model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            sums[label] = sum(logprobs[len(prompt) - 1 + i, t].item() for i, t in enumerate(answer))
            if label == each.completion:
                nll, tokens = nll - sums[label], tokens + len(answer)
        right.append(float(max(sums, key=lambda label: sums[label]) == each.completion))
    assert found.per_row == right == [float(a == row.completion) for a, row in zip(found.answers, ROWS, strict=True)]
    assert found.accuracy == sum(right) / len(right)
    assert found.nll_per_token == pytest.approx(nll / tokens, abs=1e-4)
    assert found.tokens == tokens


def test_unseen_label_is_named_with_its_line(customized: Customized) -> None:
    rows = [*ROWS, Row(({"role": "user", "content": "x"},), "purple", 99)]
    with pytest.raises(DataError, match=r"'purple' \(line 99\)"):
        measure_task(customized, rows, LABELS)


def test_text_task_has_chrf_and_exact_match(customized: Customized) -> None:
    free = measure_task(customized, ROWS[:3], None, max_new_tokens=6)
    assert free.accuracy is None
    assert free.exact_match == 0.0
    assert free.chrf is not None
    assert len(free.per_row) == 3
    from tunescope.inference import Sampling, generate

    text = generate(customized, [ROWS[0].prompt], Sampling(max_new_tokens=6))[0].text
    echo = Row(ROWS[0].messages, text, 1)
    same = measure_task(customized, [echo], None, max_new_tokens=6)
    assert same.exact_match == 1.0
    assert same.per_row == [pytest.approx(100.0)] and same.answers == [text]


def test_generates_for_the_first_rows_only(customized: Customized) -> None:
    found = measure_task(customized, ROWS, LABELS, generate_rows=2)
    assert found.generated_rows == 2
    assert len(found.per_row) == len(ROWS)


def test_extra_prompt_tokens_are_the_system_text(customized: Customized) -> None:
    template = customized.template.model_copy(update={"system": "Be kind."})
    customized.customization.template = template
    found = measure_task(customized, ROWS, LABELS, generate_rows=0)
    assert found.extra_prompt_tokens == len("<S>system\nBe kind.<E>\n".replace("<S>", "1").replace("<E>", "1"))
    assert found.exact_match is None


def test_card_has_what_eval_promises(customized: Customized) -> None:
    card = evaluate(customized, ROWS, labels=LABELS)
    wanted = {"nll_per_token", "tokens", "accuracy", "forgetting_on", "forgetting_off", "trainable_parameters"}
    assert wanted | {"ttft_ms", "ms_per_token", "peak_memory_mb"} <= set(card)
    assert card["score_low"] <= card["score"] <= card["score_high"]
    assert card["ttft_ms"] > 0
    assert card["peak_memory_mb"] > 0


def test_an_accuracy_at_the_boundary_has_wilsons_interval(customized: Customized) -> None:
    rows = [Row(each.messages, "high", each.number) for each in ROWS]
    card = evaluate(customized, rows, labels=("high", "low"))
    while card["score"] not in (0.0, 1.0):  # a model made of noise takes sides by chance: keep the rows of one side
        rows = [row for row, right in zip(rows, card["per_row"], strict=True) if right]
        card = evaluate(customized, rows, labels=("high", "low"))
    reach = 1.959964**2 / (len(rows) + 1.959964**2)
    assert card["score_high"] - card["score_low"] == pytest.approx(reach)
    assert (card["exact_match"], card["exact_match_low"]) == (0.0, 0.0)
    assert card["exact_match_high"] == pytest.approx(reach)


def test_scores_are_of_the_rows_they_name_though_lines_repeat(customized: Customized) -> None:
    long = Row(({"role": "user", "content": "x"},), "y" * 600, 2)  # its completion does not fit: dropped
    rows = [*ROWS[:4], long, *ROWS[4:6]]  # line 2 stands twice, as in rows of two files
    found = measure_task(customized, rows, None, max_new_tokens=4)
    assert len(found.per_row) == 6
    assert found.row_keys == [key for row, key in zip(rows, row_keys(rows), strict=True) if row is not long]
