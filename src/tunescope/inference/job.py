"""One sample of one request, from when it waits until it is done."""

from __future__ import annotations

from dataclasses import dataclass, field

from tunescope.data.template import Template
from tunescope.inference.candidates import Candidates
from tunescope.inference.compiled import Compiled
from tunescope.inference.detokenizing import Detokenizer
from tunescope.inference.grammar import Grammar
from tunescope.inference.healing import Owed
from tunescope.inference.sampling import Draw, Sampling


@dataclass(eq=False)
class Job:
    """One sample of one request, from when it waits until it is done.

    Attributes:
        tokens: the prompt. Negative ids are virtual tokens.
        effects: the customization's effects; None for the base.
        sampling: how its tokens are chosen.
        sample: which of the request's samples it is, from 0.
        stop: token ids that end it.
        text: its words so far.
        completions: as tokens, where some are given to be scored instead of one written.
        template: of the customization; the base's own for the base.
        head: the customization's head that scores them; None for log-probabilities, by which one of them is chosen.
        prefix_tokens: how many tokens of the prompt every prompt of this customization has.
        owed: what its answer must begin with.
        grammar: what it may write; None where it may write anything.
        customization: whose turn it counts for; None is the base.
        written: tokens generated; the stop token is one.
        logprobs: of the tokens written, in nats, where asked for.
        likeliest: for each of them the likeliest tokens with theirs, where asked for.
        scores: of each completion: the log-probabilities of its tokens, or its head's outputs.
        cached: tokens of the prompt that were not computed for it.
        reason: why it ended: ``stop``, ``length``, ``choice``, ``score``, ``cancelled`` or ``error``; None until
            then. Set last: whoever sees it sees the whole answer.
        error: what went wrong, where something did.
    """

    tokens: list[int]
    effects: Compiled | None
    sampling: Sampling
    sample: int
    stop: frozenset[int]
    text: Detokenizer
    template: Template
    completions: list[list[int]] = field(default_factory=list)
    head: str | None = None
    prefix_tokens: int = 0
    owed: Owed | None = None
    grammar: Grammar | None = None
    customization: str | None = None
    written: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    likeliest: list[list[tuple[int, float]]] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    cached: int = 0
    reason: str | None = None
    error: BaseException | None = None
    cancelled: bool = False
    arrived: int = 0  # how many jobs came before it; the number of its slot
    placed: int = 0  # tokens whose keys and values are in its slot
    overtaken: int = 0  # how often another customization's job came in while it was the oldest that waits
    marks: set[int] = field(default_factory=set)  # prefixes of it to be kept once they are computed

    def __post_init__(self) -> None:
        self.draw = Draw(
            self.sampling,
            self.sample,
            self.stop,
            {token for token in self.tokens if token >= 0},
            owed=self.owed,
            grammar=self.grammar,
        )

    @property
    def totals(self) -> list[float]:
        """The log-probability of each text to choose from as a whole, in nats; calibrated where its labels are."""
        return self.template.calibrated(dict(zip(self.sampling.choices, map(sum, self.scores), strict=True)))

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.reason is not None

    @property
    def most(self) -> int:
        """The most positions that its keys and values may take."""
        if self.completions:
            return len(self.tokens) + sum(map(len, self.completions))
        owed = 0 if self.owed is None else len(self.owed.characters)
        return len(self.tokens) + self.sampling.max_new_tokens + owed

    @property
    def left(self) -> int:
        """Prompt tokens still to be computed. The last one is computed with the completions, where there are some."""
        return max(len(self.tokens) - bool(self.completions) - self.placed, 0)

    @property
    def candidates(self) -> Candidates:
        """The completions that have no score yet."""
        rest = self.completions[len(self.scores) :]
        return Candidates(self.effects, self.arrived, self.placed, self.tokens[self.placed :], rest, self.head)
