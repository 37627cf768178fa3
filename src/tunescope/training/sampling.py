"""What training hands to an objective that learns from its own samples."""

from __future__ import annotations

from collections.abc import Sequence

from tunescope.data.rows import Message
from tunescope.errors import TrainingError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.sampling import for_prompt
from tunescope.methods import Customized
from tunescope.objectives import Sampled


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
    answers = engine.generate([Request(prompt, "learner", for_prompt(how, i)) for i, prompt in enumerate(prompts)])
    return [[_sampled(each, number) for each in (answer, *answer.others)] for number, answer in enumerate(answers)]


def _sampled(answer: Generated, number: int) -> Sampled:
    if answer.error is not None:
        raise TrainingError(f"Prompt {number + 1} of the round cannot be answered: {answer.error}")
    return Sampled(answer.text, tuple(answer.tokens), answer.finished, tuple(answer.logprobs or ()))
