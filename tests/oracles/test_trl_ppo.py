"""A round of PPO against TRL's trainer: the same samples and scores give the same losses and the same gradients.

TRL had PPO up to 1.12, so these tests run where that is installed (``pip install trl==1.12.0``) and are skipped
elsewhere. Of TRL everything runs but the sampling and the reward model: log-probabilities, values, rewards, advantages,
whitening, both losses. The two agree on samples without a stop token. Behind one TRL gives the score a token late, at
the padding, and counts that position in the critic's loss.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.oracles.twins import CLOSE, COMMON, PROMPTS, SAMPLES, as_peft, mean_loss, move, round_of, start
from tests.tiny import tiny_config

from tunescope.methods import Customized, LoRA
from tunescope.objectives import PPO, Critic, Rollout
from tunescope.objectives.advantages import whiten
from tunescope.objectives.ppo import VALUE

peft = pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")
ppo_trainer = pytest.importorskip("trl.experimental.ppo.ppo_trainer", reason="PPO is in TRL up to 1.12")

LENGTH, VALUES = 6, 0.1
METHOD = LoRA(rank=4, alpha=8, targets=("q", "v"))
Gradients = dict[str, torch.Tensor]


def test_whitening() -> None:
    generator = torch.Generator().manual_seed(0)
    values, mask = torch.randn(4, 7, generator=generator), torch.rand(4, 7, generator=generator) < 0.6
    theirs = ppo_trainer.masked_whiten(values, mask)
    torch.testing.assert_close(whiten(values, mask), theirs.masked_fill(~mask, 0.0))


def inside(model: Any, customized: Customized, folder: Path) -> Any:
    """``model`` with the LoRA of a customization put into its layers."""
    config, tensors = as_peft(customized, folder)
    peft.inject_adapter_in_model(config, model)
    load(model, tensors)
    return model


def load(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    """Give a model with a LoRA other tensors, named as PEFT's files name them."""
    names = {n: n.removeprefix("base_model.model.").replace(".weight", ".default.weight") for n in tensors}
    assert not model.load_state_dict({names[n]: tensor for n, tensor in tensors.items()}, strict=False).unexpected_keys


def gradients_of(customized: Customized, part: str) -> Gradients:
    """By the names of TRL's parameters."""
    found: Gradients = {}
    for key, effect in customized.customization.effects.items():
        if effect.where == "head":
            found[f"{part}.score.weight"] = effect.weight.grad[None]
            continue
        path = customized.base.sites[key.rpartition(".")[0]].path
        found |= {f"{part}.{path}.lora_A.default.weight": effect.A.grad}
        found |= {f"{part}.{path}.lora_B.default.weight": effect.B.grad}
    return found


def classifier(customized: Customized) -> Any:
    """A transformers model with the base's layers and one output."""
    from transformers import LlamaForSequenceClassification

    settings = tiny_config()
    settings.num_labels = 1
    model = LlamaForSequenceClassification(settings)
    model.model.load_state_dict(customized.origin.model.model.state_dict())
    return model


def critic_of() -> Customized:
    """A critic whose head has no bias, which TRL's has not either."""
    critic = start(METHOD, Critic())
    without_bias(critic)
    return critic


def without_bias(critic: Customized) -> None:
    head: Any = critic.customization.heads[VALUE]
    with torch.no_grad():
        head.bias.zero_()


