"""How the next token is chosen, for all rows of a batch at once and for each by its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field, model_validator
from torch.nn import functional

from tunescope.inference.healing import Owed
from tunescope.settings import Settings

# Tokens that are looked at together before they are looked at one by one.
_BLOCK = 256
# Logits divided by less would leave the range of float32.
_COLDEST = 1e-6


class Sampling(Settings):
    """How the next token is chosen."""

    max_new_tokens: int = Field(128, gt=0)
    """Most tokens to generate for a prompt."""
    min_new_tokens: int = Field(0, ge=0)
    """Before this many tokens the stop tokens are not chosen."""
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
    """How many samples of the prompt; its beginning is computed once."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer, which ends before them; beside the template's stop tokens."""
    stop_tokens: tuple[int, ...] = ()
    """Token ids that end the answer; beside the template's."""
    logprobs: bool = False
    """Give each generated token's log-probability under the model, in nats, before temperature and cuts."""
    choices: tuple[str, ...] = ()
    """Answer with one of these texts: the one that is likeliest as a whole, or one sampled by its likelihood."""

    @model_validator(mode="after")
    def _check_conflicts(self) -> Sampling:
        if any(not text for text in self.stop):
            raise ValueError("stop has a text of no letters, which would end every answer before it began")
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
        if self.choices and (cuts or self.stop or self.stop_tokens or self.repetition_penalty != 1):
            raise ValueError("choices are answered as a whole: leave top_k, top_p, min_p, the penalty and stop out")
        return self


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
    """

    sampling: Sampling
    sample: int = 0
    stop: frozenset[int] = frozenset()
    seen: set[int] = field(default_factory=set)
    written: int = 0
    owed: Owed | None = None

    def __post_init__(self) -> None:
        # Each row has a generator of its own: what it draws does not depend on who is beside it.
        seed = (self.sampling.seed + self.sample * 1_000_003) % 2**63
        self._generator = torch.Generator().manual_seed(seed)

    def took(self, token: int) -> None:
        """The text goes on with ``token``."""
        self.seen.add(token)
        repays = self.owed is not None and self.owed.covers(token)
        self.owed = self.owed.after(token) if self.owed is not None else None
        self.written += not repays

    def uniform(self) -> float:
        """The next number of the row's own, in [0, 1)."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()

    def among(self, nats: Sequence[float]) -> int:
        """Which of several log-probabilities: the highest, or drawn by probability ** (1 / temperature)."""
        if self.sampling.temperature == 0:
            return max(range(len(nats)), key=lambda i: nats[i])
        shares = torch.softmax(torch.tensor(nats, dtype=torch.float64) / self.sampling.temperature, dim=0).cumsum(0)
        return min(int(torch.searchsorted(shares, self.uniform(), right=True)), len(nats) - 1)


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The next token of each row, and its log-probability under the model where any row asks for one.

    Args:
        logits: [rows, vocabulary]; may be changed.
        draws: by row.

    Returns:
        [rows] token ids, and [rows] nats in float32 or None.
    """
    wanted = any(draw.sampling.logprobs for draw in draws)
    adjusted = _adjust(logits.clone() if wanted else logits, draws)
    sampled = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if len(sampled) == len(draws):
        tokens = _sample(adjusted, draws)
    else:
        tokens = adjusted.max(-1).indices  # argmax of bfloat16 is four times as slow
        if sampled:
            index = torch.tensor(sampled, device=logits.device)
            tokens[index] = _sample(adjusted[index], [draws[row] for row in sampled])
    if not wanted:
        return tokens, None
    return tokens, torch.log_softmax(logits.float(), dim=-1).gather(-1, tokens[:, None]).squeeze(-1)


def _adjust(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Change ``logits`` in place where a row has written too little to stop, or is not to repeat itself.

    The repetition penalty is CTRL's (Keskar et al. 2019, arXiv:1909.05858, section 4.1), on either side of zero.
    """
    for row, draw in enumerate(draws):
        if draw.sampling.repetition_penalty != 1 and draw.seen:
            seen = torch.tensor(sorted(draw.seen), device=logits.device)
            values, penalty = logits[row, seen], draw.sampling.repetition_penalty
            logits[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
        if draw.written < draw.sampling.min_new_tokens and draw.stop:
            logits[row, sorted(draw.stop)] = -torch.inf
        if draw.owed is not None:
            allowed = draw.owed.tokens.to(logits.device)
            values = logits[row, allowed]
            logits[row] = -torch.inf
            logits[row, allowed] = values
    return logits


def _sample(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Draw by inverting the distribution function: one uniform number a row, whoever else is in the batch.

    The cuts act in the usual order: top-k, then top-p of what is left, then min-p.
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    settings = [draw.sampling for draw in draws]
    probabilities = torch.softmax(logits / column([s.temperature for s in settings]), dim=-1)
    cuts = any(s.top_k is not None or s.top_p < 1 for s in settings)
    if cuts or any(s.min_p for s in settings):
        least = probabilities.amax(-1, keepdim=True) * column([s.min_p for s in settings])
        least = torch.maximum(least, _threshold(probabilities, settings)) if cuts else least
        probabilities = torch.where(probabilities >= least, probabilities, 0)
    kept = _blocks(probabilities)
    uniform = torch.tensor([[draw.uniform()] for draw in draws], dtype=torch.float64, device=logits.device)
    # A cumulative sum over all of a vocabulary takes milliseconds: first the block is drawn, then the token in it.
    masses = kept.sum(-1).double()
    block, rest = _inverted(masses, uniform * masses.sum(-1, keepdim=True))
    inside = kept.gather(1, block[:, :, None].expand(-1, -1, kept.shape[-1])).squeeze(1).double()
    token, _ = _inverted(inside, rest)
    return (block * kept.shape[-1] + token).squeeze(-1)


def _blocks(values: torch.Tensor) -> torch.Tensor:
    """[rows, vocabulary] as [rows, blocks, tokens of a block], zeros behind the last token."""
    return functional.pad(values, (0, -values.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))


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

    Sorting a vocabulary takes milliseconds a row, so tokens that cannot be left are put aside first: those below the
    k-th highest of the blocks' maxima, since as many tokens are at least as likely; for top-p those so unlikely that
    all of them together would not reach what top-p cuts off.
    """
    highest = _blocks(probabilities).amax(-1).sort(dim=-1, descending=True).values
    found = []
    for row, s in enumerate(settings):
        if s.top_k is None and s.top_p == 1:
            found.append(probabilities.new_zeros(()))
            continue
        if s.top_k is None:
            bound = (1 - s.top_p) / probabilities.shape[-1] / 2  # half, to be on the safe side of rounding
        else:
            bound = float(highest[row, s.top_k - 1]) if s.top_k <= highest.shape[-1] else 0.0
        line = probabilities[row][probabilities[row] >= bound].sort(descending=True).values[: s.top_k]
        # A token stays while the likelier ones together have not reached top_p of what top_k left.
        total = line.sum() if s.top_k is not None else 1.0
        before = line.cumsum(-1) - line
        stays = int((before < s.top_p * total).sum()) if s.top_p < 1 else len(line)
        found.append(line[max(stays, 1) - 1])
    return torch.stack(found)[:, None]
