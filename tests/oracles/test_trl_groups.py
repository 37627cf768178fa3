"""RLOO and GRPO against TRL's trainers: the same samples and scores give the same losses and the same gradients.

Of TRL everything runs but the sampling: it computes log-probabilities under policy and reference, advantages and loss.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.oracles.twins import COMMON, PROMPTS, SAMPLES, as_peft, mean_loss, move, round_of, same_gradients, start

from tunescope.methods import Customized, LoRA
from tunescope.objectives import GRPO, RLOO, PolicyObjective, Rollout

trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")

LONGEST = 8
OURS: dict[str, Any] = {
    "reward": "tests.training.judges_of_tests:early", "n": SAMPLES, "beta": 0.3, "missing_stop": "keep",
    "max_new_tokens": LONGEST,
}  # fmt: skip
# TRL's default weighs the KL term by the ratio, which makes its gradient another one than the GRPO paper's.
GRPO_AS_PUBLISHED: dict[str, Any] = {"use_bias_correction_kl": False}
# Ours, and TRL's arguments.
KINDS: dict[str, tuple[PolicyObjective, dict[str, Any]]] = {
    "rloo": (RLOO(**OURS), {}),
    "grpo": (GRPO(**OURS), {"loss_type": "grpo", "scale_rewards": "group", **GRPO_AS_PUBLISHED}),
    "dr_grpo": (
        GRPO(**OURS, divide="nothing", normalize="longest"),
        {"loss_type": "dr_grpo", "scale_rewards": "none", **GRPO_AS_PUBLISHED},
    ),
}


def trainer_of(
    kind: str, customized: Customized, config: Any, rollouts: list[Rollout], scores: torch.Tensor, folder: Path
) -> Any:
    """TRL's trainer, which is handed the samples and the scores."""
    count = len(PROMPTS) * SAMPLES
    trainer_class, config_class = (
        (trl.RLOOTrainer, trl.RLOOConfig) if kind == "rloo" else (trl.GRPOTrainer, trl.GRPOConfig)
    )

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return scores.tolist()

    settings = config_class(
        output_dir=str(folder), per_device_train_batch_size=count, num_generations=SAMPLES, num_iterations=2,
        max_completion_length=LONGEST, beta=0.3, epsilon=0.2, temperature=1.0, gradient_checkpointing=False,
        **KINDS[kind][1], **COMMON,
    )  # fmt: skip
    trainer = trainer_class(
        model=copy.deepcopy(customized.origin.model),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in PROMPTS]),
        processing_class=copy.copy(customized.base.tokenizer),
        peft_config=config,
    )
    prompts = [list(each.prompt) for each in rollouts for _ in each.completions]
    completions = [list(ids) for each in rollouts for ids in each.completions]
    texts = ["" for _ in completions]
    found: Any = (prompts, completions, None, texts, None, {}, None, [])
    if kind == "rloo":
        found = (prompts, completions, texts)
    trainer._generate = lambda _: found
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_groups(kind: str, tmp_path: Path) -> None:
    """At the start of a round, and after the policy moved, where ratios are clipped."""
    objective = KINDS[kind][0]
    customized = start(LoRA(rank=4, alpha=8, targets=("q", "v")), objective)
    rollouts, scores = round_of(objective, customized, (3, LONGEST, 5))
    config, tensors = as_peft(customized, tmp_path / "adapter")
    trainer = trainer_of(kind, customized, config, rollouts, scores, tmp_path)
    trainer.model.train()
    peft.set_peft_model_state_dict(trainer.model, tensors)
    batch = trainer._generate_and_score_completions([{"prompt": text} for text in PROMPTS for _ in range(SAMPLES)])
    ours = torch.tensor([own[0] for each in rollouts for own in each.advantages])
    torch.testing.assert_close(ours, batch["advantages"], atol=1e-4, rtol=1e-3)
    clipped = set()
    for seed in (0, 1, 2):
        if seed:
            move(customized, seed)
            peft.set_peft_model_state_dict(trainer.model, as_peft(customized, tmp_path / f"adapter{seed}")[1])
            trainer.model.zero_grad()
        expected = trainer.compute_loss(trainer.model, batch)
        expected.backward()
        assert mean_loss(objective, customized, rollouts) == pytest.approx(expected.item(), abs=1e-4)
        same_gradients(customized, trainer.model)
        clipped.add(trainer._metrics["train"]["clip_ratio/region_mean"][-1])
    assert min(clipped) == 0 and max(clipped) > 0
