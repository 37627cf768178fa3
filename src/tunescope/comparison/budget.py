"""How many training steps a stretch of time pays for, found by running a few."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from tunescope.base import Base
from tunescope.data.batching import BatchOrder
from tunescope.data.rows import Row
from tunescope.data.template import Encoder, default_template
from tunescope.methods import Method
from tunescope.objectives import SFT
from tunescope.training import TrainSettings, train
from tunescope.training.loop import total_steps

# The first step of a trial is slower (allocations, warm caches) and is not counted.
_TRIAL_STEPS = 3
# Fewer steps than this teach nothing worth a row in the table.
_FEWEST_STEPS = 10


def affordable_steps(
    base: Base,
    method: Method,
    rows: Sequence[Row],
    settings: TrainSettings,
    seconds: float,
    *,
    pattern: str | None,
    style: str,
) -> int:
    """Steps that ``seconds`` pay for, trial included; at most as many as the epochs take, 0 if too few to be of use.

    The trial gives seconds a computed token; the batches to come are known, so their tokens are counted, not guessed.
    """
    trial = settings.model_copy(update={"max_steps": _TRIAL_STEPS})
    result = train(base, method, data=rows, settings=trial, pattern=pattern, style=style).result
    template = method.prompt(default_template(base.tokenizer, style=style), rows, None, settings.seed)
    examples = SFT().examples(rows, Encoder(base.tokenizer, template, base.context_length, settings.max_length))
    most = total_steps(settings, len(examples))
    tokens = _padded_tokens(BatchOrder.of(examples, settings.batch_size, settings.seed), most)
    per_token = (result.times[-1] - result.times[0]) / sum(tokens[1:_TRIAL_STEPS])
    used = list(accumulate((count * per_token for count in tokens), initial=result.seconds))
    steps = bisect_right(used, seconds) - 1
    return steps if steps >= min(_FEWEST_STEPS, most) else 0


def _padded_tokens(order: BatchOrder, steps: int) -> list[int]:
    """Tokens computed in each of the first ``steps`` steps."""
    epochs = range(-(-steps // order.batches_per_epoch))
    batches = [batch for epoch in epochs for batch in order.epoch(epoch)]
    return [len(batch) * max(order.lengths[i] for i in batch) for batch in batches[:steps]]
