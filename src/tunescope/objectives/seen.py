"""What people see of policy optimization: the numbers of each round, samples beside the reference's, warnings in words.

A warning about a trend compares the first third of the rounds with the last. Their means have standard errors, taken
over prompts, whose samples are alike; only a change beyond two standard errors counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunescope.methods import Customized
from tunescope.objectives.objective import Sampled, Services
from tunescope.objectives.reference import untouched
from tunescope.objectives.rollouts import Prompt, Round

SHOWN = 4
"""Samples of a round that are kept to be read."""
_COMPARED = 10  # rounds of a run, about, in which the reference answers as well
_CERTAIN = 2.0  # standard errors
_LONGER = 1.5


def with_error(name: str, values: torch.Tensor, n: int) -> dict[str, float]:
    """The mean of [samples], under ``name``, and its standard error, under ``name_error``.

    The error is taken over the means of prompts, which have ``n`` samples each; of a single prompt over its samples.
    There is none of a single sample.
    """
    values = values.float()
    found = {name: float(values.mean())}
    independent = values.view(-1, n).mean(dim=1) if len(values) > n else values
    if len(independent) > 1:
        found[f"{name}_error"] = float(independent.std()) / len(independent) ** 0.5
    return found


def numbers(
    number: int,
    found: Round,
    sampled: Sequence[Sequence[Sampled]],
    entropy: float,
    logprobs: Sequence[Sequence[Sequence[float]]],
) -> dict[str, float]:
    """What was measured of a round's samples but for their scores; see ``PolicyObjective.observed``."""
    engine = [list(each.logprobs) for samples in sampled for each in samples]
    passes = [each for samples in logprobs for each in samples]
    gaps = [abs(a - b) for x, y in zip(engine, passes, strict=True) for a, b in zip(x, y, strict=False)]
    return {
        "round": float(number),
        "kl": float(found.kl.mean()),
        "entropy": entropy,
        "beta": found.beta,
        **with_error("length", found.mask.sum(dim=1), found.n),
        **with_error("stop_share", found.finished, found.n),
        "engine_gap": max(gaps, default=0.0),
    }


def samples_to_read(
    number: int,
    prompts: Sequence[Prompt],
    sampled: Sequence[Sequence[Sampled]],
    scores: torch.Tensor,
    kl: torch.Tensor,
) -> list[dict[str, Any]]:
    """The first sample of the round's first prompts, as ``samples.jsonl`` has them.

    Args:
        number: of the round.
        prompts: of the round.
        sampled: samples of each.
        scores: [samples] as the reward gave them.
        kl: [samples] distance to the reference, in nats.
    """
    n = len(sampled[0])
    return [
        {
            "round": number,
            "line": prompt.number,
            "prompt": prompt.messages[-1]["content"],
            **_told(samples[0], float(scores[index * n])),
            "kl": float(kl[index * n]),
        }
        for index, (prompt, samples) in enumerate(zip(prompts[:SHOWN], sampled, strict=False))
    ]


def _told(sample: Sampled, reward: float | str) -> dict[str, Any]:
    return {
        "completion": sample.text,
        "reward": None if isinstance(reward, str) else reward,
        "tokens": len(sample.tokens),
        "finished": sample.finished,
    }


def is_compared(number: int, rounds: int) -> bool:
    """Whether the reference answers in a round as well: in the first, the last, and about ten of a run in all."""
    return number % max(math.ceil(rounds / _COMPARED), 1) == 0 or number == rounds - 1


def reference_samples(
    customized: Customized, prompts: Sequence[Prompt], services: Services, seed: int, max_new_tokens: int
) -> list[dict[str, Any]]:
    """What the reference answers to the same prompts by the same seed: of a policy that has not moved, the same."""
    start = customized.reference
    reference = untouched(customized) if start is None else Customized(customized.origin, start, customized.origin)
    shown = prompts[:SHOWN]
    sampled = services.sample(
        reference, [prompt.messages for prompt in shown], n=1, seed=seed, max_new_tokens=max_new_tokens
    )
    assert services.score is not None  # the round was scored
    answers = [own for (own,) in sampled]
    scores = services.score([prompt.row for prompt in shown], [own.text for own in answers])["reward"]
    return [_told(own, score) for own, score in zip(answers, scores, strict=True)]


