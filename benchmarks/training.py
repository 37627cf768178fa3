"""A step of fine-tuning with the rows' common prefix computed once, against each row by itself; the sides take turns.

    python benchmarks/training.py [--dtype float32] [--steps 3] [--repeats 3] [--json]

LoRA of rank 16 on all linear layers of SmolLM2-135M-Instruct, 8 rows a step, forward and backward. Three kinds of rows,
all of Reuters R8 under the base's chat template: its first 30 words, cut at 128 tokens, and 30 words behind an
instruction of some 500 tokens. For each kind: tokens computed on either side, their ratio, and the ratio of the fastest
repeats' times.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

INSTRUCTION = "You are a careful assistant. Read the whole report before you answer. " * 36


def kinds(rows: list[Any]) -> dict[str, tuple[list[Any], int]]:
    """Rows by kind, each with its limit of tokens."""

    def behind(before: str, words: int) -> list[Any]:
        made = []
        for row in rows:
            text = before + " ".join(row.prompt.split()[:words])
            made.append(replace(row, messages=({"role": "user", "content": text},)))
        return made

    return {"short": (behind("", 30), 512), "cut at 128": (rows, 128), "instruction": (behind(INSTRUCTION, 30), 2048)}


def measure(customized: Any, examples: list[Any], steps: int, repeats: int) -> dict[str, float]:
    """One kind of rows, both ways."""
    from tunescope.data import batching
    from tunescope.objectives import SFT

    worth, order = batching._WORTH, batching.BatchOrder.of(examples, 8, 0).epoch(0)[:steps]
    seconds: dict[str, list[float]] = {"apart": [], "shared": []}
    tokens: dict[str, int] = {}
    for _ in range(repeats):
        for side in seconds:
            batching._WORTH = worth if side == "shared" else 0.0
            begin, tokens[side] = time.perf_counter(), 0
            for indices in order:
                batch = SFT().collate([examples[i] for i in indices])
                tokens[side] += batch.packed.computed
                with customized.active():
                    (SFT().batch_loss(customized, batch).total / batch.packed.targets.numel()).backward()
            seconds[side].append(time.perf_counter() - begin)
    batching._WORTH = worth
    token_ratio = tokens["apart"] / tokens["shared"]
    speed_ratio = min(seconds["apart"]) / min(seconds["shared"])
    return {**{f"tokens_{k}": v for k, v in tokens.items()}, "token_ratio": token_ratio, "speed_ratio": speed_ratio}


def main() -> None:
    """Print a line a kind, or one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    import tunescope as ts
    from tunescope.data.encoding import Encoder
    from tunescope.data.rows import to_rows
    from tunescope.data.template import default_template
    from tunescope.methods import customize

    base = ts.load_base("smollm2-135m", dtype=args.dtype)
    customized = customize(base, ts.LoRA(rank=16, targets=("all-linear",)), default_template(base.tokenizer))
    found = {}
    for kind, (rows, limit) in kinds(to_rows(ts.read("reuters-r8"))[:256]).items():
        examples = Encoder(base.tokenizer, customized.template, base.context_length, limit).encode_all(rows)
        found[kind] = {k: round(v, 3) for k, v in measure(customized, examples, args.steps, args.repeats).items()}
        if not args.json:
            print(kind, found[kind], flush=True)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
