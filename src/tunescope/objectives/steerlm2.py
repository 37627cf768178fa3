"""SteerLM 2: learn, from one's own samples, to write what has the attributes that are asked for (Wang et al. 2024,
arXiv:2406.08673, section 4.2).

The best policy for attributes a is Bayes' rule over answers,

    P(y | a, x)  ∝  P(a | x, y) P(y | x),

an attribute model's likelihood times a prior that knows of no attributes. Of n samples of the policy Q' each gets a
target weight, and its weight under the policy Q that is trained:

    w_i  ∝  P(a | x, y_i) P(y_i | x) / Q'(y_i | a, x)        b_i  ∝  Q(y_i | a, x) / Q'(y_i | a, x)

both normalized over the n. The loss is KL(w ‖ b), whose gradient is -Σ (w_i - b_i) ∇ log Q(y_i | a, x).

``--reward`` names the attribute model. Its likelihood is a Gaussian about each of its values, as wide as its errors on
held-out rows (``tunescope eval``). What is asked for stands in the rows' ``--steer-columns``, or is the policy's
default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import PrivateAttr

from tunescope.data.attributes import KEY, AttributeNames, Columns
from tunescope.data.encoding import Encoder
from tunescope.data.reading import Table
from tunescope.data.rows import Row, to_rows
from tunescope.errors import TrainingError
from tunescope.methods import Customized
from tunescope.objectives.objective import Services
from tunescope.objectives.policy import PolicyObjective
from tunescope.objectives.policy_losses import target_weight_loss
from tunescope.objectives.rollouts import (
    Prompt,
    Rollout,
    RolloutBatch,
    Round,
    under_policy,
    with_sample_advantages,
)
from tunescope.settings import Shown


class SteerLM2(PolicyObjective):
    """Make what has the asked attributes as likely as Bayes' rule says."""

    name: ClassVar[str] = "steerlm2"
    needs_several: ClassVar[bool] = True

    steer_columns: AttributeNames = ()
    """Columns with the attributes to ask for; the policy's defaults where there are none."""
    steer_low: int = 0
    """The least value in the columns."""
    steer_high: int = 4
    """The greatest value in the columns."""
    prior: Annotated[str | None, Shown("BANK/NAME")] = None
    """An entry that answers without attributes, P(y | x): the SFT model that the policy could have been; by default the
    base."""

    _prompts: list[Prompt] = PrivateAttr(default_factory=list)

    def rows(
        self, table: Table, pattern: str | None, skip_bad: int, on_note: Callable[[str], None] = lambda note: None
    ) -> list[Row]:
        """Prompts, and what is asked for."""
        columns = Columns(self.steer_columns, self.steer_low, self.steer_high) if self.steer_columns else None
        return to_rows(table, pattern, skip_bad=skip_bad, need_completion=False, on_note=on_note, attributes=columns)

    @property
    def optional(self) -> tuple[str, ...]:
        """The columns of the attributes, and the one that holds objects of them."""
        return (*self.steer_columns, KEY) if self.steer_columns else ()

    def examples(self, rows: Sequence[Row], encoder: Encoder) -> list[Prompt]:
        """The prompts that leave room for a sample.

        Raises:
            DataError: a prompt that leaves none, or asks for what the policy was not trained on.
            TrainingError: a policy that was not trained on attributes.
        """
        steering = encoder.template.steering
        if steering is None:
            raise TrainingError(
                "steerlm2 goes on from a policy that was trained on attributes: name an entry of sft --steer-columns "
                "with --from, or with --continue."
            )
        if encoder.template.style == "plain":
            raise TrainingError(
                "steerlm2 needs a base with a chat template: in plain style an answer joins its prompt otherwise "
                "behind a line of attributes than without one."
            )
        asked = [row.with_attributes(steering.asked({n: round(v) for n, v in row.attributes.items()})) for row in rows]
        return super().examples(asked, encoder)

    def collect(
        self, number: int, customized: Customized, examples: Sequence[Prompt], services: Services
    ) -> list[Rollout]:
        """A round, whose prompts the prior answers too."""
        self._prompts = self._prompts_of(number, examples)
        return super().collect(number, customized, examples, services)

    def estimate(self, found: Round, rollouts: list[Rollout], services: Services) -> list[Rollout]:
        """The target weights w, a sample's at each of its tokens, where others have advantages."""
        if services.prior is None:
            raise TrainingError("SteerLM 2 needs a prior beside the policy: train it with tunescope.train.")
        base, template = services.prior.base, services.prior.template
        encoder = Encoder(base.tokenizer, template, base.context_length)
        unasked = [
            replace(each, prompt=encoder.prompt(prompt.messages).ids)
            for each, prompt in zip(rollouts, self._prompts, strict=True)
        ]
        prior = torch.tensor([sum(nats) for each in under_policy(services.prior, unasked)[0] for nats in each])
        own = found.logprobs.masked_fill(~found.mask, 0.0).sum(dim=1)
        logits = (found.scores + prior - own).view(-1, self.n)
        if self.missing_stop == "mask":
            logits = logits.masked_fill(~found.finished.view(-1, self.n), -torch.inf)
        weights = logits.softmax(dim=1).nan_to_num()  # of a prompt without a finished sample nothing is learned
        learned = weights[weights.sum(dim=1) > 0]
        self._observed["effective_samples"] = float((1 / learned.square().sum(dim=1)).mean()) if len(learned) else 0.0
        return with_sample_advantages(rollouts, weights)

    def weight(self, batch: RolloutBatch) -> int:
        """Prompts."""
        return len(batch.rows)

    def policy_loss(self, logprobs: torch.Tensor, batch: RolloutBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(target ‖ policy) over the samples of each prompt, summed; nothing is clipped."""
        lengths = batch.packed.lengths
        first = lengths.cumsum(0) - lengths
        moved = (batch.sample_sums(logprobs) - batch.sample_sums(batch.old)).view(-1, self.n)
        learned = batch.learned[first].view(-1, self.n)
        found = target_weight_loss(batch.advantages[first].view(-1, self.n), moved, learned)
        return found.sum(), torch.zeros_like(batch.learned)
