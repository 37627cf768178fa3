"""What training hands to an objective that learns from its own samples."""

from __future__ import annotations

from collections.abc import Sequence

from tunescope.data.rows import Message
from tunescope.errors import TrainingError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.methods import Customized
from tunescope.objectives import Sampled

# The seeds of prompts lie this far apart, those of one prompt's samples further (see ``inference.sampling``).
_SEEDS_APART = 7919


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

    def request(number: int, prompt: Sequence[Message]) -> Request:
        own = (seed + _SEEDS_APART * number) % 2**63
        how = Sampling(n=n, seed=own, max_new_tokens=max_new_tokens, temperature=temperature, logprobs=True)
        return Request(prompt, "learner", how)

    engine = Engine(customized.base)
    engine.load("learner", customized)
    answers = engine.generate([request(number, prompt) for number, prompt in enumerate(prompts)])
    return [[_sampled(each, number) for each in (answer, *answer.others)] for number, answer in enumerate(answers)]


def _sampled(answer: Generated, number: int) -> Sampled:
    if answer.error is not None:
        raise TrainingError(f"Prompt {number + 1} of the round cannot be answered: {answer.error}")
    return Sampled(answer.text, tuple(answer.tokens), answer.finished, tuple(answer.logprobs or ()))
