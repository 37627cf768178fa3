"""How the next token is chosen, for all rows of a batch at once and for each by its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field, model_validator

from tunescope.settings import Settings

# How many of the likeliest tokens are sorted first where top-p needs an order; all of them only where these do not do.
_SORTED = 1024


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
        written: how many of these were generated.
    """

    sampling: Sampling
    sample: int = 0
    stop: frozenset[int] = frozenset()
    seen: set[int] = field(default_factory=set)
    written: int = 0

    def __post_init__(self) -> None:
        # Each row has a generator of its own: what it draws does not depend on who is beside it.
        seed = (self.sampling.seed + self.sample * 1_000_003) % 2**63
        self._generator = torch.Generator().manual_seed(seed)

    def took(self, token: int) -> None:
        """The text goes on with ``token``."""
        self.seen.add(token)
        self.written += 1

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
    tokens = adjusted.max(-1).indices  # argmax of bfloat16 is four times as slow
    sampled = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
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
    return logits


def _sample(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """Draw by inverting the distribution function: one uniform number a row, whoever else is in the batch.

    The cuts act in the usual order: top-k, then top-p of what is left, then min-p.
    """

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    settings = [draw.sampling for draw in draws]
    probabilities = torch.softmax(logits.float() / column([s.temperature for s in settings]), dim=-1)
    least = probabilities.amax(-1, keepdim=True) * column([s.min_p for s in settings])
    if any(s.top_k is not None or s.top_p < 1 for s in settings):
        least = torch.maximum(least, _threshold(probabilities, settings))
    kept = torch.where(probabilities >= least, probabilities, 0).double().cumsum(-1)
    uniform = torch.tensor([draw.uniform() for draw in draws], dtype=torch.float64, device=logits.device)
    drawn = torch.searchsorted(kept, (uniform * kept[:, -1])[:, None], right=True).squeeze(-1)
    # A product that rounds up to the total would point behind the last token that can be drawn.
    last = (kept >= kept[:, -1:]).to(torch.uint8).argmax(-1)
    return torch.minimum(drawn, last)


def _threshold(probabilities: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """[rows, 1] the least probability that top-k and top-p leave."""
    vocabulary = probabilities.shape[-1]
    most = max([s.top_k or 0 for s in settings])
    ordered = probabilities.topk(min(max(_SORTED, most), vocabulary), dim=-1).values
    if not _reaches(ordered, settings):
        ordered = probabilities.sort(dim=-1, descending=True).values
    found = []
    for row, s in enumerate(settings):
        line = ordered[row, : s.top_k] if s.top_k is not None else ordered[row]
        # A token stays while the likelier ones together have not reached top_p of what top_k left.
        total = line.sum() if s.top_k is not None else 1.0
        before = line.cumsum(-1) - line
        stays = int((before < s.top_p * total).sum()) if s.top_p < 1 else len(line)
        keeps_all = s.top_k is None and s.top_p == 1
        found.append(ordered.new_zeros(()) if keeps_all else line[max(stays, 1) - 1])
    return torch.stack(found)[:, None]


def _reaches(ordered: torch.Tensor, settings: Sequence[Sampling]) -> bool:
    """Whether the sorted tokens are enough for every row's top-p."""
    together = ordered.sum(-1).tolist()
    return all(
        s.top_p == 1 or s.top_k is not None or total >= s.top_p for s, total in zip(settings, together, strict=True)
    )
