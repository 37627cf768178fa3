"""Hand-made comparisons: rows with chosen scores, and a whole one with realistic numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tunescope.comparison.recommendation import advise
from tunescope.comparison.results import BaseInfo, Comparison, DataInfo, MachineInfo, MethodResult, Probe
from tunescope.evaluation.statistics import wilson_interval

TEST_ROWS = 400


def answers(accuracy: float, rows: int = TEST_ROWS, seed: int = 0) -> list[float]:
    """0/1 per row with exactly that accuracy. Harder rows go wrong first, so methods agree as real ones do."""
    hardness = np.random.default_rng(99).random(rows) + 0.25 * np.random.default_rng(seed).random(rows)
    right = np.ones(rows)
    right[np.argsort(hardness)[round(accuracy * rows) :]] = 0
    return [float(value) for value in right]


def keys(rows: int) -> list[str]:
    """The keys of that many test rows."""
    return [f"{i}-0" for i in range(rows)]


def make_row(
    method: str, accuracy: float | None = None, rows: int = TEST_ROWS, seed: int = 0, **fields: Any
) -> MethodResult:
    """A row named after its method, with score, interval and per-row scores of that accuracy."""
    if accuracy is None:
        return MethodResult(**{"method": method, "name": method, **fields})
    per_row = answers(accuracy, rows, seed)
    interval = wilson_interval(sum(per_row), rows)
    given = {
        "method": method,
        "name": method,
        "score": sum(per_row) / rows,
        "score_low": interval.low,
        "score_high": interval.high,
        "accuracy": sum(per_row) / rows,
        "per_row": per_row,
        "row_keys": keys(rows),
        "trainable_parameters": 0,
        "seconds": 0.0,
        "forgetting_on": 0.0,
        "forgetting_off": 0.0,
        "ttft_ms": 50.0,
        "ms_per_token": 20.0,
        "extra_prompt_tokens": 0,
    }
    return MethodResult(**{**given, **fields})


def curve(start: float, end: float, steps: int, seconds: float, seed: int) -> list[tuple[int, float, float]]:
    noise = np.random.default_rng(seed).normal(0, 0.12, steps)
    at = np.arange(1, steps + 1)
    loss = end + (start - end) * np.exp(-at / (0.14 * steps)) * (1 + noise) + 0.1 * np.abs(noise)
    return [(int(step), float(value), float(step / steps * seconds)) for step, value in zip(at, loss, strict=True)]


def probes(openbook: float, piqa: float, commonsense: float) -> dict[str, Probe]:
    return {
        "OpenBookQA": Probe(accuracy=openbook, base_accuracy=0.345, rows=200),
        "PIQA": Probe(accuracy=piqa, base_accuracy=0.675, rows=200),
        "CommonsenseQA": Probe(accuracy=commonsense, base_accuracy=0.335, rows=200),
    }


def realistic_rows() -> list[MethodResult]:
    return [
        make_row("zero-shot", 0.5775, seed=1, nll_per_token=1.42, tokens=1630, ttft_ms=61.0, ms_per_token=18.9,
                 peak_memory_mb=912, artifact_mb=0.0, probes=probes(0.345, 0.675, 0.335)),
        make_row("few-shot", 0.7125, seed=2, name="few-shot (k=8)", nll_per_token=0.71, tokens=1630, ttft_ms=142.0,
                 ms_per_token=20.4, extra_prompt_tokens=884, peak_memory_mb=1130, artifact_mb=0.02,
                 probes=probes(0.33, 0.665, 0.32), forgetting_on=0.041),
        make_row("system", 0.6225, seed=3, nll_per_token=1.21, tokens=1630, ttft_ms=68.0, ms_per_token=19.1,
                 extra_prompt_tokens=46, peak_memory_mb=921, artifact_mb=0.01, probes=probes(0.345, 0.67, 0.33),
                 forgetting_on=0.012),
        make_row("prompt-tuning", 0.815, seed=4, nll_per_token=0.44, tokens=1630, ttft_ms=64.0, ms_per_token=19.0,
                 extra_prompt_tokens=20, trainable_parameters=11_520, seconds=92.1, steps=230, tokens_per_s=604.0,
                 rows_per_s=5.1, pad_fraction=0.04, loss=0.41, peak_memory_mb=1420, artifact_mb=0.05,
                 forgetting_on=0.088, curve=curve(2.8, 0.41, 230, 92.1, 1), probes=probes(0.335, 0.66, 0.33)),
        make_row("p-tuning", 0.85, seed=5, nll_per_token=0.36, tokens=1630, ttft_ms=64.2, ms_per_token=19.1,
                 extra_prompt_tokens=20, trainable_parameters=1_341_000, seconds=93.4, steps=221, tokens_per_s=588.0,
                 loss=0.33, peak_memory_mb=1460, artifact_mb=0.05, forgetting_on=0.104,
                 curve=curve(2.9, 0.33, 221, 93.4, 2), probes=probes(0.33, 0.655, 0.325)),
        make_row("adapter", 0.9175, seed=6, nll_per_token=0.19, tokens=1630, ttft_ms=66.5, ms_per_token=20.8,
                 trainable_parameters=2_246_000, seconds=95.0, steps=236, tokens_per_s=611.0, loss=0.16,
                 peak_memory_mb=1490, artifact_mb=9.0, forgetting_on=0.021, curve=curve(2.3, 0.16, 236, 95.0, 3),
                 probes=probes(0.34, 0.675, 0.335)),
        make_row("ia3", 0.865, seed=7, nll_per_token=0.31, tokens=1630, ttft_ms=62.1, ms_per_token=19.4,
                 trainable_parameters=57_600, seconds=90.8, steps=240, tokens_per_s=630.0, loss=0.3,
                 peak_memory_mb=1380, artifact_mb=0.2, forgetting_on=0.009, curve=curve(2.4, 0.3, 240, 90.8, 4),
                 probes=probes(0.345, 0.675, 0.335)),
        make_row("lora", 0.9275, seed=8, nll_per_token=0.17, tokens=1630, ttft_ms=67.0, ms_per_token=21.5,
                 trainable_parameters=460_800, seconds=94.2, steps=232, tokens_per_s=598.0, rows_per_s=5.0,
                 pad_fraction=0.04, loss=0.14, peak_memory_mb=1510, artifact_mb=1.9, forgetting_on=0.034,
                 curve=curve(2.3, 0.14, 232, 94.2, 5), probes=probes(0.34, 0.67, 0.33)),
        make_row("full", 0.9375, seed=9, nll_per_token=0.15, tokens=1630, ttft_ms=61.2, ms_per_token=18.8,
                 trainable_parameters=134_515_008, seconds=96.3, steps=131, tokens_per_s=341.0, loss=0.09,
                 peak_memory_mb=2890, artifact_mb=269.1, forgetting_on=0.412, forgetting_off=0.412,
                 curve=curve(2.2, 0.09, 131, 96.3, 6), probes=probes(0.29, 0.56, 0.24)),
    ]  # fmt: skip


def make_comparison(rows: list[MethodResult] | None = None, **fields: Any) -> Comparison:
    rows = realistic_rows() if rows is None else rows
    given = {
        "tunescope": "0.1.0",
        "base": BaseInfo(name="smollm2-135m", fingerprint="7c1e9a52f0d84b6b", parameters=134_515_008),
        "data": DataInfo(
            name="reuters-r8",
            sha256="5f0c1e1a9d3c4b2f8e7d6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d",
            train_rows=1600,
            test_rows=TEST_ROWS,
            template="chat template of the base",
            task="classification",
            labels=["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"],
            notes=["3 test rows also stand in train", "12 rows truncated to 512 tokens"],
        ),
        "machine": MachineInfo(device_name="Example CPU 8480", cores=2, torch="2.13.0", dtype="bfloat16"),
        "budget_seconds": 720.0,
        "seed": 0,
        "metric": "accuracy",
        "rows": rows,
        "report": "runs/demo/report.html",
        "seconds": 702.4,
    }
    merged = {**given, **fields}
    return Comparison(advice=advise(rows, merged["metric"]), **merged)
