"""What policy optimization needs beside the policy: who scores its samples, and for PPO a critic."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunescope import bank
from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.errors import TrainingError
from tunescope.judging import Judge, load_judge
from tunescope.judging.judges import AttributeLikelihood, check_answers, reward_model_in, scores_by_part
from tunescope.methods import Customized, LoRA, customize
from tunescope.methods.customization import go_on
from tunescope.methods.effects import Effect
from tunescope.objectives import PPO, Critic, Objective, PolicyObjective, Reward, Services, SteerLM2
from tunescope.objectives.objective import Scorer
from tunescope.objectives.ppo import VALUE
from tunescope.objectives.reference import untouched
from tunescope.objectives.reward_model import HEAD
from tunescope.training.learner import Learner
from tunescope.training.sampling import sample
from tunescope.training.settings import TrainSettings


def learners_of(
    customized: Customized,
    objective: Objective,
    examples: Sequence[Any],
    settings: TrainSettings,
    folder: Path,
    *,
    validation: Sequence[Any] = (),
) -> list[Learner]:
    """The learner of a run, and behind it the one beside it, if it needs one.

    Args:
        customized: what is trained.
        objective: what for.
        examples: what ``objective.examples`` made.
        settings: of the run.
        folder: of the run.
        validation: examples that are measured and not learned.

    Raises:
        TunescopeError: a reward or a judge that cannot be loaded, a reward that nothing can be a critic of, or steps
            larger than a round.
        DataError: prompts without the known answer that the reward needs.
    """
    if isinstance(objective, PolicyObjective):
        _check_round(objective, examples, settings)
    services, beside = services_of(customized, objective, examples, settings, folder)
    learner = Learner(
        customized, objective, examples, settings, folder, validation=validation, services=services, beside=beside
    )
    if beside is None:
        return [learner]
    assert isinstance(beside.objective, Critic)
    beside.objective.follow(lambda: learner.examples)
    return [learner, beside]


def services_of(
    customized: Customized, objective: Objective, examples: Sequence[Any], settings: TrainSettings, folder: Path
) -> tuple[Services, Learner | None]:
    """What training hands to an objective: how to sample, the reward that it names, and for PPO a critic's learner."""
    if not isinstance(objective, PolicyObjective):
        return Services(sample, settings.seed), None
    rows = [each.row for each in examples]
    judge = load_judge(objective.reward, customized.origin)
    check_answers(judge, rows)
    score, held_out = functools.partial(scores_by_part, judge), _held_out(customized.origin, objective, rows)
    if isinstance(objective, SteerLM2):
        prior = _prior(customized, objective, judge)
        return Services(sample, settings.seed, score, held_out=held_out, prior=prior), None
    if not isinstance(objective, PPO):
        return Services(sample, settings.seed, score, held_out=held_out), None
    critic = _critic(customized, objective, settings.seed, judge)
    rate = (settings.lr or customized.method.learning_rate) * objective.critic_rate
    wanted = Critic(clip=objective.value_clip, rounds=objective.rounds)
    beside = Learner(critic, wanted, (), settings.model_copy(update={"lr": rate}), folder, owned=True)
    return Services(sample, settings.seed, score, critic, held_out), beside


def _prior(customized: Customized, objective: SteerLM2, judge: Judge) -> Customized:
    """Who answers without attributes, once it is clear that the attribute model knows those that are asked for.

    Raises:
        TrainingError: no attribute model, one of other attributes or another range, or a prior that has attributes.
    """
    steering = customized.template.steering
    if not isinstance(judge, AttributeLikelihood) or steering is None:
        raise TrainingError(
            f"The reward {judge.name} says nothing of attributes: name an attribute model, an entry trained with "
            "--objective attributes."
        )
    if unknown := [name for name in steering.names if name not in judge.names]:
        raise TrainingError(f"{judge.name} does not know {unknown[0]}, which the policy is asked for.")
    if (judge.low, judge.high) != (steering.low, steering.high):
        raise TrainingError(
            f"{judge.name} has attributes from {judge.low} to {judge.high}, and the policy from {steering.low} to "
            f"{steering.high}."
        )
    if objective.prior is None:
        return untouched(customized)
    prior = bank.load(Path(objective.prior), customized.origin)
    if prior.template.steering is not None:
        raise TrainingError(f"{objective.prior} is steered by attributes itself: a prior answers without them.")
    return prior


