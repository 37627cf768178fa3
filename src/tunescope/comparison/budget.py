"""How many training steps a stretch of time pays for, found by running a few."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tunescope.base import Base
from tunescope.data.batching import BatchOrder
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.methods import Method
from tunescope.objectives import SFT
from tunescope.training import TrainSettings, train
from tunescope.training.learner import steps_of_round

# The first steps of a trial are slower (fresh memory, cold caches) and are not counted.
_TRIAL_STEPS, _WARM_UP = 4, 2
# Fewer steps than this teach nothing worth a row in the table.
_FEWEST_STEPS = 10
# Rows whose lengths stand for all: their mean is within a few percent, the machine's speed is not.
_SAMPLE = 512


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

    Rows for fewer batches than a trial takes need no trial: whatever they cost is little.
    """
    most = steps_of_round(settings, len(rows))
    if len(rows) < _TRIAL_STEPS * settings.batch_size:
        return most
    sample = random.Random(settings.seed).sample(list(rows), min(_SAMPLE, len(rows)))
    trial = settings.model_copy(update={"max_steps": _TRIAL_STEPS})
    result = train(base, method, data=sample, settings=trial, pattern=pattern, style=style).result
    template = method.prompt(default_template(base.tokenizer, style=style), sample, None, settings.seed)
    examples = SFT().examples(sample, Encoder(base.tokenizer, template, base.context_length, settings.max_length))
    order = BatchOrder.of(examples, settings.batch_size, settings.seed)
    tokens = [len(batch) * max(order.lengths[i] for i in batch) for batch in order.epoch(0)]
    per_token = (result.times[-1] - result.times[_WARM_UP - 1]) / sum(tokens[_WARM_UP:_TRIAL_STEPS])
    per_step = per_token * sum(tokens) / len(tokens)
    steps = min(int((seconds - result.seconds) / per_step), most)
    return steps if steps >= min(_FEWEST_STEPS, most) else 0
