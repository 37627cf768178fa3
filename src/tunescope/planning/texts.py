"""What a run would learn from, before there is a model: texts as tokens, made the examples of each objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunescope.data.batching import Batch, BatchOrder
from tunescope.data.encoding import Encoded, EncodedPair, Encoder
from tunescope.data.rankings import EncodedRanking, is_preferences
from tunescope.data.reading import Table
from tunescope.data.rows import to_rows
from tunescope.errors import DataError
from tunescope.objectives import DPO, Attributes, Objective, PolicyObjective, PreferenceObjective, Rollout
from tunescope.objectives.attributes import EncodedRated
from tunescope.team import Team
from tunescope.training import TrainSettings

# Batches of an epoch that are laid out to find the largest, and to find what they are like on average.
_LOOKED_AT = 8
# Prompts that stand for all prompts of a policy.
_PROMPTS = 512
_ID = 5  # any token: what a pass needs does not depend on which

Example = Encoded | EncodedPair | EncodedRanking


@dataclass(frozen=True)
class Load:
    """What steps of a run compute.

    Attributes:
        largest: the part of a step that computes the most tokens.
        tokens: that a step computes on average.
        steps: of the run, or of a round where there are several.
        spread: how far the smallest step is from the largest, 0 to 1; 1 where other work is done between steps.
    """

    largest: Batch
    tokens: float
    steps: int
    spread: float


@dataclass(frozen=True)
class Texts:
    """Data as tokens.

    Attributes:
        all: rows, prompts alone, or comparisons of several answers.
        kind: which of these they are.
        name: of the data.
        cut: what long prompts lost, as ``Objective.cut``; None where none was too long.
    """

    all: Sequence[Example]
    kind: Literal["rows", "prompts", "comparisons"]
    name: str
    cut: str | None = None

    @classmethod
    def of(cls, table: Table, encoder: Encoder, pattern: str | None, skip_bad: int) -> Texts:
        """The rows of a table that fit.

        Raises:
            DataError: rows that do not fit their columns, or none that fits the context.
        """
        if is_preferences(table):
            kind: Literal["rows", "prompts", "comparisons"] = "comparisons"
            found: Sequence[Example] = encoder.encode_pairs(DPO().rows(table, pattern, skip_bad))
        else:
            rows = to_rows(table, pattern, skip_bad=skip_bad, need_completion=False)
            kind = "rows" if all(row.completion is not None or row.tool_calls for row in rows) else "prompts"
            found = encoder.encode_all(rows)
        if not found:
            raise DataError(f"{table.name}: no row is left, none fits. Raise --max-length or shorten the completions.")
        return cls(found, kind, table.name, encoder.cut if encoder.truncated else None)

    @classmethod
    def made_up(cls, rows: int, length: int, *, compared: bool) -> Texts:
        """Texts of one length, half of it the prompt.

        Args:
            rows: how many.
            length: tokens of a text: of a row, and of a prompt with either of its answers.
            compared: whether each prompt has two answers.
        """
        prompt, answer = [_ID] * (length // 2), [_ID] * (length - length // 2)
        # Their first tokens differ, so that they share no prefix which is computed once.
        prompts = [[number % 97 + _ID, *prompt[1:]] for number in range(rows)]
        other = [_ID + 1, *answer[1:]]
        name = f"{rows} texts of {length} tokens"
        if compared:
            pairs = [EncodedPair(own, answer, other, number=number) for number, own in enumerate(prompts, 1)]
            return cls(pairs, "comparisons", name)
        return cls([Encoded(own, answer, number=n) for n, own in enumerate(prompts, 1)], "rows", name)

    def fit(self, objective: Objective) -> bool:
        """Whether an objective can learn from them, as they were cut."""
        if self.cut not in (None, objective.cut):
            return False
        if isinstance(objective, PolicyObjective):
            return True
        return self.kind == ("comparisons" if isinstance(objective, PreferenceObjective) else "rows")


def examples_for(objective: Objective, texts: Sequence[Example], virtual: Sequence[int]) -> list[Any]:
    """Texts as this objective's examples, as they are once everything that is known before a step is known.

    Args:
        objective: that takes such texts.
        texts: rows, or comparisons.
        virtual: the method's virtual tokens, which stand before each prompt.
    """
    found = [replace(text, prompt=[*virtual, *text.prompt]) for text in _some(objective, texts)]
    if isinstance(objective, PolicyObjective):
        return [_rollout(text, objective.n, objective.max_new_tokens) for text in found]
    if isinstance(objective, Attributes):
        values = (0.0,) * len(objective.columns)
        return [EncodedRated(**vars(text), values=values) for text in found if isinstance(text, Encoded)]
    if isinstance(objective, PreferenceObjective):
        compared = [text for text in found if not isinstance(text, Encoded)]
        return [replace(text, reference=(0.0,) * len(text.completions)) for text in compared]
    return list(found)


def load_of(
    objective: Objective, examples: Sequence[Any], settings: TrainSettings, steps: int, processes: int = 1
) -> Load:
    """The largest part of a step, and the average step; of several processes the first one's, which has the longest.

    Args:
        objective: lays examples out.
        examples: all of them.
        settings: sizes of steps and parts.
        steps: of the run or round.
        processes: that share each step's rows.
    """
    lengths, first = [len(each) for each in examples], Team(0, processes)
    order = [
        first.share_by_length(batch, lengths.__getitem__)
        for batch in BatchOrder.of(examples, settings.batch_size, settings.seed).epoch(0)
    ]
    by_size = sorted(order, key=lambda batch: len(batch) * max(lengths[i] for i in batch), reverse=True)
    largest = max(
        (part for batch in by_size[:_LOOKED_AT] for part in _parts(objective, examples, batch, settings)),
        key=lambda part: part.packed.computed,
    )
    usual = order[:: max(1, len(order) // _LOOKED_AT)]
    computed = [sum(p.packed.computed for p in _parts(objective, examples, batch, settings)) for batch in usual]
    policy = isinstance(objective, PolicyObjective)
    spread = 1.0 if policy else 1 - min(computed) / max(*computed, largest.packed.computed)
    return Load(largest, sum(computed) / len(computed), steps, spread)


def _parts(objective: Objective, examples: Sequence[Any], batch: Sequence[int], settings: TrainSettings) -> list[Batch]:
    size = -(-len(batch) // settings.accumulate)
    cuts = [batch[i : i + size] for i in range(0, len(batch), size)]
    return [objective.collate([examples[i] for i in cut]) for cut in cuts]


def _some(objective: Objective, texts: Sequence[Example]) -> Sequence[Example]:
    """All texts; of a policy's prompts the longest, as a round may have any."""
    if not isinstance(objective, PolicyObjective):
        return texts
    return sorted(texts, key=lambda text: len(text.prompt), reverse=True)[:_PROMPTS]


def _rollout(text: Example, n: int, tokens: int) -> Rollout:
    """A prompt with ``n`` samples, each as long as may be."""
    numbers = [[0.0] * tokens for _ in range(n)]
    samples = [[_ID] * tokens for _ in range(n)]
    return Rollout(text.number, text.prompt, samples, numbers, numbers, numbers, [True] * n, numbers, numbers)
