"""The vocabulary head on its own: log-probabilities of chosen tokens at chosen positions and the entropies there, a few
rows at a time.

A row of logits is as wide as the vocabulary (50,000 to 250,000 numbers), so the logits of all completions of a batch
are the largest tensors of training by far. Here no more than ``ROWS`` of them exist at once, forward and backward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# 256 rows of a 50,000-token vocabulary are 50 MB in float32.
ROWS = 256
# 16 of these rows in float32 are 3 MB: what is computed of them stays in the cache.
_CACHED_ROWS = 16
Logits = Callable[[torch.Tensor], torch.Tensor]


# The kind of device that tensors without values stand for.
_sketched: ContextVar[str] = ContextVar("sketched", default="cpu")


@contextmanager
def sketched_on(device: str) -> Iterator[None]:
    """Within this context tensors on ``meta`` are computed by the steps that this kind of device would take."""
    token = _sketched.set(device)
    try:
        yield
    finally:
        _sketched.reset(token)


def head_of(model: Any) -> Logits:
    """The part of a model after its last layer: hidden states [rows, hidden] to logits [rows, vocabulary].

    It is the model's own forward pass with the layers taken out, so that whatever the architecture does to its logits
    (soft caps, scales) is done by the model itself. Parameters are shared.
    """
    shell = copy.copy(model)
    shell._modules = {**model._modules, model.base_model_prefix: _NoLayers()}
    return lambda hidden: shell(inputs_embeds=hidden[None], use_cache=False).logits.squeeze(0)


def measure(
    head: Logits, moves: bool, hidden: torch.Tensor, targets: torch.Tensor, *, entropy: bool = False
) -> torch.Tensor:
    """Log-probability of each row's target, and the entropy of what the row predicts.

    Args:
        head: what ``head_of`` returns.
        moves: whether the head's own weights want gradients.
        hidden: [rows, hidden].
        targets: [rows] token ids.
        entropy: whether it is wanted: its gradient costs a second backward pass through a frozen head.

    Returns:
        [rows, 1] or, with the entropy, [rows, 2], in nats, float32.
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or moves):
        return _chunked(lambda h, t: _measured_fast(head(h), t, [None] * (1 + entropy)), hidden, targets)
    if moves:
        # The head's own gradient needs to know how much each row counts, which is known in the backward pass only.
        return _chunked(lambda h, t: checkpoint(_measured, head, h, t, entropy, use_reentrant=False), hidden, targets)
    return _FrozenHead.apply(head, hidden, targets, entropy)


def logprobs_at(head: Logits, hidden: torch.Tensor, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities where a row predicts any number of targets: each row's logits are computed once.

    Args:
        head: what ``head_of`` returns; nothing is kept for gradients.
        hidden: [rows, hidden].
        rows: [targets] the row of ``hidden`` after which each target comes.
        targets: [targets] token ids.

    Returns:
        [targets] in nats, float32.
    """
    found = torch.empty(len(targets), device=hidden.device)
    for begin in range(0, len(hidden), ROWS):
        logits = head(hidden[begin : begin + ROWS])
        here = ((rows >= begin) & (rows < begin + len(logits))).nonzero().squeeze(-1)
        own = rows[here] - begin
        found[here] = logits[own, targets[here]].float() - _summed(logits, [None])[0][own]
    return found


class _FrozenHead(torch.autograd.Function):
    """Each row has one or two outputs, so its gradient is a known vector an output, times a number that the backward
    pass brings: the vectors are computed while the row's logits are there, and nothing of the vocabulary's width is
    kept or repeated.
    """

    @staticmethod
    def forward(ctx: Any, head: Logits, hidden: torch.Tensor, targets: torch.Tensor, entropy: bool) -> torch.Tensor:
        slopes = hidden.new_empty(len(hidden), 1 + entropy, hidden.shape[1])
        room: list[torch.Tensor] = []  # the gradients of a chunk's logits, in memory that every chunk uses again

        def one(rows: torch.Tensor, wanted: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                logits = head(leaf)
            room[:] = room or [torch.empty_like(logits) for _ in range(1 + entropy)]
            gradients = [each[: len(logits)] for each in room]
            found = _measured_fast(logits.detach(), wanted, gradients)
            for number, gradient in enumerate(gradients):
                last = number == entropy
                own[:, number] = torch.autograd.grad(logits, leaf, gradient, retain_graph=not last)[0]
            return found

        found = _chunked(one, hidden, targets, slopes)
        ctx.save_for_backward(slopes)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, torch.Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return None, (slopes * grads[0][:, :, None]).sum(1).to(slopes.dtype), None, None


def _measured(head: Logits, hidden: torch.Tensor, targets: torch.Tensor, entropy: bool) -> torch.Tensor:
    logits = head(hidden).float()
    normalizer = logits.logsumexp(-1)
    found = [logits.gather(1, targets[:, None])[:, 0] - normalizer]
    if entropy:
        logs = logits - normalizer[:, None]
        found.append(-(logs.exp() * logs).sum(-1))
    return torch.stack(found, dim=1)


def _measured_fast(
    logits: torch.Tensor, targets: torch.Tensor, gradients: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """What ``_measured`` gives, of [rows, vocabulary] logits, in passes over memory that stays in a CPU's cache.

    Args:
        logits: without a graph.
        targets: [rows].
        gradients: one an output, filled with its gradient by the logits, in their precision; None for none.
    """
    normalizer, *entropies = _summed(logits, gradients)
    if gradients[0] is not None:
        gradients[0][torch.arange(len(logits), device=logits.device), targets] += 1
    return torch.stack((logits.gather(1, targets[:, None])[:, 0].float() - normalizer, *entropies), dim=1)


def _summed(logits: torch.Tensor, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """log Σ exp of each row [rows], and its entropy where there are two ``gradients``, in float32.

    With p = softmax(z) and the entropy H = -Σ p log p, the gradient of a target's log-probability by z is
    one-hot(target) - p, of which the first one of ``gradients`` is given -p; that of H is -p (log p + H).
    """
    device = logits.device.type if logits.device.type != "meta" else _sketched.get()
    rows = _CACHED_ROWS if device == "cpu" else len(logits)
    room = torch.empty(len(gradients), min(rows, len(logits)), logits.shape[1], device=logits.device)
    found: list[list[torch.Tensor]] = [[] for _ in gradients]
    for begin in range(0, len(logits), rows):
        part = logits[begin : begin + rows]
        shares = room[0, : len(part)].copy_(part)
        highest = shares.amax(1, keepdim=True)
        shares.sub_(highest)
        if len(gradients) > 1:
            logs = room[1, : len(part)].copy_(shares)
        total = shares.exp_().sum(1, keepdim=True)
        found[0].append((highest + total.log())[:, 0])
        if len(gradients) > 1:
            logs.sub_(total.log())  # log p
            shares.div_(total)  # p
            entropy = -torch.linalg.vecdot(shares, logs)
            found[1].append(entropy)
            if gradients[1] is not None:
                gradients[1][begin : begin + rows].copy_(logs.add_(entropy[:, None]).mul_(shares).neg_())
            total.fill_(1)
        if gradients[0] is not None:
            gradients[0][begin : begin + rows].copy_(shares.div_(-total))
    return [torch.cat(each) for each in found]


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
