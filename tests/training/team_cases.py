"""What a team of processes trains in the tests, and what each process of it does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.objectives.pairs import PAIRS, RATED
from tests.tiny import tiny_base

from tunescope import team
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.evaluation import evaluate_preferences
from tunescope.methods import IA3, Adapter, Full, LoRA, Method, PromptTuning, PTuning, compose, customize
from tunescope.objectives import DPO, GRPO, PPO, SFT, Attributes, Objective, Reward
from tunescope.training import Trained, TrainSettings, train, train_tasks
from tunescope.training.metrics import StepMetrics

METHODS: dict[str, Method] = {
    "prompt-tuning": PromptTuning(virtual_tokens=4), "p-tuning": PTuning(virtual_tokens=4), "ia3": IA3(),
    "adapter": Adapter(bottleneck=4), "lora": LoRA(rank=2), "full": Full(),
    "prompt-tuning+lora": compose(PromptTuning(virtual_tokens=3), LoRA(rank=2)),
}  # fmt: skip
REWARD = "tests.training.judges_of_tests:early"
# Rows of very different length; 11 of them, so that batches of four leave an odd last one.
ROWS = [
    Row(({"role": "user", "content": f"word {i} " + "x" * (5 * (i % 4))},), ("yes", "no!!")[i % 2], i + 1)
    for i in range(11)
]
PROMPTS = [{"prompt": f"say {'x' * i}"} for i in range(4)]


def trained(method: Method, objective: Objective, data: Any, **settings: Any) -> dict[str, Any]:
    """What a run ends with, as JSON values: losses, what was measured, counts, validation, tensors."""
    seen: list[StepMetrics] = []
    chosen = {"max_steps": 6, "batch_size": 4, "lr": 1e-2, **settings}
    validation = ROWS if chosen.pop("validates", False) else None
    run = train(
        tiny_base(), method, objective, data, settings=TrainSettings(**chosen), validation=validation,
        on_step=seen.append,
    )  # fmt: skip
    seen[0].measured.pop("rewards/accuracy", None)  # at the start both are the reference's: chance
    return outcome(run) | {"measured": [metrics.measured for metrics in seen], "norms": [m.grad_norm for m in seen]}


def outcome(run: Trained) -> dict[str, Any]:
    result = run.result
    tensors = run.customized.customization.tensors()
    if run.customized.moves_base:
        tensors |= dict(run.customized.base.model.named_parameters())
    return {
        "losses": result.losses,
        "rows": [result.rows, result.units, result.tokens],
        "validation": result.validation,
        "tensors": {name: tensor.detach().flatten().tolist() for name, tensor in tensors.items()},
    }


def tasks(method: Method) -> dict[str, Any]:
    """Two tasks at once."""
    data = {"first": ROWS, "second": [Row(row.messages, "left", row.number) for row in ROWS[:7]]}
    runs = train_tasks(tiny_base(), method, data, settings=TrainSettings(max_steps=4, batch_size=4))
    return {name: outcome(run) for name, run in runs.items()}


def policy(kind: type[PPO | GRPO], **changes: Any) -> dict[str, Any]:
    """Two rounds."""
    values = {"reward": REWARD, "rounds": 2, "prompts": 4, "n": 3, "max_new_tokens": 4, "missing_stop": "keep"}
    if kind is PPO:
        values["critic_warmup"] = 0
    found = trained(LoRA(rank=4), kind(**(values | changes)), PROMPTS, lr=1e-3, batch_size=3, max_steps=None, epochs=2)
    for each in found["measured"]:
        each.pop("engine_gap")  # the size of a rounding error
        if kind is GRPO:  # whose parts count by samples, so that a mean over tokens is one of their means
            each.pop("moved")
    return found


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"{name} sft": (lambda method=method: trained(method, SFT(), ROWS)) for name, method in METHODS.items()},
    **{f"{name} dpo": (lambda method=method: trained(method, DPO(), PAIRS)) for name, method in METHODS.items()},
    "attributes": lambda: trained(LoRA(rank=2), Attributes(columns=("mood", "length")), RATED),
    "reward": lambda: trained(IA3(), Reward(), PAIRS),
    "in parts": lambda: trained(LoRA(rank=2), SFT(), ROWS, accumulate=2),
    "one row a step": lambda: trained(LoRA(rank=2), SFT(), ROWS, batch_size=1),
    "clipped": lambda: trained(LoRA(rank=2), SFT(), ROWS, max_grad_norm=0.01),
    "decayed": lambda: trained(Full(), SFT(), ROWS, weight_decay=0.1),
    "recomputed": lambda: trained(LoRA(rank=2), SFT(), ROWS, recompute=True),
    "validated": lambda: trained(LoRA(rank=2), SFT(), ROWS, validates=True, validate_every=2),
    "tasks apart": lambda: tasks(LoRA(rank=2)),
    "tasks shared": lambda: tasks(PTuning(virtual_tokens=3)),
    "ppo": lambda: policy(PPO),
    "ppo that rests": lambda: policy(PPO, stop_kl=1e-6),
    "grpo": lambda: policy(GRPO),
}  # fmt: skip


def member(index: int, size: int, port: int, names: list[str], folder: Path, dropped: bool = False) -> None:
    """Process ``index + 1``: do the cases, and write down what each ended with; ``dropped``: its gradients are lost."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=index, world_size=size)
    if dropped and index == size - 1:
        lose_gradients()
    found: Mapping[str, Any] = {name: CASES[name]() for name in names}
    (folder / f"{index}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
    sys.stdout.flush()


def lose_gradients() -> None:
    """From now on this process adds nothing."""
    add = team.Team.add_gradients

    def nothing(self: team.Team, parameters: Any) -> None:
        own = list(parameters)
        for parameter in own:
            if parameter.grad is not None:
                parameter.grad.zero_()
        add(self, own)

    team.Team.add_gradients = nothing  # type: ignore[method-assign]


def measuring(index: int, port: int, folder: Path) -> None:
    """The first of two processes measures preferences, whose references training would share."""
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=False)
    dist.init_process_group("gloo", store=store, rank=index, world_size=2)
    if index == 0:
        base = tiny_base()
        evaluate_preferences(customize(base, LoRA(rank=2), default_template(base.tokenizer)), DPO(), PAIRS)
        (folder / "done").touch()
    dist.destroy_process_group()
