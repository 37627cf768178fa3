"""How often a customization prefers the better of two completions: one measure for all methods, prompts included.

What a completion is worth is what the objective says: a reward model's reward, or DPO's implicit one, which compares
its log-probability with that under the base as it is (``objectives.dpo``). So the base itself prefers neither of two,
and is right in half of the cases; what a system text or shots add counts as a trained customization does. Losses
without a reference (SimPO, ORPO) compare mean log-probabilities a token, of which the base has some of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunescope.data.encoding import Encoder
from tunescope.data.identity import row_keys
from tunescope.data.rankings import Preference, Ranking, untied
from tunescope.errors import DataError
from tunescope.inference import Item, score
from tunescope.inference.rewards import rewards_that_fit
from tunescope.methods import Customized
from tunescope.objectives import DPO, PreferenceObjective
from tunescope.objectives.reference import untouched

_Likelihoods = list[list[list[float]] | None]
"""Of each row, of each of its completions: log-probability in nats, and tokens."""


@dataclass(frozen=True)
class Scores:
    """How well a customization does on rows.

    Attributes:
        per_row: the score of each row that was measured; higher is better. Of a pair 1 or 0 for the better completion
            being worth more or less, half where both are equal; of a ranking the mean over its pairs.
        row_keys: which row each is of, by ``data.identity``.
        loss: settles which of two equal scores is better: the mean over pairs of -log σ(difference of the two), nats a
            pair, or nats per completion token. None where nothing does.
        notes: rows that were cut or did not fit.
    """

    per_row: list[float]
    row_keys: list[str]
    loss: float | None
    notes: list[str]

    @property
    def score(self) -> float:
        """The mean of ``per_row``."""
        return sum(self.per_row) / len(self.per_row)


class PreferenceMeter:
    """Pairs and rankings to measure customizations of one base on; what the base says of them is asked once.

    Args:
        objective: says what a completion is worth.
        rows: unseen ones.
        max_length: most tokens of prompt and completion, as in training.
    """

    def __init__(self, objective: PreferenceObjective, rows: Sequence[Preference], max_length: int | None) -> None:
        self._objective, self._rows, self._max_length = objective, list(rows), max_length
        self._keys = row_keys(rows)
        self._of_base: dict[str, _Likelihoods] = {}

    def measure(self, customized: Customized) -> Scores:
        """How often it prefers the better completion.

        Raises:
            DataError: no row fits, or there is no reward model.
        """
        worth = self._worth(customized)
        fitting = [i for i, values in enumerate(worth) if values is not None]
        if not fitting:
            raise DataError("No pair fits: every one was dropped. Shorten the completions or raise --max-length.")
        found = [_judged(self._rows[i], torch.tensor(worth[i], dtype=torch.float64)) for i in fitting]
        dropped = len(worth) - len(fitting)
        return Scores(
            per_row=[right for right, _ in found],
            row_keys=[self._keys[i] for i in fitting],
            loss=sum(loss for _, loss in found) / len(found),
            notes=[f"{dropped} of {len(worth)} rows did not fit and were left out."] if dropped else [],
        )

    def _worth(self, customized: Customized) -> list[list[float] | None]:
        """Of each row's completions, in order; None where they do not fit."""
        if not isinstance(self._objective, DPO):
            return self._rewards(customized)
        own = self._likelihoods(customized)
        its = self._base_likelihoods(customized) if self._objective.compares else own
        return [
            None if mine is None or base is None else self._implicit(self._objective, mine, base)
            for mine, base in zip(own, its, strict=True)
        ]

    @staticmethod
    def _implicit(objective: DPO, own: list[list[float]], base: list[list[float]]) -> list[float]:
        (logprobs, lengths), (reference, _) = torch.tensor(own).T, torch.tensor(base).T
        return [objective.strength * value for value in objective.scores(logprobs, lengths, reference).tolist()]

    def _rewards(self, customized: Customized) -> list[list[float] | None]:
        texts = [(row.messages, text) for row in self._rows for text in _completions(row)]
        found = iter(
            rewards_that_fit(
                customized, [prompt for prompt, _ in texts], [text for _, text in texts], max_length=self._max_length
            )
        )
        rewards = [[next(found) for _ in _completions(row)] for row in self._rows]
        return [None if None in own else [value for value in own if value is not None] for own in rewards]

    def _base_likelihoods(self, customized: Customized) -> _Likelihoods:
        base = untouched(customized)
        key = base.template.model_dump_json()
        if key not in self._of_base:
            self._of_base[key] = self._likelihoods(base)
        return self._of_base[key]

    def _likelihoods(self, customized: Customized) -> _Likelihoods:
        """Of each row's completions; None where they do not fit."""
        base = customized.base
        encoder = Encoder(
            base.tokenizer, customized.template, base.context_length, self._max_length, self._objective.cut
        )
        encoded = [next(iter(encoder.encode_pairs([row])), None) for row in self._rows]
        items = [Item(each.prompt, each.completions) for each in encoded if each is not None]
        found = iter(score(customized, items))
        return [
            None if each is None else [[value.logprob, float(value.tokens)] for value in next(found)]
            for each in encoded
        ]


def _completions(row: Preference) -> tuple[str, ...]:
    return row.responses if isinstance(row, Ranking) else (row.chosen, row.rejected)


def _judged(row: Preference, worth: torch.Tensor) -> tuple[float, float]:
    """The share of a row's pairs that are told right, and their mean loss."""
    pairs = untied(row.ranks) if isinstance(row, Ranking) else [(0, 1)]
    better, worse = torch.tensor(pairs).T
    apart = worth[better] - worth[worse]
    right = (apart > 0).double() + (apart == 0).double() / 2
    return float(right.mean()), float(-torch.nn.functional.logsigmoid(apart).mean())
