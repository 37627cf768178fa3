"""How long a user waits: to the first token, and for each one after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunescope.base.device import synchronize
from tunescope.inference import Engine, Sampling
from tunescope.methods import Customized

_REPEATS, _NEW_TOKENS = 5, 16
_NAME = "timed"


@dataclass(frozen=True)
class Latency:
    """Medians over repeats of one request alone, in milliseconds, with the prompt's length in tokens.

    The prefix that every prompt of a customization has (virtual tokens, a system text, shots) is computed by the
    first request and kept, as in service; the repeats find it.
    """

    ttft_ms: float
    ms_per_token: float
    prompt_tokens: int


def measure_latency(customized: Customized, prompts: Sequence[list[int]]) -> Latency:
    """Time the prompt of median length, one request at a time, after a request that warms up.

    The text generated does not matter and stop tokens are ignored: each repeat decodes the same number of tokens.
    """
    prompt = sorted(prompts, key=len)[len(prompts) // 2]
    room = customized.base.context_length - _NEW_TOKENS
    engine = Engine(customized.base)
    engine.load(_NAME, customized)
    timed = [_time_one(engine, prompt[-room:]) for _ in range(_REPEATS + 1)][1:]
    first = statistics.median(ttft for ttft, _ in timed)
    rest = statistics.median(per_token for _, per_token in timed)
    return Latency(first * 1e3, rest * 1e3, len(prompt))


def _time_one(engine: Engine, prompt: list[int]) -> tuple[float, float]:
    device = engine.base.device
    start = _now(device)
    sampling = Sampling(max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS)
    ticket = engine.submit_ids(prompt, _NAME, sampling)
    while not ticket.tokens:
        engine.step()
    first = _now(device)
    while not ticket.done:
        engine.step()
    end = _now(device)
    return first - start, (end - first) / (_NEW_TOKENS - 1)


def _now(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()