def _check_round(objective: PolicyObjective, examples: Sequence[Any], settings: TrainSettings) -> None:
    """A step's prompts are of one round, so there must be that many."""
    prompts = min(objective.prompts, len(examples))
    if 0 < prompts < settings.batch_size:
        few = "" if prompts == objective.prompts else f", for the data has {len(examples)}"
        remedy = "raise --prompts" if not few else "give more rows"
        raise TrainingError(
            f"A step takes {settings.batch_size} prompts (--batch-size), and a round has {prompts}{few}: take "
            f"--batch-size {prompts} or less, or {remedy}."
        )


def _held_out(base: Base, objective: PolicyObjective, rows: Sequence[Row]) -> Scorer | None:
    """The judge that is not learned from, where one is named.

    Raises:
        TrainingError: it is the reward.
        DataError: rows without the known answer that it needs.
    """
    if objective.held_out_judge is None:
        return None
    if objective.held_out_judge == objective.reward:
        raise TrainingError(
            f"The held-out judge {' + '.join(objective.held_out_judge)} is the reward itself, from which it could not "
            "differ: name another, or leave --held-out-judge out."
        )
    judge = load_judge(objective.held_out_judge, base)
    check_answers(judge, rows)
    return functools.partial(scores_by_part, judge)


def _critic(customized: Customized, objective: PPO, seed: int, judge: Judge) -> Customized:
    """The critic before its first step: the reward model (of a sum its only one, weighted as there), or else the
    policy's start with a head of zeros.
    """
    base, added = customized.origin, Critic().effects(customized.origin, torch.Generator())
    found = reward_model_in(judge)
    if objective.critic is not None:
        made = _from_reward_model(objective.critic, 1.0, base, added)
    elif found is not None:
        made = _from_reward_model(found[1].name, found[0], base, added)
    else:
        made = _new(customized, seed, added)
    if made.template.virtual_splits:
        raise TrainingError(
            "The critic's virtual tokens would stand at marked places of the prompt, where it cannot read them: start "
            "it from a reward model of another method with --critic."
        )
    return made


def _from_reward_model(name: str, weight: float, base: Base, added: Mapping[str, Effect]) -> Customized:
    folder = Path(name).expanduser()
    record = bank.read_record(folder)
    if record.objective != Reward.name:
        raise TrainingError(
            f"{name} was trained for {record.objective or 'nothing'}: a critic starts from a reward model. Leave "
            "--critic out to start it from what the policy starts from."
        )
    entry = bank.load(folder, base)
    if entry.method.trains != "effects":
        raise TrainingError(
            f"{name} is {record.method}, whose weights a critic cannot share with the policy: name a reward model of a "
            "method with effects (lora, ia3, adapter …) with --critic."
        )
    made = go_on(entry, entry.template, record.labels, added)
    reward = {name: weight * each for name, each in entry.customization.heads[HEAD].state_dict().items()}
    made.customization.heads[VALUE].load_state_dict({**reward, "bias": torch.zeros(1)})
    return made


def _new(customized: Customized, seed: int, added: Mapping[str, Effect]) -> Customized:
    """By the policy's own method, or by LoRA beside a policy that moves the base."""
    method = customized.method if customized.method.trains == "effects" else LoRA()
    start = customized.reference
    own = {"virtual_tokens": 0, "virtual_splits": ()}  # the policy's, where it starts from the base
    template = start.template if start is not None else customized.template.model_copy(update=own)
    return customize(customized.origin, method, template, seed=seed, added=added, start=start)
