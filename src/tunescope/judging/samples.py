"""Completions sampled from a customization, each with a judge's score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field

from tunescope.data.rows import Row
from tunescope.errors import DataError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.sampling import for_prompt
from tunescope.judging.judges import Judge, check_answers
from tunescope.methods import Customized

_NAME = "sampled"
_NAMED = 10  # failures listed in one message


class Samples(Sampling):
    """How completions are sampled."""

    temperature: float = Field(1.0, gt=0)
    """1 samples from the model itself; lower values keep to what is likely."""
    n: int = Field(8, gt=0)
    """How many completions of each prompt."""


@dataclass(frozen=True)
class Judged:
    """A completion with its score.

    Attributes:
        text: what was written.
        tokens: ids, the stop token last where there is one.
        finished: whether it ended of itself and not by the limit of tokens.
        score: the judge's; None where it had none.
        unjudged: why it had none.
    """

    text: str
    tokens: list[int]
    finished: bool
    score: float | None = None
    unjudged: str | None = None


@dataclass
class Unjudged:
    """Completions that the judge failed on, up to a limit.

    Attributes:
        limit: how many may be left out.
        seen: each in words.
    """

    limit: int
    seen: list[str] = field(default_factory=list)

    def add(self, line: int, judged: Sequence[Judged]) -> None:
        """Count the failures among the samples of a prompt.

        Raises:
            DataError: there are more than the limit; the first ones are named.
        """
        self.seen += [
            f"line {line}, sample {number}: {each.unjudged}"
            for number, each in enumerate(judged, start=1)
            if each.unjudged is not None
        ]
        if len(self.seen) > self.limit:
            raise DataError(
                f"{self._listed()}\nThe judge has no score for {len(self.seen)} samples, and {self.limit} may be left "
                "out: mend the judge, or allow more with --skip-unjudged. What `pairs` sampled is kept."
            )

    def notes(self) -> list[str]:
        """Notes on them; empty if there are none."""
        if not self.seen:
            return []
        are = "1 sample has" if len(self.seen) == 1 else f"{len(self.seen)} samples have"
        return [f"{are} no score and were left out:\n{self._listed()}"]

    def _listed(self) -> str:
        more = [f"  and {len(self.seen) - _NAMED} more"] if len(self.seen) > _NAMED else []
        return "\n".join([f"  {failure}" for failure in self.seen[:_NAMED]] + more)


def judged_samples(
    customized: Customized,
    rows: Sequence[Row],
    sampling: Sampling,
    judge: Judge,
    on_prompt: Callable[[int, list[Judged]], None],
) -> None:
    """Sample completions of prompts, all in one batch, and score those of each prompt when they are there.

    A prompt's samples depend on ``sampling.seed`` and the row's number alone: neither on the other prompts nor, but for
    the rounding of its precision, on the other rows of the batch.

    Args:
        customized: whose completions.
        rows: the prompts.
        sampling: ``n`` completions each.
        judge: of the completions.
        on_prompt: callback with each prompt's index in ``rows`` and its samples, as it ends.

    Raises:
        DataError: a prompt that cannot be answered, or without the answer that the judge needs, by its line.
    """
    check_answers(judge, rows)

    def done(index: int, answer: Generated) -> None:
        if answer.error is not None:
            raise DataError(f"The prompt of line {rows[index].number} cannot be answered: {answer.error}")
        samples = [answer, *answer.others]
        scores = judge([rows[index]] * len(samples), [sample.text for sample in samples])
        written = [Judged(sample.text, sample.tokens, sample.finished) for sample in samples]
        on_prompt(index, [with_score(each, score) for each, score in zip(written, scores, strict=True)])

    engine = Engine(customized.base)
    engine.load(_NAME, customized)
    engine.generate([Request(row.messages, _NAME, for_prompt(sampling, row.number)) for row in rows], on_done=done)


def with_score(judged: Judged, score: float | str) -> Judged:
    """The completion with a judge's score, or with why there is none."""
    if isinstance(score, str):
        return replace(judged, score=None, unjudged=score)
    return replace(judged, score=score, unjudged=None)
