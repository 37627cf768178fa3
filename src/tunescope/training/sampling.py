"""What training hands to an objective that learns from its own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tunescope.data.rows import Message
from tunescope.errors import TrainingError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.sampling import for_prompt
from tunescope.methods import Customized
from tunescope.objectives import Sampled
from tunescope.team import this_team


def sample(
    customized: Customized,
    prompts: Sequence[Sequence[Message]],
    *,
    n: int,
    seed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
) -> list[list[Sampled]]:
    """Sample completions from a customization as it is now; see ``objectives.Sampler``."""
    how = Sampling(n=n, seed=seed, max_new_tokens=max_new_tokens, temperature=temperature, logprobs=True)
    engine = Engine(customized.base)
    engine.load("learner", customized)

    def answered(own: Sequence[int]) -> list[list[dict[str, Any]]]:
        answers = engine.generate([Request(prompts[i], "learner", for_prompt(how, i)) for i in own])
        each = zip(own, answers, strict=True)
        return [[asdict(_sampled(one, i)) for one in (answer, *answer.others)] for i, answer in each]

    found = this_team().mapped(range(len(prompts)), answered)
    return [[Sampled(**one | {k: tuple(one[k]) for k in ("tokens", "logprobs")}) for one in own] for own in found]


def _sampled(answer: Generated, number: int) -> Sampled:
    if answer.error is not None:
        raise TrainingError(f"Prompt {number + 1} of the round cannot be answered: {answer.error}")
    return Sampled(answer.text, tuple(answer.tokens), answer.finished, tuple(answer.logprobs or ()))
