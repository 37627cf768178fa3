"""What a comparison may be for beside right answers: preferences, rewards, and what a judge likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.comparison import CompareSettings, Comparison, compare, read_comparison
from tunescope.comparison.aim import Limits, aim_of
from tunescope.data.pairs import Pair
from tunescope.data.rankings import Ranking
from tunescope.errors import SettingError, TunescopeError
from tunescope.evaluation import Probes
from tunescope.evaluation.preference_accuracy import evaluate_preferences
from tunescope.methods.registry import METHODS
from tunescope.objectives import DPO, GRPO, SFT, Objective, Reward

PAIRS = [
    Pair(
        ({"role": "user", "content": f"the {('sun', 'rain')[i % 2]} number {i}"},),
        ("warm and good", "wet and good")[i % 2],
        ("cold", "dry")[i % 2],
        i + 1,
    )
    for i in range(80)
]
PROBES = Probes(["A text that is general. " * 8], {}, True)


@pytest.fixture(autouse=True)
def _own_cache(empty_cache: Path) -> None:
    """References are kept for the test alone."""


def run(out: Path, objective: Objective | None = None, rows: Any = PAIRS, **changes: Any) -> Comparison:
    settings = {"budget_tokens": 9000, "generate_rows": 2, "epochs": 2.0, "max_new_tokens": 6} | changes
    torch.set_num_threads(1)
    return compare(
        tiny_base(), rows, objective=objective or DPO(), out=out, settings=CompareSettings(**settings), probes=PROBES
    )


def test_methods_are_compared_by_the_pairs_they_tell_right(tmp_path: Path) -> None:
    found = run(tmp_path / "run", methods=("zero-shot", "few-shot", "lora"), budget_tokens=18_000)
    assert (found.metric, found.data.task, found.data.objective) == ("preference_accuracy", "preferences", "dpo")
    assert found.row("zero-shot").score == 0.5, "the base prefers neither of two"
    lora = found.row("lora")
    assert lora.score == 1.0 and lora.candidates == 3 and lora.forgetting_on is not None and lora.kl_task is not None
    assert found.row("few-shot").extra_prompt_tokens and not lora.answers and not lora.confusion
    entry = tmp_path / "run" / "bank" / "lora"
    assert bank.read_record(entry).objective == "dpo"
    held_out = [pair for pair in PAIRS if pair.best.prompt in {row.prompt for row in found.tested}]
    assert evaluate_preferences(bank.load(entry, tiny_base()), DPO(), held_out)["score"] == lora.score
    assert [row.expected for row in found.tested] == [pair.chosen for pair in held_out]
    assert read_comparison(tmp_path / "run") == found
    assert "preference accuracy" in (tmp_path / "run" / "report.html").read_text()


def test_reward_models_are_compared_and_prompts_left_out(tmp_path: Path) -> None:
    rankings = [Ranking(p.messages, (p.chosen, p.rejected, "no"), (1, 2, 2), p.number) for p in PAIRS]
    found = run(tmp_path / "run", Reward(), rankings, methods=("ia3", "lora"))
    lora = found.row("lora")
    assert (lora.score, lora.ttft_ms, lora.forgetting_on) == (1.0, None, None)
    assert bank.load(tmp_path / "run" / "bank" / "lora", tiny_base()).customization.heads
    limits = Limits(None, 6, 2, 2)
    kinds = [METHODS.load(name) for name in METHODS.names()]
    taken = [kind.name for kind in kinds if aim_of(Reward(), rankings, limits, None, 0).takes(kind)]
    assert taken == [kind.name for kind in kinds if kind.trains != "nothing"]
    with pytest.raises(SettingError, match="zero-shot trains nothing, so there is no reward model of it"):
        run(tmp_path / "other", Reward(), methods=("lora", "zero-shot"))


@pytest.mark.parametrize("objective", [DPO(), SFT()], ids=lambda objective: objective.name)
def test_a_judge_reads_what_is_written(tmp_path: Path, objective: Objective) -> None:
    rows = [pair.best for pair in PAIRS] if isinstance(objective, SFT) else PAIRS
    found = run(tmp_path / "run", objective, rows, methods=("zero-shot", "lora"), judge=("words:3",))
    assert (found.metric, found.data.task, found.data.judge) == ("judge", "judged", "words:3")
    base, lora = found.row("zero-shot"), found.row("lora")
    assert base.kl == pytest.approx(0.0, abs=1e-6) and lora.kl is not None and lora.kl != base.kl
    assert list(lora.answers) == lora.row_keys and lora.score is not None and lora.score_low is not None
    assert len(lora.row_keys) == 2, "as many prompts are answered as --generate-rows allows"
    again = run(tmp_path / "again", objective, rows, methods=("zero-shot", "lora"), judge=("words:3",))
    assert [row.per_row for row in again.rows] == [row.per_row for row in found.rows], "the seed draws the samples"


def test_what_is_compared_for_is_kept(tmp_path: Path) -> None:
    """More budget goes on; another objective or judge is another comparison."""
    first = run(tmp_path / "run", methods=("lora",))
    more = run(tmp_path / "run", methods=("lora",), budget_tokens=30_000)
    assert (more.row("lora").candidates or 0) > (first.row("lora").candidates or 0)
    for objective, changes in ((DPO(beta=0.5), {}), (Reward(), {}), (DPO(), {"judge": ("words:3",)})):
        with pytest.raises(TunescopeError, match=r"another (objective|judge)"):
            run(tmp_path / "run", objective, methods=("lora",), **changes)
    run(tmp_path / "judged", methods=("zero-shot",), judge=("words:3",))
    with pytest.raises(TunescopeError, match="another judge"):
        run(tmp_path / "judged", methods=("zero-shot",))


@pytest.mark.parametrize(
    ("objective", "changes", "says"),
    [
        (GRPO(reward=("words:3",)), {}, "grpo is not compared yet: take sft, dpo or reward"),
        (SFT(steer_columns=("length",)), {}, "not compared for steering yet"),
        (Reward(), {"judge": ("words:3",)}, "a reward model writes nothing"),
        (DPO(), {"judge": ("nobody",)}, "nobody"),
    ],
)
def test_what_cannot_be_compared(tmp_path: Path, objective: Objective, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TunescopeError, match=says):
        run(tmp_path / "run", objective, **changes)
    assert not (tmp_path / "run").exists()
