"""How the next token is chosen, for all rows of a batch at once and for each by its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from tunescope.inference.grammar import Grammar
from tunescope.inference.healing import Owed
from tunescope.settings import Settings

# Tokens that are looked at together before they are looked at one by one.
_BLOCK = 256
# Logits divided by less would leave the range of float32.
_COLDEST = 1e-6
# The seeds of prompts lie this far apart, those of one prompt's samples further.
_PROMPTS_APART, _SAMPLES_APART = 7919, 1_000_003


class Sampling(Settings):
    """How the next token is chosen."""

    max_new_tokens: int = Field(128, gt=0)
    """Most tokens to generate for a prompt."""
    min_new_tokens: int = Field(0, ge=0)
    """Before this many tokens the stop tokens are not chosen. Choices are answered as a whole, whatever it is."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token; higher values sample more freely."""
    top_k: int | None = Field(None, gt=0)
    """Sample among this many of the likeliest tokens."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together have this probability."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Sample among the tokens at least this share as likely as the likeliest one."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Divide the positive logits of tokens that the text has already, multiply the negative ones; 1 changes nothing."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the sampling."""
    n: int = Field(1, gt=0)
    """How many samples of the prompt; it is computed once."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, which ends before them; beside the template's stop tokens."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the answer; beside the template's."""
    logprobs: bool = False
    """Give each generated token's log-probability under the model, in nats, before temperature and cuts."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """With logprobs: give also this many of the likeliest tokens at each place."""
    json_schema: str | None = None
    """Answer with JSON that keeps to this schema, given as JSON text. Needs llguidance."""
    choices: tuple[str, ...] = ()
    """Answer with one of these texts: the one that is likeliest as a whole, or one sampled by its likelihood."""

    @model_validator(mode="after")
    def _check_conflicts(self) -> Sampling:
        if any(not text for text in self.stop):
            raise ValueError("stop has an empty text, which would end every answer before it began")
        if len(set(self.choices)) < len(self.choices) or any(not text.strip() for text in self.choices):
            raise ValueError("choices must be texts that all differ and are not empty")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}")
        cuts = [
            name for name in ("top_k", "top_p", "min_p") if getattr(self, name) != type(self).model_fields[name].default
        ]
        if 0 < self.temperature < _COLDEST:
            raise ValueError(f"temperature {self.temperature} is too low to divide by: 0 takes the likeliest token")
        if self.temperature == 0 and (cuts or self.n > 1):
            what = cuts[0] if cuts else "n"
            raise ValueError(
                f"{what} has no meaning at temperature 0, which takes the likeliest token: set temperature"
            )
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: set logprobs as well")
        if self.json_schema is not None and (self.choices or self.min_new_tokens or self.stop_tokens):
            raise ValueError(
                "json_schema says when an answer is complete: leave choices, min_new_tokens and stop_tokens out"
            )
        if self.choices and (cuts or self.stop or self.stop_tokens or self.repetition_penalty != 1):
            raise ValueError("choices are answered as a whole: leave top_k, top_p, min_p, the penalty and stop out")
        return self


def for_prompt(sampling: Sampling, number: int) -> Sampling:
    """The same for one of several prompts: with a seed of its own, whatever the others are."""
    return sampling.model_copy(update={"seed": (sampling.seed + _PROMPTS_APART * number) % 2**63})


@dataclass
class Draw:
    """What one row draws its tokens by.

    Args:
        sampling: its settings.
        sample: which of the request's ``n`` samples it is, from 0.
        stop: token ids that end it.
        seen: token ids of its text so far, for the repetition penalty.
        written: how many of these were generated, those that only repay what is owed not counted.
        owed: characters that the answer must begin with; None where there are none.
        grammar: which tokens may come; None where all may.
    """

    sampling: Sampling
    sample: int = 0
    stop: frozenset[int] = frozenset()
    seen: set[int] = field(default_factory=set)
    written: int = 0
    owed: Owed | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        # Each row has a generator of its own: what it draws does not depend on the other rows of the batch.
        seed = (self.sampling.seed + self.sample * _SAMPLES_APART) % 2**63
        self._generator = torch.Generator().manual_seed(seed)
        self._uniform: float | None = None

    def took(self, token: int) -> None:
        """The text goes on with ``token``."""
        self.seen.add(token)
        repays = self.owed is not None and self.owed.covers(token)
        self.owed = self.owed.after(token) if self.owed is not None else None
        self.written += not repays
        if self.grammar is not None and token not in self.stop:
            self.grammar.took(token)
        self._uniform = None

    def uniform(self) -> float:
        """The row's own number in [0, 1) for its next token: the same one until ``took``, so that a step can be
        repeated."""
        if self._uniform is None:
            self._uniform = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        return self._uniform

    def among(self, nats: Sequence[float]) -> int:
        """Which of several log-probabilities: the highest, or drawn by probability ** (1 / temperature)."""
        if self.sampling.temperature == 0:
            return max(range(len(nats)), key=lambda i: nats[i])
        shares = torch.softmax(torch.tensor(nats, dtype=torch.float64) / self.sampling.temperature, dim=0).cumsum(0)
        return min(int(torch.searchsorted(shares, self.uniform(), right=True)), len(nats) - 1)


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The next token of each row, and its log-probability under the model where any row asks for one.

    Args:
        logits: [rows, vocabulary]; not changed, so that a call that fails can be made again.
        draws: by row.

    Returns:
        [rows] token ids, and [rows] nats in float32 or None. A row whose highest logit is not finite has no next
        token: its id is -1 and its nats mean nothing.
    """
    wanted = any(draw.sampling.logprobs for draw in draws)
    adjusted = _adjust(logits.clone(), draws) if any(map(_adjusts, draws)) else logits
    highest, tokens = adjusted.max(-1, keepdim=True)  # argmax of bfloat16 is four times as slow; NaN is the highest
    lost = ~highest.isfinite()
    tokens = tokens.squeeze(-1)
    sampled = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if sampled:
        index = torch.tensor(sampled, device=logits.device)
        # One tensor, changed in place from here on: a new one of this size costs more than what is computed in it.
        below = (adjusted if len(sampled) == len(draws) else adjusted[index]).to(torch.float32, copy=True)
        below = below.sub_(highest[index].float()).masked_fill_(lost[index], 0)
        tokens[index] = _sample(below, [draws[row] for row in sampled])
    tokens = tokens.masked_fill(lost.squeeze(-1), -1)
    if not wanted:
        return tokens, None
    nats = torch.log_softmax(logits.float(), dim=-1)
    return tokens, nats.gather(-1, tokens.clamp(min=0)[:, None]).squeeze(-1)


