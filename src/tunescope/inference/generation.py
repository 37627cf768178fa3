"""Free generation: greedy or sampled, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field

from tunescope.base import Base
from tunescope.data.rows import Message
from tunescope.data.template import Encoder
from tunescope.errors import DataError
from tunescope.inference.prefix import SharedBeginning
from tunescope.methods import Customized
from tunescope.settings import Settings

_BATCH = 16


class Sampling(Settings):
    """How the next token is chosen."""

    max_new_tokens: int = Field(128, gt=0)
    """Most tokens to generate for a prompt."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token; higher values sample more freely."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together have this probability."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the sampling."""


@dataclass(frozen=True)
class Generated:
    """One generated text.

    Attributes:
        text: without the stop token.
        tokens: ids, the stop token included when there was one.
        finished: whether it ended by a stop token and not by the limit.
    """

    text: str
    tokens: list[int]
    finished: bool


def generate(
    customized: Customized,
    prompts: Sequence[str | Sequence[Message]],
    sampling: Sampling | None = None,
    *,
    on_row: Callable[[int], None] = lambda count: None,
) -> list[Generated]:
    """Answer prompts under the customization's template.

    Args:
        customized: what to run.
        prompts: texts, or lists of chat messages.
        sampling: greedy with at most 128 tokens by default.
        on_row: told how many rows each batch finished.

    Raises:
        DataError: a prompt that does not fit the context, by its number.
    """
    sampling = sampling or Sampling()
    encoder = Encoder(customized.base.tokenizer, customized.template, customized.base.context_length)
    encoded = []
    for number, prompt in enumerate(prompts, start=1):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        ids = encoder.prompt_ids(messages)
        room = customized.base.context_length - len(ids)
        if room < sampling.max_new_tokens:
            raise DataError(
                f"Prompt {number} has {len(ids)} tokens: with {sampling.max_new_tokens} new ones it exceeds the base's "
                f"context of {customized.base.context_length}. Shorten it or lower --max-new-tokens."
            )
        encoded.append(ids)
    return generate_ids(customized, encoded, sampling, on_row=on_row)


def generate_ids(
    customized: Customized,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    *,
    on_row: Callable[[int], None] = lambda count: None,
) -> list[Generated]:
    """Answer prompts given as token ids; see ``generate``."""
    results: list[Generated | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    generator = torch.Generator(customized.base.device).manual_seed(sampling.seed)
    stop = set(customized.template.stop)
    with torch.inference_mode(), customized.active() as base:
        beginning = SharedBeginning.of(base, prompts)
        for begin in range(0, len(order), _BATCH):
            indices = order[begin : begin + _BATCH]
            decoded = _decode(base, [prompts[i] for i in indices], beginning, sampling, stop, generator)
            for i, tokens in zip(indices, decoded, strict=True):
                finished = bool(tokens) and tokens[-1] in stop
                text = base.tokenizer.decode(tokens[:-1] if finished else tokens, skip_special_tokens=True)
                results[i] = Generated(text, tokens, finished)
            on_row(len(indices))
    return [result for result in results if result is not None]


class Decoder:
    """Prompts under way, side by side, padded on the left so that they grow at the same end.

    What they share stands before the padding, where the mask and the positions make it the same as after it.
    """

    def __init__(self, base: Base, prompts: Sequence[list[int]], beginning: SharedBeginning) -> None:
        self.base = base
        shared, length = beginning.tokens, max(map(len, prompts)) - beginning.tokens
        self.ids = torch.zeros(len(prompts), length, dtype=torch.long, device=base.device)
        mask = torch.zeros_like(self.ids)
        for row, prompt in enumerate(prompts):
            own = len(prompt) - shared
            self.ids[row, length - own :] = torch.tensor(prompt[shared:], device=base.device)
            mask[row, length - own :] = 1
        self.mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
        self.cache = beginning.cache(len(prompts))

    def step(self) -> torch.Tensor:
        """Logits [rows, vocabulary] of the next token of each row."""
        keep = torch.zeros_like(self.ids, dtype=torch.bool)
        keep[:, -1] = True
        return self.base.forward(self.ids, self.mask, keep=keep, cache=self.cache)

    def append(self, tokens: torch.Tensor) -> None:
        """Go on with ``tokens`` [rows]."""
        self.ids = tokens[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], dim=1)


def _decode(
    base: Base,
    prompts: list[list[int]],
    beginning: SharedBeginning,
    sampling: Sampling,
    stop: set[int],
    generator: torch.Generator,
) -> list[list[int]]:
    decoder = Decoder(base, prompts, beginning)
    written: list[list[int]] = [[] for _ in prompts]
    for _ in range(sampling.max_new_tokens):
        chosen = choose(decoder.step(), sampling, generator)
        for tokens, token in zip(written, chosen.tolist(), strict=True):
            if not tokens or tokens[-1] not in stop:
                tokens.append(token)
        if all(tokens[-1] in stop for tokens in written):
            break
        decoder.append(chosen)
    return written


def choose(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    """The next token of each row, [rows], from ``logits`` [rows, vocabulary]."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, indices = probabilities.sort(dim=-1, descending=True)
        # A token stays while the likelier ones together have not reached top_p; the likeliest always stays.
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter_(-1, indices, ordered)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
