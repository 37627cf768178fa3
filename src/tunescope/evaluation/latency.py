"""How long a user waits: to the first token, and for each one after it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tunescope.inference.generation import Decoder
from tunescope.inference.prefix import SharedBeginning
from tunescope.methods import Customized

_REPEATS, _NEW_TOKENS = 5, 16


@dataclass(frozen=True)
class Latency:
    """Medians over repeats of one request alone, in milliseconds, with the prompt's length in tokens."""

    ttft_ms: float
    ms_per_token: float
    prompt_tokens: int


def measure_latency(customized: Customized, prompts: Sequence[list[int]]) -> Latency:
    """Time the prompt of median length, one request at a time, after a request that warms up.

    The text generated does not matter and stop tokens are ignored: each repeat decodes the same number of tokens.
    """
    prompt = sorted(prompts, key=len)[len(prompts) // 2]
    room = customized.base.context_length - _NEW_TOKENS
    timed = [_time_one(customized, prompt[-room:]) for _ in range(_REPEATS + 1)][1:]
    first = statistics.median(ttft for ttft, _ in timed)
    rest = statistics.median(per_token for _, per_token in timed)
    return Latency(first * 1e3, rest * 1e3, len(prompt))


def _time_one(customized: Customized, prompt: list[int]) -> tuple[float, float]:
    with torch.inference_mode(), customized.active() as base:
        start = _now(base.device)
        decoder = Decoder(base, [prompt], SharedBeginning.of(base, [prompt]))
        token = decoder.step().argmax(-1)
        first = _now(base.device)
        for _ in range(_NEW_TOKENS - 1):
            decoder.append(token)
            token = decoder.step().argmax(-1)
        end = _now(base.device)
    return first - start, (end - first) / (_NEW_TOKENS - 1)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
