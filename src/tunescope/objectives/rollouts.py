"""What a round of policy optimization learns from: prompts with their samples, in lists, tensors and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from tunescope.base import Base
from tunescope.data.batching import Batch
from tunescope.data.encoding import Encoded
from tunescope.data.packing import Group, pack
from tunescope.data.rows import Row
from tunescope.methods import Customized
from tunescope.objectives.forward import in_passes, packed_hidden, target_logprobs, target_logprobs_and_entropy
from tunescope.team import this_team


@dataclass(frozen=True)
class Prompt(Encoded):
    """A prompt to sample from.

    Attributes:
        answer: what is known to be right, for rewards that ask for it; None where the row has none.
    """

    answer: str | None = None

    @property
    def row(self) -> Row:
        """The prompt as it was cut, and its answer."""
        return Row(self.messages, self.answer, self.number)


@dataclass(frozen=True)
class Rollout:
    """A prompt with its samples, as a round learns from them. Lists have an entry a sample, inner ones one a token.

    Attributes:
        number: the prompt's line in its file.
        prompt: token ids.
        completions: token ids, the stop token last where there is one.
        logprobs: under the policy that sampled, in nats.
        reference: under the reference.
        advantages: of each token.
        learned: whether the policy learns from the sample.
        values: of a critic when the samples were made; empty without one.
        returns: what the critic learns; empty without one.
    """

    number: int
    prompt: list[int]
    completions: list[list[int]]
    logprobs: list[list[float]]
    reference: list[list[float]]
    advantages: list[list[float]] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    values: list[list[float]] = field(default_factory=list)
    returns: list[list[float]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


@dataclass
class RolloutBatch(Batch):
    """Rollouts, one a group: the prompt once, behind it its samples. What has a number a token is flat, [targets].

    Attributes:
        old: log-probabilities under the policy that sampled.
        reference: log-probabilities under the reference.
        advantages: of each token.
        learned: [targets] whether the policy learns from the token.
        values: of the critic when the samples were made.
        returns: what the critic learns.
    """

    old: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    learned: torch.Tensor
    values: torch.Tensor
    returns: torch.Tensor

    @property
    def samples(self) -> int:
        """How many samples the policy learns from."""
        return sum(bool(each.any()) for each in self.learned.split(self.packed.lengths.tolist()))

    def sample_sums(self, values: torch.Tensor) -> torch.Tensor:
        """[samples] sums of what has a number a token."""
        return torch.stack([each.sum() for each in values.split(self.packed.lengths.tolist())])


@dataclass
class Round:
    """What a round sampled, padded on the right: [samples, tokens] with a mask; samples of one prompt lie together.

    Attributes:
        scores: [samples] the reward's.
        logprobs: under the policy.
        reference: under the reference.
        mask: True at tokens.
        finished: [samples] whether it ended with a stop token.
        beta: weight of the distance to the reference.
        n: samples a prompt.
    """

    scores: torch.Tensor
    logprobs: torch.Tensor
    reference: torch.Tensor
    mask: torch.Tensor
    finished: torch.Tensor
    beta: float
    n: int

    @property
    def kl(self) -> torch.Tensor:
        """[samples] log π(y) - log π_ref(y), in nats: its mean estimates KL(π ‖ π_ref)."""
        return (self.logprobs - self.reference).masked_fill(~self.mask, 0.0).sum(dim=1)


def collate_rollouts(examples: Sequence[Rollout]) -> RolloutBatch:
    """Rollouts packed, one a group: the prompt once, a branch a sample."""

    def flat(name: str) -> torch.Tensor:
        return torch.tensor([value for example in examples for each in getattr(example, name) for value in each])

    learned = [learns for e in examples for learns, ids in zip(e.learned, e.completions, strict=False) for _ in ids]
    return RolloutBatch(
        packed=pack([Group.of(each.prompt, each.completions) for each in examples], ends=False),
        rows=[example.number for example in examples],
        old=flat("logprobs"),
        reference=flat("reference"),
        advantages=flat("advantages"),
        learned=torch.tensor(learned, dtype=torch.bool),
        values=flat("values"),
        returns=flat("returns"),
    )


def padded(values: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists as [samples, tokens], zero behind their end, and the mask of what is there."""
    lengths = torch.tensor([len(each) for each in values])
    found = torch.zeros(len(values), int(lengths.max()))
    for row, each in enumerate(values):
        found[row, : len(each)] = torch.tensor(each)
    return found, torch.arange(found.shape[1]) < lengths[:, None]


def unpadded(values: torch.Tensor, mask: torch.Tensor, n: int) -> list[list[list[float]]]:
    """[samples, tokens] as lists, by prompt."""
    flat = [row[own].tolist() for row, own in zip(values, mask, strict=True)]
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def with_sample_advantages(rollouts: Sequence[Rollout], advantages: torch.Tensor) -> list[Rollout]:
    """The rollouts, in which every token of a sample has the sample's advantage, of [prompts, n]."""
    return [
        replace(each, advantages=[[a] * len(ids) for a, ids in zip(own, each.completions, strict=True)])
        for each, own in zip(rollouts, advantages.tolist(), strict=True)
    ]


@torch.no_grad()
def under_policy(customized: Customized, rollouts: Sequence[Rollout]) -> tuple[list[list[list[float]]], float]:
    """Log-probabilities of the samples under the policy, by prompt and sample, and its mean entropy a token."""
    entropies = [torch.empty(0, device=customized.base.device)]  # of this process's passes

    def measure(base: Base, batch: RolloutBatch) -> torch.Tensor:
        found, entropy = target_logprobs_and_entropy(base, batch.packed, packed_hidden(base, batch.packed))
        entropies.append(entropy)
        return found

    with customized.active() as base:
        found = by_sample(rollouts, lambda batch: measure(base, batch), base)
    own = torch.cat(entropies)
    sums = this_team().gathered([float(own.sum()), len(own)])
    return found, sum(total for total, _ in sums) / sum(count for _, count in sums)


@torch.no_grad()
def under_reference(customized: Customized, rollouts: Sequence[Rollout]) -> list[list[list[float]]]:
    """The same under the reference, to which virtual tokens that it does not have are unknown."""
    base, reference = customized.origin, customized.reference
    first = 0 if reference is None else -reference.template.virtual_tokens
    plain = [replace(each, prompt=[token for token in each.prompt if token >= first]) for each in rollouts]
    with base.use.untouched("The reference") if reference is None else reference.applied(base):
        return by_sample(
            plain, lambda batch: target_logprobs(base, batch.packed, packed_hidden(base, batch.packed)), base
        )


def by_sample(
    rollouts: Sequence[Rollout], compute: Callable[[RolloutBatch], torch.Tensor], base: Base
) -> list[list[list[float]]]:
    """What ``compute`` gives for the tokens of each sample, by prompt and sample; in passes of similar length, of which
    each process of a team takes its share.
    """

    def of_pass(indices: Sequence[int]) -> list[list[list[float]]]:
        own = [rollouts[i] for i in indices]
        batch = collate_rollouts(own).to(base.device)
        texts = iter(compute(batch).cpu().split(batch.packed.lengths.tolist()))
        return [[next(texts).tolist() for _ in each.completions] for each in own]

    return in_passes([len(each) for each in rollouts], of_pass)