def _adjusts(draw: Draw) -> bool:
    """Whether a row's logits are changed before its token is chosen."""
    sampling = draw.sampling
    bound = draw.owed is not None or draw.grammar is not None
    return bound or sampling.repetition_penalty != 1 or draw.written < sampling.min_new_tokens


def _adjust(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Change ``logits`` in place where a row has written too little to stop, or is not to repeat itself.

    The repetition penalty is CTRL's (Keskar et al. 2019, arXiv:1909.05858, section 4.1), on either side of zero.
    """
    penalized = [(row, draw) for row, draw in enumerate(draws) if draw.sampling.repetition_penalty != 1]
    rows = [row for row, draw in penalized for _ in draw.seen]
    if rows:
        at = torch.tensor([rows, [token for _, draw in penalized for token in draw.seen]], device=logits.device)
        penalty = _column([draws[row].sampling.repetition_penalty for row in rows], logits).squeeze(-1)
        values = logits[at[0], at[1]].float()
        values = torch.where(values > 0, values / penalty, values * penalty)
        logits[at[0], at[1]] = values.to(logits.dtype)
    open_ended = [(row, draw) for row, draw in enumerate(draws) if draw.written < draw.sampling.min_new_tokens]
    stops = [[row, token] for row, draw in open_ended for token in draw.stop]
    if stops:
        at = torch.tensor(stops, device=logits.device).T
        logits[at[0], at[1]] = -torch.inf
    for row, draw in enumerate(draws):
        if draw.owed is not None:
            allowed = draw.owed.tokens.to(logits.device)
            values = logits[row, allowed]
            logits[row] = -torch.inf
            logits[row, allowed] = values
        if draw.grammar is not None:
            logits[row].masked_fill_(~draw.grammar.allowed(draw.stop).to(logits.device), -torch.inf)
    return logits


def likeliest(logits: torch.Tensor, count: int) -> list[list[tuple[int, float]]]:
    """For each row of ``logits`` [rows, vocabulary] its likeliest tokens, with their log-probabilities in nats."""
    nats, tokens = torch.log_softmax(logits.float(), dim=-1).topk(min(count, logits.shape[-1]), dim=-1)
    return [list(zip(*row, strict=True)) for row in zip(tokens.tolist(), nats.tolist(), strict=True)]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """[rows, 1] in float32, on the device of ``like``."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]


def _sample(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Draw by inverting the distribution function: one uniform number a row, whoever else is in the batch.

    The cuts act in the usual order: top-k, then top-p of what is left, then min-p. ``logits`` are at most 0, and are
    changed. What is drawn from need not sum to one: the number is scaled by the sum.
    """
    settings = [draw.sampling for draw in draws]
    if any(s.temperature != 1 for s in settings):
        logits.div_(_column([s.temperature for s in settings], logits))
    shares = logits.exp_()
    cuts = any(s.top_k is not None or s.top_p < 1 for s in settings)
    if cuts or any(s.min_p for s in settings):
        probabilities = shares / shares.sum(-1, keepdim=True)
        least = probabilities.amax(-1, keepdim=True) * _column([s.min_p for s in settings], logits)
        least = torch.maximum(least, _threshold(probabilities, settings)) if cuts else least
        shares.masked_fill_(probabilities < least, 0)
    kept = _blocks(shares)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    uniform = torch.tensor([[draw.uniform()] for draw in draws], dtype=exact, device=logits.device)
    # A cumulative sum over all of a vocabulary takes milliseconds: first the block is drawn, then the token in it.
    masses = kept.sum(-1).to(exact)
    block, rest = _inverted(masses, uniform * masses.sum(-1, keepdim=True))
    inside = kept.gather(1, block[:, :, None].expand(-1, -1, kept.shape[-1])).squeeze(1).to(exact)
    token, _ = _inverted(inside, rest)
    return (block * kept.shape[-1] + token).squeeze(-1)


def _blocks(values: torch.Tensor) -> torch.Tensor:
    """[rows, vocabulary] as [rows, blocks, tokens of a block], zeros behind the last token."""
    missing = -values.shape[-1] % _BLOCK
    return (functional.pad(values, (0, missing)) if missing else values).unflatten(-1, (-1, _BLOCK))


def _inverted(masses: torch.Tensor, sought: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the cumulative sum of ``masses`` [rows, n] first exceeds ``sought`` [rows, 1], and by how much ``sought``
    exceeds the sum before. Only places that have mass are found, however the sums round.
    """
    together = masses.cumsum(-1)
    last = (together < together[:, -1:]).sum(-1, keepdim=True)
    place = torch.minimum(torch.searchsorted(together, sought, right=True), last)
    before = together.gather(1, place) - masses.gather(1, place)
    return place, (sought - before).clamp(min=0)


def _threshold(probabilities: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """[rows, 1] the least probability that top-k and top-p leave.

    Sorting a vocabulary takes a CPU milliseconds a row, so tokens that cannot be left are put aside first: those below
    the k-th highest of the blocks' maxima, since as many tokens are at least as likely; for top-p those so unlikely
    that all of them together would not reach what top-p cuts off. An accelerator sorts them all and waits for no count.
    """
    vocabulary = probabilities.shape[-1]
    top_k = torch.tensor([[min(s.top_k or vocabulary, vocabulary)] for s in settings], device=probabilities.device)
    top_p = _column([s.top_p for s in settings], probabilities)
    least = vocabulary
    if probabilities.device.type == "cpu":
        highest = _blocks(probabilities).amax(-1).sort(dim=-1, descending=True).values
        of_blocks = highest.gather(1, (top_k - 1).clamp(max=highest.shape[-1] - 1))
        of_blocks = torch.where(top_k <= highest.shape[-1], of_blocks, 0)
        rare = (1 - top_p) / vocabulary / 2  # half, to be on the safe side of rounding
        bound = torch.where(top_k < vocabulary, of_blocks, torch.where(top_p < 1, rare, torch.inf))
        least = max(int((probabilities >= bound).sum(-1).max()), 1)
    likeliest = probabilities.topk(least, dim=-1).values  # in order
    within = torch.arange(least, device=probabilities.device) < top_k
    line = torch.where(within, likeliest, 0)
    # A token stays while the likelier ones together have not reached top_p of what top_k left. The total is the last
    # sum, and not a sum of its own, so that it does not depend on how many tokens other rows look at.
    sums = line.cumsum(-1)
    total = torch.where(top_k < vocabulary, sums[:, -1:], 1.0)
    stays = within & ((sums - line < top_p * total) | (top_p == 1))
    last = (stays.sum(-1, keepdim=True) - 1).clamp(min=0)
    cut = (top_k < vocabulary) | (top_p < 1)
    return torch.where(cut, line.gather(1, last), 0)
