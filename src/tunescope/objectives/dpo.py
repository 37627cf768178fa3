"""Direct preference optimization: raise the chosen completion against the rejected one (Rafailov et al. 2023,
arXiv:2305.18290), without a reward model.

The policy is the base as customized; the reference is the same base as training found it: without a customization, or
with that of the entry that training starts from. So there is no second model, and the reference's log-probabilities
are computed once before training. SimPO and ORPO need no reference.

The *score* of a completion y is log π(y|x) - log π_ref(y|x), or its mean a token where ``length_normalize`` is set;
without a reference it is log π(y|x) / |y|. The implicit *reward* is β times the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from tunescope.data.batching import PairBatch
from tunescope.data.encoding import EncodedPreference
from tunescope.methods import Customized
from tunescope.objectives import losses
from tunescope.objectives.objective import Loss
from tunescope.objectives.preference import PreferenceObjective, completion_logprobs
from tunescope.objectives.reference import with_reference

_WITHOUT_REFERENCE = ("simpo", "orpo")
_SMOOTHED = ("sigmoid", "robust")


class DPO(PreferenceObjective):
    """Make chosen completions likelier than rejected ones, near the base."""

    name: ClassVar[str] = "dpo"

    loss: Literal["sigmoid", "ipo", "hinge", "robust", "rpo", "simpo", "orpo"] = "sigmoid"
    """Which loss: sigmoid is DPO's own; rpo learns the pairs' margins; simpo and orpo need no reference."""
    beta: float | None = Field(None, gt=0)
    """How strongly the reference holds (orpo: weight of the odds ratio). By default 0.1, and 2 for simpo."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the labels expected to be wrong: cDPO with loss sigmoid, unbiased with loss robust."""
    gamma: float | None = Field(None, ge=0)
    """Margin that simpo asks for. By default 1."""
    reward_scale: float | None = Field(None, gt=0)
    """What rpo multiplies the given margins by. By default 1."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the chosen completion's negative log-likelihood a token beside the loss; it keeps chosen likely."""
    length_normalize: bool = False
    """Score completions by their mean a token, not their sum."""

    @model_validator(mode="after")
    def _settings_of_the_loss(self) -> DPO:
        if self.label_smoothing and self.loss not in _SMOOTHED:
            raise ValueError(f"label_smoothing belongs to the losses sigmoid and robust, not to {self.loss}")
        if self.gamma is not None and self.loss != "simpo":
            raise ValueError(f"gamma belongs to the loss simpo, not to {self.loss}")
        if self.reward_scale is not None and self.loss != "rpo":
            raise ValueError(f"reward_scale belongs to the loss rpo, not to {self.loss}")
        if self.length_normalize and self.loss in _WITHOUT_REFERENCE:
            raise ValueError(f"length_normalize is part of the loss {self.loss} already: leave it out")
        if self.nll_weight and self.loss == "orpo":
            raise ValueError("nll_weight is 1 in the loss orpo, whose beta weighs the other part: leave it out")
        return self

    @property
    def uses_margins(self) -> bool:
        """Reward-aware preference optimization alone does."""
        return self.loss == "rpo"

    @property
    def strength(self) -> float:
        """β as it is used."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1

    def prepare(self, customized: Customized, examples: Sequence[EncodedPreference]) -> list[EncodedPreference]:
        """The rows with their completions' log-probabilities under the reference, where the loss has one."""
        if not self.compares:
            return list(examples)
        return with_reference(customized.origin, examples, customized.reference)

    def rewards(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> torch.Tensor:
        """β times the scores."""
        return self.strength * self._scores(completion_logprobs(customized.base, batch, hidden), batch)

    @property
    def compares(self) -> bool:
        """Whether completions are scored against a reference."""
        return self.loss not in _WITHOUT_REFERENCE

    def compute_loss(self, customized: Customized, batch: PairBatch, hidden: torch.Tensor) -> Loss:
        """The pairs' losses, a mean for each prompt, summed; with a reference also an estimate of the distance to it.

        ``kl`` is the mean over both completions of a pair of log π_ref(y|x) - log π(y|x), in nats a completion: where
        they were sampled from the reference, an estimate of KL(π_ref ‖ π).
        """
        logprobs = completion_logprobs(customized.base, batch, hidden)
        scores = self._scores(logprobs, batch)
        found = self._losses(scores[batch.pairs], batch.margins)
        weight = 1.0 if self.loss == "orpo" else self.nll_weight
        if weight:
            found = found - weight * (logprobs / batch.lengths)[batch.pairs[0]]
        measured = self.measured(self.strength * scores, batch)
        if self.compares:
            apart = (batch.reference - logprobs.detach())[batch.pairs].mean(dim=0)
            measured["kl"] = (batch.weights * apart).sum()
        return Loss((batch.weights * found).sum(), measured)

    def _scores(self, logprobs: torch.Tensor, batch: PairBatch) -> torch.Tensor:
        """[completions] from their log-probabilities."""
        return self.scores(logprobs, batch.lengths, batch.reference)

    def scores(self, logprobs: torch.Tensor, lengths: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """The completions' scores.

        Args:
            logprobs: [completions] log π(y|x) in nats.
            lengths: [completions] in tokens.
            reference: [completions] log π_ref(y|x) in nats; not read by a loss without a reference.
        """
        if not self.compares:
            return logprobs / lengths
        ratios = logprobs - reference
        return ratios / lengths if self.length_normalize else ratios

    def _losses(self, scores: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
        """[pairs] from the scores of the chosen and the rejected completions, [2, pairs]."""
        chosen, rejected = scores
        difference, beta = chosen - rejected, self.strength
        match self.loss:
            case "sigmoid":
                return losses.sigmoid_loss(difference, beta, self.label_smoothing)
            case "robust":
                return losses.robust_loss(difference, beta, self.label_smoothing)
            case "hinge":
                return losses.hinge_loss(difference, beta)
            case "ipo":
                return losses.ipo_loss(difference, beta)
            case "rpo":
                return losses.rpo_loss(difference, margins, beta, self.reward_scale or 1.0)
            case "simpo":
                return losses.simpo_loss(difference, beta, 1.0 if self.gamma is None else self.gamma)
            case "orpo":
                return beta * losses.odds_ratio_loss(chosen, rejected)
