"""Policy optimization: learn from one's own samples and a reward.

A run has rounds. Each begins with a rollout:

1. the policy samples n completions of each of the round's prompts;
2. a reward scores them;
3. the training pass computes their log-probabilities, under the policy and under the reference;
4. the objective turns scores into advantages.

Then the policy takes its steps on them. PPO, RLOO, GRPO and SteerLM 2 differ in 4 and in the loss. The reference is
what the policy starts from: the base, or the base with the entry that ``--from`` names.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr, model_validator

from tunescope.data.encoding import Encoder
from tunescope.data.reading import Table
from tunescope.data.rows import Row, to_rows
from tunescope.errors import DataError, TrainingError
from tunescope.methods import Customized
from tunescope.objectives.forward import target_logprobs
from tunescope.objectives.objective import Loss, Objective, Sampled, Services
from tunescope.objectives.rollouts import (
    Prompt,
    Rollout,
    RolloutBatch,
    Round,
    collate_rollouts,
    padded,
    under_policy,
    under_reference,
)
from tunescope.objectives.seen import (
    is_compared,
    numbers,
    reference_samples,
    samples_to_read,
    warnings,
    with_error,
)
from tunescope.settings import Names, Shown

# Rounds' samples are drawn by seeds this far apart.
_ROUNDS_APART = 104_729


class PolicyObjective(Objective):
    """Learn from one's own samples and a reward."""

    example: ClassVar[type] = Rollout
    unit: ClassVar[str] = "prompts"
    cut: ClassVar[Literal["middle", "start"]] = "start"
    validates: ClassVar[bool] = False
    needs_several: ClassVar[bool] = False
    """Whether a sample is compared with others of its prompt."""

    reward: Names
    """Who scores samples: sentiment, exact, regex:PATTERN, words:N, tokens:N, module:function, or BANK/NAME of a reward
    model. Given several times, as 0.7*NAME, their weighted sum."""
    rounds: int = Field(20, gt=0)
    """How often new samples are made; each round learns from its own."""
    prompts: int = Field(16, gt=0)
    """Prompts a round, taken in turn."""
    n: int = Field(4, gt=0)
    """Samples of each prompt; the prompt is computed once."""
    max_new_tokens: int = Field(32, gt=0)
    """Most tokens of a sample."""
    missing_stop: Literal["penalty", "mask", "keep"] = "penalty"
    """A sample that was cut off by max-new-tokens: is scored --stop-penalty lower, is not learned from, or counts as
    it is."""
    stop_penalty: float = Field(1.0, ge=0)
    """How much lower a sample without a stop token is scored."""
    stop_kl: float | None = Field(None, gt=0)
    """End a round's steps once the policy is this far from the one that sampled, in nats a token."""
    skip_unjudged: int = Field(0, ge=0)
    """How many samples of a round the reward may fail on; their score is the mean of the others."""
    held_out_judge: Annotated[Names | None, Shown("NAME", repeated=True)] = None
    """A second judge, named as --reward is: it scores the samples, too, and is not learned from. A warning says when
    the reward rises while it falls."""

    _observed: dict[str, float] = PrivateAttr(default_factory=dict)
    _history: list[dict[str, float]] = PrivateAttr(default_factory=list)
    _shown: list[dict[str, Any]] = PrivateAttr(default_factory=list)
    _moved: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _check_samples(self) -> PolicyObjective:
        if self.needs_several and self.n < 2:
            raise ValueError(f"n is {self.n}, and {self.name} compares the samples of a prompt: give at least 2")
        return self

    # Rows and prompts.

    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Row]:
        """Prompts; completions that stand in the table are the known answers, for a reward that asks for them."""
        return to_rows(table, pattern, skip_bad=skip_bad, need_completion=False, on_note=on_note)

    def examples(self, rows: Sequence[Row], encoder: Encoder) -> list[Prompt]:
        """The prompts that leave room for a sample.

        Raises:
            DataError: a prompt that leaves none, or that ends within a token; by its line.
        """
        bare = [Row(row.messages, None, number=row.number, tools=row.tools) for row in rows]
        fitting = encoder.fitting(bare)
        found = [Prompt(**vars(example), answer=rows[index].completion) for index, example in fitting]
        for example in found:
            if len(example.prompt) + self.max_new_tokens > encoder.context:
                raise DataError(
                    f"The prompt of line {example.number} has {len(example.prompt)} tokens, which leaves no room for "
                    f"{self.max_new_tokens} more in the base's context of {encoder.context}: shorten it, or cut "
                    "prompts with --max-length."
                )
            if encoder.prompt(example.messages).owed:
                raise DataError(
                    f"The prompt of line {example.number} ends within a token, which a sample would have to repeat: "
                    "end it with a whole word, or take --style chat."
                )
        return found

    # A round.

    def collect(
        self, number: int, customized: Customized, examples: Sequence[Prompt], services: Services
    ) -> list[Rollout]:
        """Sample, score, and say what each sample was worth."""
        prompts = self._prompts_of(number, examples)
        sampled = services.sample(
            customized,
            [prompt.messages for prompt in prompts],
            n=self.n,
            seed=services.seed + _ROUNDS_APART * number,
            max_new_tokens=self.max_new_tokens,
        )
        scores = self._scores(prompts, sampled, services)
        plain = [
            Rollout(prompt.number, prompt.prompt, [list(each.tokens) for each in samples], [], [])
            for prompt, samples in zip(prompts, sampled, strict=True)
        ]
        logprobs, entropy = under_policy(customized, plain)
        reference = under_reference(customized, plain)
        found = self._round(scores, sampled, logprobs, reference)
        learned = (found.finished if self.missing_stop == "mask" else torch.ones_like(found.finished)).tolist()
        rollouts = [
            replace(each, logprobs=own, reference=other, learned=learned[i * self.n : (i + 1) * self.n])
            for i, (each, own, other) in enumerate(zip(plain, logprobs, reference, strict=True))
        ]
        rollouts = self.estimate(found, rollouts, services)
        self._show(number, customized, prompts, sampled, scores, found, services)
        self._observed |= with_error("reward", scores, self.n) | self._held_out(prompts, sampled, services)
        self._observed |= numbers(number, found, sampled, entropy, logprobs)
        self._history.append(dict(self._observed))
        self.adapt(found)
        self._moved = 0.0
        return rollouts

    @abstractmethod
    def estimate(self, found: Round, rollouts: list[Rollout], services: Services) -> list[Rollout]:
        """The rollouts with their advantages, and with values and returns where there is a critic."""

    def adapt(self, found: Round) -> None:
        """What the round says about the next ones."""

    def _prompts_of(self, number: int, examples: Sequence[Prompt]) -> list[Prompt]:
        """The round's prompts: all in the order of the rows, again from the first after the last."""
        begin = number * self.prompts
        return [examples[i % len(examples)] for i in range(begin, begin + min(self.prompts, len(examples)))]

    def _scores(
        self, prompts: Sequence[Prompt], sampled: Sequence[Sequence[Sampled]], services: Services
    ) -> torch.Tensor:
        """[samples] what the reward says, asked once for all; the mean of the others where it failed.

        Raises:
            TrainingError: it failed on more than ``skip_unjudged`` samples; the first is named.
        """
        if services.score is None:
            raise TrainingError(f"{self.name} needs who scores its samples: train it with tunescope.train.")
        rows = [prompt.row for prompt, samples in zip(prompts, sampled, strict=True) for _ in samples]
        scores = services.score(rows, [each.text for samples in sampled for each in samples])
        found = {name: torch.tensor([_or_nan(score) for score in own]) for name, own in scores.items()}
        failed = [
            f"line {row.number}, sample {index % self.n + 1}: {score}"
            for index, (row, score) in enumerate(zip(rows, scores["reward"], strict=True))
            if isinstance(score, str)
        ]
        if len(failed) > self.skip_unjudged or len(failed) == len(rows):
            raise TrainingError(
                f"The reward {' + '.join(self.reward)} failed on {len(failed)} samples of a round, and "
                f"{self.skip_unjudged} may be left out (--skip-unjudged). The first: {failed[0]}."
            )
        self._observed = {name: float(own.nanmean()) for name, own in found.items()}
        return found["reward"].nan_to_num(nan=self._observed["reward"])

    def _round(
        self,
        scores: torch.Tensor,
        sampled: Sequence[Sequence[Sampled]],
        logprobs: Sequence[Sequence[Sequence[float]]],
        reference: Sequence[Sequence[Sequence[float]]],
    ) -> Round:
        finished = torch.tensor([each.finished for samples in sampled for each in samples])
        worth = self.scaled(scores)
        if self.missing_stop == "penalty":
            worth = worth - self.stop_penalty * (~finished).float()
        own, mask = padded([each for samples in logprobs for each in samples])
        other, _ = padded([each for samples in reference for each in samples])
        return Round(worth, own, other, mask, finished, self.weight_of_distance, self.n)

    @property
    def weight_of_distance(self) -> float:
        """In reward a nat from the reference; 0 where the objective holds the policy otherwise."""
        return 0.0

    def scaled(self, scores: torch.Tensor) -> torch.Tensor:
        """[samples] the scores in the unit that the objective learns from."""
        self._observed["reward_std"] = float(scores.std()) if len(scores) > 1 else 0.0
        return scores

    # What is seen.

    def _held_out(
        self, prompts: Sequence[Prompt], sampled: Sequence[Sequence[Sampled]], services: Services
    ) -> dict[str, float]:
        """What the judge says that nothing is learned from; empty without one.

        Raises:
            TrainingError: it failed on a sample, which is named.
        """
        if services.held_out is None or self.held_out_judge is None:
            return {}
        rows = [prompt.row for prompt, samples in zip(prompts, sampled, strict=True) for _ in samples]
        found: list[float] = []
        scores = services.held_out(rows, [each.text for samples in sampled for each in samples])
        for index, (row, score) in enumerate(zip(rows, scores["reward"], strict=True)):
            if isinstance(score, str):
                raise TrainingError(
                    f"The held-out judge {' + '.join(self.held_out_judge)} failed on line {row.number}, sample "
                    f"{index % self.n + 1}: {score}."
                )
            found.append(score)
        return with_error("held_out", torch.tensor(found), self.n)

    def _show(
        self,
        number: int,
        customized: Customized,
        prompts: Sequence[Prompt],
        sampled: Sequence[Sequence[Sampled]],
        scores: torch.Tensor,
        found: Round,
        services: Services,
    ) -> None:
        """Keep some samples of the round to be read, every so often beside the reference's."""
        self._shown = samples_to_read(number, prompts, sampled, scores, found.kl)
        if is_compared(number, self.rounds):
            seed = services.seed + _ROUNDS_APART * number
            beside = reference_samples(customized, prompts, services, seed, self.max_new_tokens)
            self._shown = [own | {"reference": other} for own, other in zip(self._shown, beside, strict=True)]

    @property
    def number_of_rounds(self) -> int:
        """As asked for."""
        return self.rounds

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Some samples of the round that was collected last."""
        return self._shown

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """What was observed in each round so far."""
        return self._history

    @property
    def observed(self) -> Mapping[str, float]:
        """Of the round: reward, the parts of a weighted one, and its spread, kl (nats a sample), entropy (nats a
        token), beta, length (tokens), the share of samples that ended with a stop token, what the held-out judge says,
        standard errors of these means (``reward_error`` …), and how far the engine's log-probabilities are from the
        training pass's.
        """
        return self._observed

    def saw(self, measured: Mapping[str, float]) -> None:
        """How far the policy moved so far."""
        self._moved = measured.get("moved", self._moved)

    @property
    def resting(self) -> bool:
        """Whether the policy moved further than ``stop_kl`` in this round."""
        return self.stop_kl is not None and self._moved > self.stop_kl

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """Warnings of the run."""
        return warnings(self._history, self.max_new_tokens)

    def state(self) -> dict[str, Any]:
        """What was seen, and how far the policy moved in this round."""
        return {"history": self._history, "moved": self._moved}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self._history, self._moved = list(state["history"]), state["moved"]
        self._observed = dict(self._history[-1]) if self._history else {}

    # A step.

    def collate(self, examples: Sequence[Rollout]) -> RolloutBatch:
        """Rollouts packed, one a group."""
        return collate_rollouts(examples)

    def weight(self, batch: RolloutBatch) -> int:
        """Tokens that are learned from."""
        return int(batch.learned.sum())

    @abstractmethod
    def policy_loss(self, logprobs: torch.Tensor, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's loss, summed over what ``weight`` counts, and at which tokens it was clipped, [targets]."""

    def compute_loss(self, customized: Customized, batch: RolloutBatch, hidden: torch.Tensor) -> Loss:
        """The loss, with the share of clipped tokens, and how far the policy moved since it sampled: half the mean
        square of the log-ratios, an estimate of the KL in nats a token.
        """
        logprobs = target_logprobs(customized.base, batch.packed, hidden)
        total, clipped = self.policy_loss(logprobs, batch)
        if not batch.learned.any():
            return Loss(total)
        moved = 0.5 * (logprobs.detach() - batch.old)[batch.learned].square().mean()
        weight = self.weight(batch)
        return Loss(total, {"clip_share": clipped[batch.learned].float().mean() * weight, "moved": moved * weight})


def _or_nan(score: float | str) -> float:
    return float("nan") if isinstance(score, str) else score