def trainer_of(policy: Any, values: Any, rollouts: list[Rollout], customized: Customized, folder: Path) -> Any:
    """TRL's trainer of two steps on all samples, at a rate of zero."""
    count = len(PROMPTS) * SAMPLES
    tokenizer = copy.copy(customized.base.tokenizer)
    tokenizer.padding_side = "left"
    data = datasets.Dataset.from_dict({"input_ids": [list(each.prompt) for each in rollouts for _ in range(SAMPLES)]})
    return ppo_trainer.PPOTrainer(
        args=ppo_trainer.PPOConfig(
            output_dir=str(folder), total_episodes=count, per_device_train_batch_size=count, num_mini_batches=1,
            num_ppo_epochs=2, response_length=LENGTH, temperature=1.0, stop_token="eos", missing_eos_penalty=1.0,
            kl_coef=0.3, vf_coef=VALUES, learning_rate=0.0, local_rollout_forward_batch_size=count,
            num_sample_generations=0, gradient_checkpointing=False, save_strategy="no", **COMMON,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(customized.origin.model),
        reward_model=classifier(customized),
        value_model=values,
        train_dataset=data,
        eval_dataset=data,
    )  # fmt: skip


def hand_over(trainer: Any, rollouts: list[Rollout], scores: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TRL take these samples for its own, and these scores for its reward model's."""
    left = {tuple(each.prompt): list(each.completions) for each in rollouts}
    completions = [ids for each in rollouts for ids in each.completions]
    worth = {tuple(ids): score for ids, score in zip(completions, scores, strict=True)}
    get_reward = ppo_trainer.get_reward

    def generate(model: Any, queries: torch.Tensor, _: int, pad: int, __: Any) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = [left[tuple(int(token) for token in query if token != pad)].pop() for query in queries]
        whole = torch.cat([queries, torch.tensor(drawn)], dim=1)
        return whole, ppo_trainer.forward(model, whole, pad).logits[:, queries.shape[1] - 1 : -1].clone()

    def reward(model: Any, texts: torch.Tensor, pad: int, context: int) -> Any:
        if model is not trainer.reward_model:
            return get_reward(model, texts, pad, context)
        return None, torch.stack([worth[tuple(ids.tolist())] for ids in texts[:, context:]]), None

    monkeypatch.setattr(ppo_trainer, "batch_generation", torch.no_grad()(generate))
    monkeypatch.setattr(ppo_trainer, "get_reward", reward)


def test_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start of a round, and after policy and critic moved, where both are clipped."""
    objective = PPO(reward="sentiment", n=SAMPLES, beta=0.3, max_new_tokens=LENGTH)
    customized, critic = start(METHOD, objective), critic_of()
    move(customized, 7)  # the critic began at the same tensors
    rollouts, scores = round_of(objective, customized, [LENGTH] * SAMPLES, critic)
    policy = inside(copy.deepcopy(customized.origin.model), customized, tmp_path / "policy")
    values = inside(classifier(customized), critic, tmp_path / "critic")
    with torch.no_grad():
        values.score.weight.copy_(critic.customization.heads[VALUE].weight[None])
    values.score.requires_grad_(True)
    trainer = trainer_of(policy, values, rollouts, customized, tmp_path)
    hand_over(trainer, rollouts, scores, monkeypatch)
    steps: list[float] = []

    def backward(loss: torch.Tensor) -> None:
        """Compare with ours, and then move policy and critic on both sides alike."""
        loss.backward()
        named = trainer.model.named_parameters()
        theirs = {name: p.grad.clone() for name, p in named if p.grad is not None}
        ours = mean_loss(objective, customized, rollouts) + VALUES * mean_loss(Critic(), critic, rollouts)
        assert ours == pytest.approx(loss.item(), abs=1e-5)
        for name, gradient in gradients_of(customized, "policy").items():
            torch.testing.assert_close(gradient, theirs.pop(name), **CLOSE)
        for name, gradient in gradients_of(critic, "value_model").items():
            torch.testing.assert_close(VALUES * gradient, theirs.pop(name), **CLOSE)
        assert not theirs
        steps.append(loss.item())
        for seed, (made, model) in enumerate(((customized, policy), (critic, values))):
            move(made, seed)
            load(model, as_peft(made, tmp_path / f"{len(steps)} {seed}")[1])
        without_bias(critic)
        with torch.no_grad():
            values.score.weight.copy_(critic.customization.heads[VALUE].weight[None])

    trainer.accelerator.backward = backward
    logged: dict[str, float] = {}
    monkeypatch.setattr(trainer, "log", logged.update)
    trainer.train()
    assert len(steps) == 2 and steps[0] != steps[1]
    assert logged["policy/clipfrac_avg"] > 0 and logged["val/clipfrac_avg"] > 0
