"""What people see of policy optimization: rounds' numbers, the page of samples, and warnings in words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_base
from tests.training.test_policy import REWARD, ROWS, objective, settings

from tunescope.cli.progress import TrainingProgress
from tunescope.errors import TrainingError
from tunescope.methods import Full, LoRA
from tunescope.objectives.seen import is_compared, warnings, with_error
from tunescope.training import TrainSettings, train
from tunescope.training.metrics import StepMetrics
from tunescope.training.samples_page import render_samples

LATE = "tests.training.judges_of_tests:late"
HOSTILE = "<script>alert(1)</script> & <b>bold</b>"
BROWSER = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)


def history(rounds: int = 6, **last: float) -> list[dict[str, float]]:
    """Rounds of which the second half differs from the first by ``last``."""
    plain = {"reward_std": 1.0, "kl": 1.0, "entropy": 2.0, "reward": 0.0, "held_out": 0.0, "length": 10.0,
             "stop_share": 0.9}  # fmt: skip
    plain |= {f"{name}_error": 0.1 for name in ("reward", "held_out", "length", "stop_share")}
    return [plain | (last if number >= rounds // 2 else {}) for number in range(rounds)]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ({}, []),
        ({"reward_std": 0.0}, ["all samples of round 4 the same score"]),
        ({"kl": 51.0}, ["more than 50 nats a sample from its reference in round 4"]),
        ({"entropy": 0.01}, ["hardly varies any more in round 4"]),
        ({"length": 16.0}, ["Lengths explode: samples have 16 tokens .* and had 10 in the first"]),
        ({"length": 14.0}, []),  # longer, but not half as long again
        ({"length": 16.0, "length_error": 6.0}, []),  # within its noise
        ({"length": 12.0, "stop_share": 0.0}, ["Lengths explode: 0% of the samples end before .* and 90% did"]),
        ({"reward": 1.0, "held_out": -1.0}, ["from 0 to 1, while the held-out judge falls, from 0 to -1"]),
        ({"reward": 1.0, "held_out": 1.0}, []),
        ({"reward": -1.0, "held_out": -1.0}, []),
        ({"reward": 1.0, "held_out": -0.15}, []),  # within its noise: sqrt(2 * 0.1^2 / 2) = 0.1
        ({"reward": 1.0, "held_out": -0.25}, ["held-out judge falls"]),
        ({"reward": 0.15, "held_out": -1.0}, []),
    ],
)
def test_warnings_are_said_when_they_hold_and_not_otherwise(last: dict[str, float], words: list[str]) -> None:
    found = warnings(history(**last), max_new_tokens=32)
    assert len(found) == len(words)
    for said, expected in zip(found, words, strict=True):
        assert re.search(expected, said)


def test_trends_need_rounds_and_errors() -> None:
    assert warnings([], 8) == []
    assert warnings(history(2, reward=9.0, held_out=-9.0), 8) == []
    unsure = [{n: v for n, v in seen.items() if n != "held_out_error"} for seen in history(reward=9.0, held_out=-9.0)]
    assert warnings(unsure, 8) == []
    without = [{n: v for n, v in seen.items() if "held_out" not in n} for seen in history(reward=9.0)]
    assert warnings(without, 8) == []


def test_errors_are_of_prompts() -> None:
    """Four prompts whose two samples agree: the error of four numbers, not of eight."""
    values = torch.tensor([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 6.0, 6.0])
    found = with_error("x", values, 2)
    assert found["x"] == 3.0
    assert found["x_error"] == pytest.approx(float(torch.tensor([1.0, 2.0, 3.0, 6.0]).std()) / 2)
    assert with_error("x", torch.tensor([1.0, 3.0]), 2)["x_error"] == pytest.approx(1.0)
    assert with_error("x", torch.tensor([1.0]), 1) == {"x": 1.0}


def test_the_reference_answers_in_few_rounds() -> None:
    for rounds in (1, 3, 10, 11, 25, 200):
        compared = [number for number in range(rounds) if is_compared(number, rounds)]
        assert compared[0] == 0 and compared[-1] == rounds - 1 and len(compared) <= 11


@pytest.mark.parametrize("kind", ["ppo", "rloo", "grpo"])
def test_samples_lie_beside_the_reference_s(kind: str, tmp_path: Path) -> None:
    """Before its first step the policy answers as its reference; after large steps it does not."""
    seen: list[StepMetrics] = []
    wanted = objective(kind, rounds=3, held_out_judge=LATE)
    train(
        tiny_base(), LoRA(rank=2), wanted, ROWS, settings=settings(lr=0.3, warmup=0), out=tmp_path / "b/x",
        on_step=seen.append,
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "b/x/samples.jsonl").read_text().splitlines()]
    told = ("completion", "reward", "tokens", "finished")
    alike = [all(line[name] == line["reference"][name] for name in told) for line in lines]
    assert len(lines) == 12 and all(alike[:4]) and not all(alike[8:])
    assert [line["reward"] for line in lines] == [float(line["completion"][:1] < "n") for line in lines]
    page = (tmp_path / "b/x/samples.html").read_text()
    assert page.count("<article>") == 12 and "3 of 3 rounds" in page and "Held-out judge" in page
    assert page.index("Round 3") < page.index("Round 1")
    assert ("Explained variance" in page) == (kind == "ppo")
    for metrics in seen:
        assert metrics.measured["held_out"] == pytest.approx(-metrics.measured["reward"])
        assert {"reward", "kl", "entropy", "length", "stop_share", "reward_error"} <= metrics.measured.keys()
    assert sum("clip_share" in metrics.measured for metrics in seen) >= 4


def test_a_reward_that_harms_the_held_out_judge_is_said() -> None:
    """The policy learns to begin with early letters, which the held-out judge dislikes; without one nothing is said."""
    how: dict[str, Any] = {"max_new_tokens": 1, "n": 32, "rounds": 12, "beta": 0.0}
    for judge, times in ((LATE, 1), (None, 0)):
        wanted = objective("rloo", **how, held_out_judge=judge)
        trained = train(tiny_base(), Full(), wanted, ROWS, settings=settings(lr=8e-3, batch_size=4))
        assert sum("while the held-out judge falls" in note for note in trained.notes) == times


def test_a_held_out_judge_that_fails_names_the_sample(tmp_path: Path) -> None:
    wanted = objective("rloo", held_out_judge="tests.training.judges_of_tests:broken")
    with pytest.raises(
        TrainingError, match=r"held-out judge .*broken failed on line 1, sample 1: the judge returned nan"
    ):
        train(tiny_base(), LoRA(rank=2), wanted, ROWS, settings=settings())


def hostile_page() -> str:
    """A page whose every text would be markup, were it not escaped."""
    wanted = objective("ppo", reward=HOSTILE)
    wanted.load_state({"beta": None, "moments": [0, 0, 0], "history": history(reward_std=0.0), "moved": 0.0,
                       "warming": False})  # fmt: skip
    told = {"completion": HOSTILE, "reward": 0.5, "tokens": 3, "finished": True}
    line = {"round": 0, "line": 1, "prompt": HOSTILE, **told, "kl": 0.1, "reference": told | {"reward": None}}
    return render_samples(wanted, "lora", HOSTILE, [line, line | {"round": 1}])


def test_hostile_texts_are_text() -> None:
    page = hostile_page()
    assert "<script" not in page and "<b>bold" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;") >= 6
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_hostile_texts(tmp_path: Path) -> None:
    page = tmp_path / "samples.html"
    page.write_text(hostile_page(), encoding="utf-8")
    ended = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "<script" not in ended.stdout and ended.stdout.count("<polyline") == 6 and "CONSOLE" not in ended.stderr


def test_the_page_is_there_while_training_goes_on(tmp_path: Path) -> None:
    pages: list[str] = []

    def look(metrics: StepMetrics) -> None:
        pages.append((tmp_path / "b/.training/x/samples.html").read_text())

    train(
        tiny_base(), LoRA(rank=2), objective("grpo", reward=REWARD), ROWS,
        settings=TrainSettings(lr=1e-3, batch_size=4, epochs=1), out=tmp_path / "b/x", on_step=look,
    )  # fmt: skip
    assert "1 of 2 rounds" in pages[0] and "2 of 2 rounds" in pages[1]


def test_the_terminal_shows_reward_and_kl() -> None:
    import io

    from rich.console import Console

    for terminal in (False, True):
        out = io.StringIO()
        with TrainingProgress(Console(file=out, force_terminal=terminal, width=160)) as progress:
            progress(StepMetrics(1, 2, 0.5, 1.0, 1e-3, 10, 1.0, 10.0, {"reward": 0.25, "kl": 3.5}))
            progress(StepMetrics(2, 2, 0.5, 1.0, 1e-3, 10, 1.0, 10.0, {"reward": 0.75, "kl": 4.5}))
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
        assert re.search(r"reward 0\.750,?\s+KL 4\.50 nats", plain), plain
    out = io.StringIO()
    with TrainingProgress(Console(file=out)) as progress:
        progress(StepMetrics(2, 2, 0.5, 1.0, 1e-3, 10, 1.0, 10.0))
    assert "KL" not in out.getvalue()
