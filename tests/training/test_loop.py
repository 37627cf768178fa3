"""The training loop: what it computes, how it resumes, how it fails."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.objectives.pairs import PAIRS
from tests.tiny import tiny_base, tiny_model, tiny_tokenizer
from torch import nn

from tunescope.base import Base
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import Interrupted, TrainingError, TunescopeError
from tunescope.methods import IA3, Full, LoRA, Method, PromptTuning, ZeroShot
from tunescope.objectives import DPO, SFT, Objective
from tunescope.training import StepMetrics, TrainSettings, checkpoint, train
from tunescope.training.optimizer import learning_rate_factor
from tunescope.training.unfinished import work_folder

ROWS = [
    Row(({"role": "user", "content": f"word {i} " + "x" * (i % 7)},), ("yes", "no")[i % 2], i + 1) for i in range(24)
]
METHODS: list[Method] = [LoRA(rank=2, dropout=0.1), Full()]


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{"max_steps": 9, "batch_size": 4, "lr": 1e-2, "seed": 3, **changes})


def losses_of(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_loss_falls_and_the_base_stays(method: Method) -> None:
    base = tiny_base()
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    result = train(base, method, data=ROWS, settings=settings(max_steps=30)).result
    assert sum(result.losses[-5:]) < 0.7 * sum(result.losses[:5])
    assert all(torch.equal(p, before[name]) for name, p in base.model.named_parameters())
    assert not any(p.requires_grad for p in base.model.parameters())


def test_first_loss_is_the_mean_over_trained_tokens() -> None:
    base = tiny_base()
    first = train(base, LoRA(), data=ROWS, settings=settings(max_steps=1, batch_size=len(ROWS))).result.losses[0]
    encoder = Encoder(base.tokenizer, default_template(base.tokenizer), base.context_length)
    total = count = 0.0
    for row in ROWS:  # the slow obvious version: one row at a time, all logits
        example = encoder.encode(row)
        assert example is not None
        ids = torch.tensor([example.prompt + example.completion])
        logprobs = base.model(ids).logits.log_softmax(-1)
        for place in range(len(example.prompt), ids.shape[1]):
            total -= logprobs[0, place - 1, ids[0, place]].item()
            count += 1
    assert first == pytest.approx(total / count, abs=1e-5)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_same_run_however_the_batch_is_cut(method: Method) -> None:
    method = method.model_copy(update={"dropout": 0.0}) if isinstance(method, LoRA) else method
    whole = train(tiny_base(), method, data=ROWS, settings=settings(batch_size=6)).result
    parts = train(tiny_base(), method, data=ROWS, settings=settings(batch_size=6, accumulate=4)).result
    assert parts.losses == pytest.approx(whole.losses, abs=2e-4)


def test_same_seed_same_run_other_seed_other_run() -> None:
    runs = [train(tiny_base(), LoRA(), data=ROWS, settings=settings(seed=s)).result.losses for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("place", ["before the checkpoint", "after the checkpoint"])
def test_no_line_of_the_metrics_is_lost_or_doubled_at_a_kill(place: str, tmp_path: Path) -> None:
    """A child is killed on either side of the checkpoint of step 4, its last line perhaps half-written."""
    common = {"data": ROWS, "settings": settings(checkpoint_every=4)}
    if (child := os.fork()) == 0:
        save = checkpoint.write_tensors

        def killed(*given: Any) -> None:
            if place == "after the checkpoint":
                save(*given)
            os.kill(os.getpid(), signal.SIGKILL)

        torch.set_num_threads(1)
        checkpoint.write_tensors = killed
        train(tiny_base(), LoRA(), out=tmp_path / "a", **common)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    folder = work_folder(tmp_path / "a")
    before = (folder / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in before.splitlines()] == [1, 2, 3, 4]
    assert (folder / "checkpoint.safetensors").exists() == (place == "after the checkpoint")
    (folder / "metrics.jsonl").write_text(before + '{"step": 5, "lo')
    train(tiny_base(), LoRA(), out=tmp_path / "a", **common)
    after = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in after.splitlines()] == list(range(1, 10))
    assert after.startswith(before) or place == "before the checkpoint"  # which took the four steps again


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize(("killed_after", "dtype"), [(1, torch.float32), (4, torch.bfloat16), (8, torch.float32)])
def test_killed_run_ends_with_the_same_losses(
    method: Method, killed_after: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    """SIGKILL leaves no time for anything: the child is killed inside a step and the run is called again."""
    common = {"data": ROWS, "settings": settings(checkpoint_every=2)}
    train(tiny_base(dtype=dtype), method, out=tmp_path / "whole", **common)
    child = os.fork()
    if child == 0:

        def kill(metrics: StepMetrics) -> None:
            if metrics.step == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.set_num_threads(1)
        train(tiny_base(dtype=dtype), method, out=tmp_path / "killed", on_step=kill, **common)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    trained = train(tiny_base(dtype=dtype), method, out=tmp_path / "killed", **common)
    assert trained.result.steps == 9
    assert losses_of(tmp_path / "killed") == losses_of(tmp_path / "whole") == trained.result.losses
    assert not work_folder(tmp_path / "killed").exists()


def test_bfloat16_weights_take_steps_smaller_than_their_digits() -> None:
    """Without float32 masters a step of 1e-5 would round to nothing."""
    base = tiny_base(dtype=torch.bfloat16)
    run = {"data": ROWS, "settings": settings(lr=1e-5, max_steps=60, warmup=0.0)}
    moved = train(base, Full(), **run).customized.base.model
    weights = [(a, b) for a, b in zip(moved.parameters(), base.model.parameters(), strict=True) if a.ndim == 2]
    assert all(a.dtype == torch.bfloat16 for a, _ in weights)
    share = sum((a != b).float().mean().item() for a, b in weights) / len(weights)
    assert share > 0.02


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    def interrupt(metrics: StepMetrics) -> None:
        if metrics.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"after step 5 of 9.*same command"):
        train(tiny_base(), LoRA(), data=ROWS, settings=settings(), out=tmp_path / "a", on_step=interrupt)
    seen: list[int] = []
    train(
        tiny_base(), LoRA(), data=ROWS, settings=settings(), out=tmp_path / "a", on_step=lambda m: seen.append(m.step)
    )
    assert seen == [6, 7, 8, 9]


def test_unfinished_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_base(), LoRA(), data=ROWS, settings=settings(checkpoint_every=1), out=tmp_path / "a", on_step=stop)
    with pytest.raises(TrainingError, match=r"rank.*--restart"):
        train(tiny_base(), LoRA(rank=4), data=ROWS, settings=settings(), out=tmp_path / "a")
    trained = train(tiny_base(), LoRA(rank=4), data=ROWS, settings=settings(), out=tmp_path / "a", restart=True)
    assert trained.result.steps == 9


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "cut": ("checkpoint.safetensors", lambda content: content[:-7]),
    "a bit of a tensor": ("checkpoint.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    "a letter of the state": ("checkpoint.safetensors", lambda content: content.replace(b"losses", b"lossez")),
    "empty": ("checkpoint.safetensors", lambda content: b""),
    "recipe cut": ("recipe.json", lambda content: content[:40]),
    "recipe of another kind": ("recipe.json", lambda content: b"[1]"),
    "recipe not text": ("recipe.json", lambda content: b"\xff\xfe"),
    "recipe missing": ("recipe.json", None),
    "metrics missing": ("metrics.jsonl", None),
    "a line missing": ("metrics.jsonl", lambda content: content.partition(b"\n")[2]),
    "a line damaged": ("metrics.jsonl", lambda content: content.replace(b"step", b"stop", 1)),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_state_is_named_with_the_remedy(what: str, tmp_path: Path) -> None:
    def stop(metrics: StepMetrics) -> None:
        if metrics.step == 2:
            raise KeyboardInterrupt

    run = {"data": ROWS, "settings": settings(checkpoint_every=2, max_steps=3), "out": tmp_path / "a"}
    with pytest.raises(KeyboardInterrupt):
        train(tiny_base(), LoRA(), on_step=stop, **run)
    name, damage = DAMAGE[what]
    file = work_folder(tmp_path / "a") / name
    file.write_bytes(damage(file.read_bytes())) if damage else file.unlink()
    with pytest.raises(TunescopeError, match=rf"{name}.*damaged.*--restart"):
        train(tiny_base(), LoRA(), **run)
    assert train(tiny_base(), LoRA(), restart=True, **run).result.steps == 3


def test_loss_that_is_not_finite_names_step_and_rows(tmp_path: Path) -> None:
    model = tiny_model("mistral")  # its head is not tied to its embedding, so other rows stay finite
    base = Base(model, tiny_tokenizer())
    poisoned = base.tokenizer("~", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = math.nan
    rows = [*ROWS[:7], Row(({"role": "user", "content": "a ~ b"},), "yes", 77)]
    with pytest.raises(TrainingError, match=r"loss is not finite at step 1\b.*by line: 77\.") as caught:
        train(base, LoRA(targets=("q",)), data=rows, settings=settings(batch_size=8), out=tmp_path / "a")
    assert "--lr" in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_prompting_trains_nothing() -> None:
    trained = train(tiny_base(), ZeroShot(), data=ROWS)
    assert trained.result.steps == 0
    assert trained.customized.trainable_parameters == 0


def test_head_computes_trained_positions_only() -> None:
    base, seen = tiny_base(), []
    head = base.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _m, _args, logits: seen.append(logits.shape[:-1].numel()))
    try:
        train(base, LoRA(), data=ROWS, settings=settings(max_steps=1, batch_size=len(ROWS)))
    finally:
        handle.remove()
    trained = sum(len(row.completion or "") + 1 for row in ROWS)  # one token a byte, and the stop token
    assert seen == [trained]


@pytest.mark.parametrize("total", [1, 2, 10, 101])
def test_learning_rate_rises_then_falls_to_zero(total: int) -> None:
    factors = [learning_rate_factor(step, total, 0.1) for step in range(total)]
    assert max(factors) == 1.0
    assert all(factor > 0 for factor in factors)
    peak = factors.index(1.0)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_objective_cell_counts_tokens() -> None:
    result = train(tiny_base(), LoRA(), SFT(), ROWS, settings=settings(max_steps=6)).result
    assert result.rows == 24
    assert 0 <= result.padding < result.computed_tokens
    assert result.tokens > 0
    summary = result.summary()
    assert summary["pad_fraction"] == pytest.approx(result.padding / result.computed_tokens, abs=1e-4)


@pytest.mark.parametrize("objective", [SFT(), DPO()], ids=lambda o: o.name)
@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(virtual_tokens=3), IA3(), Full()], ids=lambda m: m.name)
def test_hooks_are_registered_once_a_run(method: Method, objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ROWS if objective.name == "sft" else PAIRS
    registered = [0]
    for name in ("register_forward_hook", "register_forward_pre_hook"):
        register = getattr(nn.Module, name)

        def counted(self: nn.Module, *given: object, register: Any = register, **options: object) -> Any:
            registered[0] += 1
            return register(self, *given, **options)

        monkeypatch.setattr(nn.Module, name, counted)
    counts = []
    for steps in (1, 4):
        registered[0] = 0
        train(tiny_base(), method, objective, data, settings=settings(max_steps=steps))
        counts.append(registered[0])
    assert counts[0] == counts[1]
