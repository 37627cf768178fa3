"""The vocabulary head on its own: log-probabilities of chosen tokens at chosen positions, a few rows at a time.

A row of logits is as wide as the vocabulary (50,000 to 250,000 numbers), so the logits of all completions of a batch
are the largest tensors of training by far. Here no more than ``ROWS`` of them exist at once, forward and backward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# 256 rows of a 50,000-token vocabulary are 50 MB in float32.
ROWS = 256
# 16 of these rows in float32 are 3 MB: what is computed of them stays in the cache.
_CACHED_ROWS = 16

Logits = Callable[[torch.Tensor], torch.Tensor]


def head_of(model: Any) -> Logits:
    """The part of a model after its last layer: hidden states [rows, hidden] to logits [rows, vocabulary].

    It is the model's own forward pass with the layers taken out, so that whatever the architecture does to its logits
    (soft caps, scales) is done by the model itself. Parameters are shared.
    """
    shell = copy.copy(model)
    shell._modules = {**model._modules, model.base_model_prefix: _NoLayers()}
    return lambda hidden: shell(inputs_embeds=hidden[None], use_cache=False).logits.squeeze(0)


def logprobs(head: Logits, moves: bool, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of each row's target.

    Args:
        head: what ``head_of`` returns.
        moves: whether the head's own weights want gradients.
        hidden: [rows, hidden].
        targets: [rows] token ids.

    Returns:
        [rows] in nats, float32.
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or moves):
        return _chunked(lambda h, t: _picked_fast(head(h), t, None), hidden, targets)
    if moves:
        # The head's own gradient needs to know how much each row counts, which is known in the backward pass only.
        return _chunked(lambda h, t: checkpoint(_picked, head, h, t, use_reentrant=False), hidden, targets)
    return _FrozenHead.apply(head, hidden, targets)


class _FrozenHead(torch.autograd.Function):
    """Each row has one output, so its gradient is a known vector times a number that the backward pass brings: the
    vectors are computed while the row's logits are there, and nothing of the vocabulary's width is kept or repeated.
    """

    @staticmethod
    def forward(ctx: Any, head: Logits, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        slopes = torch.empty_like(hidden)
        room: list[torch.Tensor] = []  # the gradient of a chunk's logits, in memory that every chunk uses again

        def one(rows: torch.Tensor, wanted: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                logits = head(leaf)
            room[:] = room or [torch.empty_like(logits)]
            gradient = room[0][: len(logits)]
            found = _picked_fast(logits.detach(), wanted, gradient)
            slope.copy_(torch.autograd.grad(logits, leaf, gradient)[0])
            return found

        found = _chunked(one, hidden, targets, slopes)
        ctx.save_for_backward(slopes)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return None, (slopes * grads[0][:, None]).to(slopes.dtype), None


def _picked(head: Logits, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = head(hidden).float()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def _picked_fast(logits: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor:
    """What ``_picked`` gives, of [rows, vocabulary] logits, in passes over memory that stays in a processor's cache.

    Args:
        logits: without a graph.
        targets: [rows].
        gradient: filled with that of the result by the logits, one-hot(target) - softmax(logits), in their precision.
    """
    picked = logits.gather(1, targets[:, None]).float()
    rows = _CACHED_ROWS if logits.device.type == "cpu" else len(logits)
    room = torch.empty(min(rows, len(logits)), logits.shape[1], device=logits.device)
    normalizers = []
    for begin in range(0, len(logits), rows):
        part = logits[begin : begin + rows]
        shares = room[: len(part)].copy_(part)
        highest = shares.amax(1, keepdim=True)
        total = shares.sub_(highest).exp_().sum(1, keepdim=True)
        normalizers.append(highest + total.log())
        if gradient is not None:
            gradient[begin : begin + rows].copy_(shares.div_(-total))
    if gradient is not None:
        gradient[torch.arange(len(logits), device=logits.device), targets] += 1
    return (picked - torch.cat(normalizers))[:, 0]


def _chunked(function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    chunks = zip(*(tensor.split(ROWS) for tensor in tensors), strict=True)
    return torch.cat([function(*chunk) for chunk in chunks])


class _NoLayers(nn.Module):
    """Stands where a model has its layers and gives back what it is given."""

    @property
    def decoder(self) -> _NoLayers:
        """OPT asks for its decoder."""
        return self

    def forward(self, *_args: Any, inputs_embeds: torch.Tensor, **_kwargs: Any) -> _Passed:
        """The embeddings as the last hidden state."""
        return _Passed(inputs_embeds)


class _Passed:
    """The output of no layers; what else an architecture asks it for is None."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, _index: int) -> torch.Tensor:
        return self.last_hidden_state

    def __getattr__(self, _name: str) -> None:
        return None