def warnings(history: Sequence[Mapping[str, float]], max_new_tokens: int) -> list[str]:
    """What a reader must know, in words; each kind once, with the round where it was seen first, or over all rounds.

    Args:
        history: what was observed in each round so far, in their order.
        max_new_tokens: most tokens of a sample.
    """
    return [*_of_rounds(history), *_of_lengths(history, max_new_tokens), *_of_held_out(history)]


def _of_rounds(history: Sequence[Mapping[str, float]]) -> list[str]:
    kinds = (
        (
            "The reward gives all samples of round {} the same score, so nothing can be learned from it.",
            lambda seen: seen["reward_std"] < 1e-9,
        ),
        (
            "The policy is more than 50 nats a sample from its reference in round {}: raise --beta, or set "
            "--target-kl.",
            lambda seen: seen["kl"] > 50,
        ),
        (
            "The policy hardly varies any more in round {} (entropy below 0.05 nats a token): raise --beta or lower "
            "--lr.",
            lambda seen: seen["entropy"] < 0.05,
        ),
    )
    found = []
    for words, holds in kinds:
        first = next((number for number, seen in enumerate(history, start=1) if holds(seen)), None)
        if first is not None:
            found.append(words.format(first))
    return found


def _of_lengths(history: Sequence[Mapping[str, float]], max_new_tokens: int) -> list[str]:
    length, stops = _Trend.of(history, "length"), _Trend.of(history, "stop_share")
    remedy = "See in samples.html whether the reward pays for length; raise --beta, or take --missing-stop penalty."
    if length is not None and length.rose and length.last > _LONGER * length.first:
        return [
            f"Lengths explode: samples have {length.last:.0f} tokens in the last third of the rounds, and had "
            f"{length.first:.0f} in the first (--max-new-tokens {max_new_tokens}). {remedy}"
        ]
    if stops is not None and stops.fell and stops.first > 0.5 and stops.last < 0.1:
        return [
            f"Lengths explode: {stops.last:.0%} of the samples end before --max-new-tokens {max_new_tokens} in the "
            f"last third of the rounds, and {stops.first:.0%} did in the first. {remedy}"
        ]
    return []


def _of_held_out(history: Sequence[Mapping[str, float]]) -> list[str]:
    reward, judge = _Trend.of(history, "reward"), _Trend.of(history, "held_out")
    if reward is None or judge is None or not (reward.rose and judge.fell):
        return []
    return [
        f"The reward rises, from {reward.first:.3g} to {reward.last:.3g}, while the held-out judge falls, from "
        f"{judge.first:.3g} to {judge.last:.3g} (first and last third of the rounds, both beyond two standard errors): "
        "the policy exploits the reward. Raise --beta, set --target-kl, or take fewer --rounds."
    ]


class _Trend:
    """How the mean of the last third of the rounds differs from that of the first.

    Args:
        first: mean of the first third.
        last: mean of the last third.
        error: standard error of their difference.
    """

    def __init__(self, first: float, last: float, error: float) -> None:
        self.first, self.last, self._error = first, last, error

    @classmethod
    def of(cls, history: Sequence[Mapping[str, float]], name: str) -> _Trend | None:
        """None where there are fewer than three rounds, or no errors."""
        third = len(history) // 3
        parts = (history[:third], history[len(history) - third :])
        if not third or any(f"{name}_error" not in seen for part in parts for seen in part):
            return None
        first, last = (sum(seen[name] for seen in part) / third for part in parts)
        error = sum(seen[f"{name}_error"] ** 2 for part in parts for seen in part) ** 0.5 / third
        return cls(first, last, error)

    @property
    def rose(self) -> bool:
        """Beyond its noise."""
        return self.last - self.first > _CERTAIN * self._error

    @property
    def fell(self) -> bool:
        """Beyond its noise."""
        return self.first - self.last > _CERTAIN * self._error
