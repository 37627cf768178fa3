"""What the engine is asked for and what it answers, and a request while it is under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunescope.data.rows import Message
from tunescope.errors import EngineError
from tunescope.inference.job import Job
from tunescope.inference.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        prompt: a text, or chat messages that end in the user's.
        customization: name of a loaded one; None is the base under its plain template.
        sampling: how the answer is chosen.
        steer: what the answer is to be like, a whole number for some of the attributes that the customization was
            trained on (``{"quality": 4}``); the others are asked for by their defaults.
        scale: how strongly the customization acts: what LoRA and adapters add is multiplied by it, IA3's vectors l are
            1 + scale · (l - 1). 0 is the base, bit for bit, under the customization's template.
        fit: where the context has no room for ``max_new_tokens`` new ones, write as many as it has; else refuse.
    """

    prompt: str | Sequence[Message]
    customization: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    steer: Mapping[str, int] = field(default_factory=dict)
    scale: float = 1.0
    fit: bool = False


@dataclass(frozen=True)
class ScoreRequest:
    """Completions of a prompt to be scored by a head, each at its last token (the stop token).

    Attributes:
        prompt: as of a ``Request``.
        completions: texts, at least one.
        customization: name of a loaded one that has the head.
        head: its name: that of a reward model's is ``reward``.
    """

    prompt: str | Sequence[Message]
    completions: Sequence[str]
    customization: str
    head: str = "reward"


@dataclass(frozen=True)
class Generated:
    """An answer.

    Attributes:
        text: without the stop token or stop text.
        tokens: ids, the stop token included when there was one.
        finished: whether it ended of itself and not by the limit.
        reason: ``stop``, ``length``, ``choice``, ``score``, ``cancelled`` or ``error``.
        prompt_tokens: length of the prompt, virtual tokens included.
        cached_tokens: how many of these had been computed before.
        logprobs: of each token in nats, where asked for.
        top_logprobs: for each token the likeliest ids with their log-probabilities, where asked for.
        choice_logprobs: log-probability of each choice as a whole, in nats, where choices were given.
        scores: the head's outputs for each completion of a ``ScoreRequest``.
        others: the request's further samples, where it asked for several.
        error: why there is no answer, where there is none.
    """

    text: str
    tokens: list[int]
    finished: bool
    reason: str = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None
    choice_logprobs: dict[str, float] | None = None
    scores: list[list[float]] | None = None
    others: tuple[Generated, ...] = ()
    error: str | None = None


class Ticket:
    """A request under way.

    Attributes:
        jobs: its samples.
    """

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs

    @property
    def done(self) -> bool:
        """Whether all of its samples have ended."""
        return all(job.done for job in self.jobs)

    @property
    def tokens(self) -> int:
        """How many tokens the first sample has so far."""
        return len(self.jobs[0].written)

    @property
    def text(self) -> str:
        """What the first sample says so far."""
        return self.jobs[0].text.text

    def cancel(self) -> None:
        """End it at the next step; what was written stays."""
        for job in self.jobs:
            job.cancelled = True

    def result(self) -> Generated:
        """The answer, once ``done``.

        Raises:
            EngineError: a step failed under it.
        """
        first, *others = [_generated(job) for job in self.jobs]
        return first if not others else Generated(**{**vars(first), "others": tuple(others)})


def _generated(job: Job) -> Generated:
    if isinstance(job.error, EngineError):
        raise job.error
    if job.error is not None:
        raise EngineError(f"The engine failed while it computed this answer: {told(job.error)}") from job.error
    return Generated(
        text=job.text.text,
        tokens=job.written,
        finished=job.reason in ("stop", "choice", "score"),
        reason=job.reason or "",
        prompt_tokens=len(job.tokens),
        cached_tokens=job.cached,
        logprobs=job.logprobs if job.sampling.logprobs else None,
        top_logprobs=job.likeliest if job.sampling.top_logprobs else None,
        choice_logprobs=dict(zip(job.sampling.choices, job.totals, strict=True)) if job.reason == "choice" else None,
        scores=job.scores if job.reason == "score" else None,
    )


def told(error: BaseException) -> str:
    """An error in words; its kind where it has none."""
    return str(error).strip() or type(error).__name__


def refused(why: str) -> Generated:
    """The answer to a request that cannot be served."""
    return Generated(text="", tokens=[], finished=False, reason="error", error=why)
