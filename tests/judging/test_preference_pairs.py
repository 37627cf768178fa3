from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.inference.mix import customized
from tests.tiny import tiny_base

from tunescope.data.pairs import to_pairs
from tunescope.data.reading import read
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import DataError, Interrupted, TunescopeError
from tunescope.judging import Judged, Samples, make_pairs
from tunescope.judging.functions import Function
from tunescope.judging.preference_pairs import _pairs, _unfinished, samples_path
from tunescope.methods import Customization, Customized, ZeroShot

ROWS = [Row(({"role": "user", "content": f"tell me of {thing}"},), None, i + 2) for i, thing in enumerate("abcde")]
SAMPLING = Samples(n=3, max_new_tokens=6, top_k=50)


class Letters:
    """Counts letters; notes what it was asked, and fails where it is told to."""

    name, needs_answers = "letters", False

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[str] = []
        self._stop_after = stop_after

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | str]:
        if len(self.asked) == self._stop_after:
            raise KeyboardInterrupt
        self.asked.append(rows[0].prompt)
        return [float(len(text)) for text in completions]


def plain() -> Customized:
    base = tiny_base()
    return Customized(base, Customization(ZeroShot(), default_template(base.tokenizer), {}), base)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What an uninterrupted call writes: pairs and samples."""
    out = tmp_path_factory.mktemp("whole") / "pairs.jsonl"
    make_pairs(plain(), ROWS, Letters(), SAMPLING, out)
    return [out.read_text(), samples_path(out).read_text()]


def test_the_best_and_the_worst_of_each_prompt(tmp_path: Path, whole: list[str]) -> None:
    pairs, samples = ([json.loads(line) for line in text.splitlines()] for text in whole)
    assert [sample["line"] for sample in samples] == [line for line in range(2, 7) for _ in range(3)]
    assert all(sample["score"] == len(sample["completion"]) for sample in samples)
    for pair in pairs:
        of = [s["score"] for s in samples if s["prompt"] == pair["prompt"] and s["completion"].strip()]
        assert (pair["reward_chosen"], pair["reward_rejected"]) == (max(of), min(of))
        assert (len(pair["chosen"]), len(pair["rejected"])) == (max(of), min(of))
    (tmp_path / "p.jsonl").write_text(whole[0])
    assert [pair.margin for pair in to_pairs(read(tmp_path / "p.jsonl"))] == [
        pair["reward_chosen"] - pair["reward_rejected"] for pair in pairs
    ]


@pytest.mark.parametrize("prompts", range(5))
def test_a_stopped_call_goes_on_and_ends_the_same(tmp_path: Path, whole: list[str], prompts: int) -> None:
    out = tmp_path / "pairs.jsonl"
    with pytest.raises(Interrupted, match=f"after {prompts} of 5 prompts"):
        make_pairs(plain(), ROWS, Letters(stop_after=prompts), SAMPLING, out)
    assert not out.exists()
    with (tmp_path / ".pairs/pairs.jsonl/samples.jsonl").open("a") as file:
        file.write('[3, [{"text": "killed in the midd')
    judge, seen = Letters(), []
    made = make_pairs(plain(), ROWS, judge, SAMPLING, out, on_prompt=seen.append)
    assert [out.read_text(), samples_path(out).read_text()] == whole
    assert len(judge.asked) == 5 - prompts and seen == list(range(prompts, 6))
    assert made.new_tokens <= 6 * 3 * (5 - prompts)
    assert not (tmp_path / ".pairs").exists()


def test_other_settings_do_not_go_on(tmp_path: Path, whole: list[str]) -> None:
    out = tmp_path / "pairs.jsonl"
    with pytest.raises(Interrupted):
        make_pairs(plain(), ROWS, Letters(stop_after=2), SAMPLING, out)
    for other, differing in (
        ((plain(), ROWS, Letters(), SAMPLING.model_copy(update={"seed": 1})), "seed"),
        ((plain(), ROWS[1:], Letters(), SAMPLING), "prompts"),
        ((plain(), ROWS, Function("m:f", lambda prompt, text: 1), SAMPLING), "judge"),
        ((customized("lora"), ROWS, Letters(), SAMPLING), "customization"),
    ):
        with pytest.raises(DataError, match=rf"other settings \({differing}\).*--restart"):
            make_pairs(*other, out)
    judge = Letters()
    make_pairs(plain(), ROWS, judge, SAMPLING, out, restart=True)
    assert len(judge.asked) == 5 and out.read_text() == whole[0]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("recipe.json", lambda text: text[:30]),
        ("recipe.json", None),
        ("samples.jsonl", lambda text: text.replace("[", "(", 1)),
        ("samples.jsonl", lambda text: text.replace('"text"', '"txet"', 1)),
        ("samples.jsonl", lambda text: text.replace("[0", "[99", 1)),
    ],
)
def test_damaged_samples_are_named_with_the_remedy(
    name: str, damage: Callable[[str], str] | None, tmp_path: Path, whole: list[str]
) -> None:
    out = tmp_path / "p.jsonl"
    with pytest.raises(Interrupted):
        make_pairs(plain(), ROWS[:1] * 2, Letters(stop_after=1), SAMPLING, out)
    path = tmp_path / ".pairs" / "p.jsonl" / name
    path.write_text(damage(path.read_text())) if damage else path.unlink()
    with pytest.raises(TunescopeError, match=rf"{name} is damaged \(.*--restart"):
        make_pairs(plain(), ROWS[:1] * 2, Letters(), SAMPLING, out)


def test_ends_of_lines_in_a_completion_end_no_line(tmp_path: Path) -> None:
    """U+2028 ends a line for ``str.splitlines``, not in JSON lines."""
    file = tmp_path / "samples.jsonl"
    sample = Judged("a\u2028b\x85c", [1], True, 1.0)
    file.write_text(json.dumps([0, [asdict(sample)]], ensure_ascii=False) + "\n", encoding="utf-8")
    assert _unfinished(file, 1) == {0: [sample]}


def test_samples_without_a_score_are_named_and_left_out_up_to_a_limit(tmp_path: Path) -> None:
    calls = 0

    def every_fourth_fails(prompt: str, text: str) -> float:
        nonlocal calls
        calls += 1
        return 1 / (calls % 4) if calls % 4 != 3 else float("nan")

    judge = Function("m:f", every_fourth_fails)
    with pytest.raises(DataError, match=r"line \d, sample \d: the judge (raised ZeroDivisionError|returned nan)"):
        make_pairs(plain(), ROWS, judge, SAMPLING, tmp_path / "a.jsonl", skip_unjudged=2)
    assert not (tmp_path / "a.jsonl").exists()
    calls = 0
    made = make_pairs(plain(), ROWS, judge, SAMPLING, tmp_path / "b.jsonl", skip_unjudged=7)
    assert made.summary()["unjudged"] == 7 and "7 samples have no score" in made.notes[-2]
    assert sum("unjudged" in sample for sample in made.samples) == 7


def test_a_judge_that_was_mended_is_asked_again(tmp_path: Path) -> None:
    asked = 0

    def fails_on_two_prompts(prompt: str, text: str) -> float:
        nonlocal asked
        asked += 1
        return float("nan") if 3 < asked <= 9 else float(len(text))

    judge = Function("m:f", fails_on_two_prompts)
    with pytest.raises(DataError, match="line"):
        make_pairs(plain(), ROWS, judge, SAMPLING, tmp_path / "p.jsonl", skip_unjudged=3)
    made = make_pairs(plain(), ROWS, Function("m:f", lambda prompt, text: len(text)), SAMPLING, tmp_path / "p.jsonl")
    assert made.summary()["unjudged"] == 0 and made.new_tokens < sum(sample["tokens"] for sample in made.samples)


def test_a_judge_that_always_fails_is_named_and_the_samples_wait_for_it(tmp_path: Path) -> None:
    broken = Function("m:f", lambda prompt, text: "good")
    with pytest.raises(DataError, match=r"no pairs: 15 samples have no score(.|\n)*returned str"):
        make_pairs(plain(), ROWS, broken, SAMPLING, tmp_path / "p.jsonl", skip_unjudged=100)
    made = make_pairs(plain(), ROWS, Function("m:f", lambda prompt, text: len(text)), SAMPLING, tmp_path / "p.jsonl")
    assert made.pairs and made.new_tokens == 0


def test_nothing_to_choose_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None of 5 prompts has two samples that differ"):
        make_pairs(plain(), ROWS, Function("m:f", lambda prompt, text: 0), SAMPLING, tmp_path / "p.jsonl")
    with pytest.raises(DataError, match="n is 1: a pair needs at least two"):
        make_pairs(plain(), ROWS, Letters(), Samples(n=1), tmp_path / "p.jsonl")
    long = [*ROWS, Row(({"role": "user", "content": "word " * 600},), None, 9)]
    with pytest.raises(DataError, match="prompt of line 9 cannot be answered"):
        make_pairs(plain(), long, Letters(), SAMPLING, tmp_path / "q.jsonl")
    assert list(tmp_path.glob("*.jsonl")) == []


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b", "c "]), st.sampled_from([None, 0.0, 1.0, 2.0])), min_size=1))
def test_a_pair_is_two_texts_that_differ_in_score(samples: list[tuple[str, float | None]]) -> None:
    made = _pairs(ROWS[:1], {0: [Judged(text, [1], True, score) for text, score in samples]}, 1.0, 1)
    usable = {(score, text) for text, score in samples if score is not None and text}
    scores = [score for score, _ in usable]
    if made.pairs:
        (pair,) = made.pairs
        assert (pair["reward_chosen"], pair["chosen"]) in usable and pair["reward_chosen"] == max(scores)
        assert (pair["reward_rejected"], pair["rejected"]) in usable and pair["reward_rejected"] == min(scores)
        assert pair["chosen"] != pair["rejected"] and pair["reward_chosen"] > pair["reward_rejected"]
    else:
        assert made.undecided == [2]
        assert len(set(scores)) < 2 or len({text for _, text in usable}) < 2 or made.undecided


def test_of_equal_scores_the_first_sample_is_taken() -> None:
    """An order of the texts themselves would be learned as a preference."""
    done = {0: [Judged(text, [1], True, score) for text, score in (("b", 1.0), ("z", 1.0), ("y", 0.0), ("a", 0.0))]}
    (pair,) = _pairs(ROWS[:1], done, 1.0, 4).pairs
    assert (pair["chosen"], pair["rejected"]) == ("b", "y")
