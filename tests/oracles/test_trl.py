"""Our objectives against TRL's trainers: the same weights and tokens give the same losses and the same gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.objectives.pairs import encoded_pairs
from tests.oracles.twins import CLOSE, COMMON, as_peft, same_gradients, start
from tests.tiny import tiny_config

from tunescope.data.batching import collate_pairs
from tunescope.data.encoding import EncodedPair
from tunescope.methods import Customized, Full, LoRA, Method
from tunescope.objectives import DPO, PreferenceObjective, Reward, losses
from tunescope.objectives.forward import packed_hidden
from tunescope.objectives.preference import completion_logprobs
from tunescope.objectives.reference import with_reference
from tunescope.objectives.reward_model import HEAD

trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")

METHODS: dict[str, Method] = {"full": Full(), "lora": LoRA(rank=4, alpha=8, targets=("q", "v"))}
EITHER = pytest.mark.parametrize("name", METHODS)

# Ours -> TRL's arguments. TRL's ipo is normalized by length; its sft is over the batch's tokens.
DPO_LOSSES: dict[str, tuple[DPO, dict[str, Any]]] = {
    "sigmoid": (DPO(), {"loss_type": ["sigmoid"]}),
    "hinge": (DPO(loss="hinge", beta=0.02), {"loss_type": ["hinge"]}),
    "ipo": (DPO(loss="ipo", length_normalize=True), {"loss_type": ["ipo"]}),
    "robust": (DPO(loss="robust", label_smoothing=0.2), {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "sigmoid_norm": (DPO(length_normalize=True, beta=1.3), {"loss_type": ["sigmoid_norm"]}),
}
REWARDS: dict[str, tuple[Reward, dict[str, Any]]] = {
    "bradley-terry": (Reward(), {}),
    "margin": (Reward(loss="margin"), {}),
    "centered": (Reward(centering=0.3), {"center_rewards_coefficient": 0.3}),
}


@pytest.fixture(autouse=True)
def _own_cache(empty_cache: Path) -> None:
    """References are kept for the test alone."""


def loss_of(customized: Customized, objective: PreferenceObjective, examples: list[EncodedPair]) -> float:
    """Ours, with its gradients left in the parameters."""
    with customized.active():
        loss = objective.batch_loss(customized, collate_pairs(examples)).total / len(examples)
        loss.backward()
    return loss.item()


def rows() -> Any:
    return datasets.Dataset.from_list([{"prompt": "a b", "chosen": " c", "rejected": " d"}] * 4)


@EITHER
@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_dpo(name: str, loss: str, tmp_path: Path) -> None:
    objective, arguments = DPO_LOSSES[loss]
    customized = start(METHODS[name], objective)
    plain = encoded_pairs()
    examples = with_reference(customized.origin, plain)
    config, tensors, reference = None, {}, None
    model = copy.deepcopy(customized.base.model if customized.moves_base else customized.origin.model)
    model.requires_grad_(True)
    if customized.moves_base:
        reference = copy.deepcopy(customized.origin.model)
    else:
        config, tensors = as_peft(customized, tmp_path / "adapter")
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(output_dir=str(tmp_path), beta=objective.strength, **arguments, **COMMON),
        train_dataset=rows(),
        processing_class=customized.base.tokenizer,
        peft_config=config,
    )
    if tensors:
        peft.set_peft_model_state_dict(trainer.model, tensors)
    collator = trl.trainer.dpo_trainer.DataCollatorForPreference(pad_token_id=259)
    batch = collator([{"prompt_ids": e.prompt, "chosen_ids": e.chosen, "rejected_ids": e.rejected} for e in plain])
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    assert loss_of(customized, objective, examples) == pytest.approx(expected.item(), abs=1e-4)
    same_gradients(customized, trainer.model)
    logged = {
        key: values[-1] for key, values in trainer._metrics["train" if trainer.model.training else "eval"].items()
    }
    with torch.no_grad(), customized.active():
        base, packed = customized.base, collate_pairs(examples)
        found = completion_logprobs(base, packed, packed_hidden(base, packed.packed))
        chosen, rejected = found[packed.pairs].mean(dim=1).tolist()
    assert [chosen, rejected] == pytest.approx([logged["logps/chosen"], logged["logps/rejected"]], abs=1e-3)


def test_dpo_with_the_chosen_completions_likelihood(tmp_path: Path) -> None:
    """TRL averages this part over the batch's tokens, we over each pair's: one pair is the same to both."""
    objective = DPO(nll_weight=0.7)
    customized, plain = start(Full(), objective), encoded_pairs(1)
    trainer = trl.DPOTrainer(
        model=copy.deepcopy(customized.base.model),
        ref_model=copy.deepcopy(customized.origin.model),
        args=trl.DPOConfig(
            output_dir=str(tmp_path), beta=0.1, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.7], **COMMON
        ),
        train_dataset=rows(),
        processing_class=customized.base.tokenizer,
    )
    collator = trl.trainer.dpo_trainer.DataCollatorForPreference(pad_token_id=259)
    batch = collator([{"prompt_ids": e.prompt, "chosen_ids": e.chosen, "rejected_ids": e.rejected} for e in plain])
    expected = trainer.compute_loss(trainer.model, batch).item()
    assert loss_of(customized, objective, with_reference(customized.origin, plain)) == pytest.approx(expected, abs=1e-4)


@EITHER
@pytest.mark.parametrize("loss", REWARDS)
def test_reward(name: str, loss: str, tmp_path: Path) -> None:
    from transformers import LlamaForSequenceClassification

    objective, arguments = REWARDS[loss]
    customized, examples = start(METHODS[name], objective), encoded_pairs()
    settings = tiny_config()
    settings.num_labels = 1
    model = LlamaForSequenceClassification(settings)
    source = customized.base.model if customized.moves_base else customized.origin.model
    model.model.load_state_dict(source.model.state_dict())
    head: Any = customized.customization.heads[HEAD]
    with torch.no_grad():
        model.score.weight.copy_(head.weight[None])
    config, tensors = None, {}
    if not customized.moves_base:
        config, tensors = as_peft(customized, tmp_path / "adapter")
        config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(output_dir=str(tmp_path), **arguments, **COMMON),
        train_dataset=rows(),
        processing_class=customized.base.tokenizer,
        peft_config=config,
    )
    if tensors:
        score = {"base_model.model.score.weight": head.weight.detach()[None]}
        peft.set_peft_model_state_dict(trainer.model, {**tensors, **score})
    collator = trl.trainer.reward_trainer.DataCollatorForPreference(pad_token_id=259)
    batch = collator(
        [
            {"chosen_ids": e.prompt + e.chosen, "rejected_ids": e.prompt + e.rejected}
            | ({"margin": e.margin} if objective.uses_margins else {})
            for e in examples
        ]
    )
    expected = trainer.compute_loss(trainer.model, batch)
    expected.backward()
    assert loss_of(customized, objective, examples) == pytest.approx(expected.item(), abs=1e-4)
    same_gradients(customized, trainer.model)
    grads = [p.grad for n, p in trainer.model.named_parameters() if "score" in n and p.grad is not None]
    torch.testing.assert_close(head.weight.grad, grads[0][0], **CLOSE)


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean log-probabilities a token of chosen and rejected completions."""
    generator = torch.Generator().manual_seed(0)
    return -3 * torch.rand(9, generator=generator), -3 * torch.rand(9, generator=generator)


def test_simpo(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=0.7, beta=2.0, label_smoothing=0.0,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )  # fmt: skip
    expected, _, _ = CPOTrainer.cpo_loss(trainer, *scores)
    torch.testing.assert_close(losses.simpo_loss(scores[0] - scores[1], 2.0, 0.7), expected)


def test_orpo(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    from trl.experimental.orpo import ORPOTrainer

    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device=torch.device("cpu")))
    expected = -ORPOTrainer.odds_ratio_loss(trainer, *scores)[0]
    torch.testing.assert_close(0.3 * losses.odds_ratio_loss(*scores), expected)
