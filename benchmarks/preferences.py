"""Learning from pairs by LoRA: tunescope against TRL, every run in a process of its own, the sides taking turns.

    python benchmarks/preferences.py --what dpo    [--data dpo-en-demo] [--max-length 512] [--pairs 40] [--repeats 3]
    python benchmarks/preferences.py --what reward

Both sides get the same pairs (those that fit, so that neither cuts), the same base in bfloat16, LoRA of rank 16 on all
linear layers, the same pairs a step, one pass. TRL's autocast and gradient checkpointing are off, which is how it is
fastest on a CPU, and its DPO runs twice: with the reference in every step, and with the reference computed before
(``precompute_ref_log_probs``). What is compared:

    loop_ratio     our pairs/s of the loop against the fastest of TRL's loops
    whole_ratio    the same with the reference's time on both sides, wherever each computes it
    memory_ratio   our peak memory against the lowest of TRL's, of whole processes

Figures are medians over the repeats. Needs trl and peft (the ``oracles`` extra).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sides import machine, medians, peak_mb, take_turns

RANK, LEARNING_RATE = 16, 1e-4
SIDES = {"dpo": ("tunescope", "trl", "trl-precomputed"), "reward": ("tunescope", "trl")}


def fitting_pairs(base: Any, data: str, max_length: int, count: int) -> list[dict[str, Any]]:
    """Pairs that neither side cuts, as TRL's conversational columns."""
    from tunescope.data.encoding import Encoder
    from tunescope.data.pairs import to_pairs
    from tunescope.data.reading import read
    from tunescope.data.template import default_template

    encoder = Encoder(base.tokenizer, default_template(base.tokenizer), base.context_length, cut="start")
    found = []
    for pair in to_pairs(read(data)):
        encoded = encoder.encode_pair(pair)
        assert encoded is not None
        longest = max(len(encoded.chosen), len(encoded.rejected))
        if len(encoded.prompt) + longest + 4 <= max_length:  # TRL's template may end a turn in a token more
            answers = {name: [{"role": "assistant", "content": getattr(pair, name)}] for name in ("chosen", "rejected")}
            found.append({"prompt": list(pair.messages), **answers})
    if len(found) < count:
        sys.exit(f"{data} has {len(found)} pairs of at most {max_length} tokens, fewer than --pairs {count}.")
    return found[:count]


def ours(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train by tunescope."""
    import torch

    import tunescope as ts
    from tunescope.data.pairs import to_pairs
    from tunescope.data.reading import read

    base = ts.load_base(args.base, dtype=args.dtype)
    objective = ts.DPO() if args.what == "dpo" else ts.Reward()
    method = ts.LoRA(rank=RANK, alpha=2 * RANK, targets=("all-linear",))
    settings = ts.TrainSettings(epochs=1, batch_size=args.batch_size, max_length=args.max_length, lr=LEARNING_RATE)
    ready = peak_mb()
    os.environ["TUNESCOPE_CACHE"] = str(folder / "cache")  # a reference that was kept would cost nothing
    trained = ts.train(base, method, objective, to_pairs(read(folder / "pairs.jsonl")), settings=settings)
    assert torch.isfinite(torch.tensor(trained.result.summary()["loss"]))
    return {
        "loop_s": trained.result.summary()["seconds"],
        "reference_s": trained.result.prepare_seconds,
        "ready_mb": ready,
    }


def theirs(args: argparse.Namespace, folder: Path, precompute: bool) -> dict[str, float]:
    """Train by TRL."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    from tunescope.base.sources import resolve

    source = resolve(args.base).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    data = Dataset.from_list([json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()])
    common: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": args.batch_size,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "max_length": args.max_length,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": args.checkpointing,
        "use_cpu": not torch.cuda.is_available(),
    }
    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    lora: dict[str, Any] = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    dtype = getattr(torch, args.dtype)
    begun = time.perf_counter()
    if args.what == "dpo":
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        trainer = trl.DPOTrainer(
            model=model,
            args=trl.DPOConfig(precompute_ref_log_probs=precompute, **common),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
        )
    else:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=dtype)
        trainer = trl.RewardTrainer(
            model=model,
            args=trl.RewardConfig(**common),
            train_dataset=data,
            processing_class=tokenizer,
            peft_config=LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **lora),
        )
    assert len(trainer.train_dataset) == args.pairs, "TRL dropped pairs"
    # Its constructor computes the reference; tokenizing the same pairs takes the other one's constructor as long.
    reference = time.perf_counter() - begun if precompute else 0.0
    ready, begun = peak_mb(), time.perf_counter()
    trainer.train()
    return {"loop_s": time.perf_counter() - begun, "reference_s": reference, "ready_mb": ready}


def run_side(args: argparse.Namespace) -> None:
    """Measure one side in this process and print its figures."""
    folder = Path(args.folder)
    found = ours(args, folder) if args.side == "tunescope" else theirs(args, folder, args.side == "trl-precomputed")
    print(json.dumps({**found, "peak_mb": peak_mb()}))


def main() -> None:
    """Print one JSON object: pairs a second and memory of each side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=SIDES, default="dpo")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--data", default="dpo-en-demo")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true", help="let TRL checkpoint gradients: lean and slow")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_side(args)
        return
    from tunescope.base import load_base

    pairs = fitting_pairs(load_base(args.base), args.data, args.max_length, args.pairs)
    with tempfile.TemporaryDirectory() as whole:

        def command(side: str) -> list[str]:
            folder = tempfile.mkdtemp(dir=whole)  # of each run its own: nothing of another one's is kept there
            Path(folder, "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
            return [*sys.argv[1:], "--side", side, "--folder", folder]

        runs = take_turns(SIDES[args.what], args.repeats, command)
    sides = {side: medians(own) for side, own in runs.items()}
    mine, rivals = sides["tunescope"], [each for side, each in sides.items() if side != "tunescope"]
    loop = min(each["loop_s"] for each in rivals)
    whole = min(each["loop_s"] + each["reference_s"] for each in rivals)
    result = {
        "what": args.what,
        **machine(),
        "data": args.data,
        "pairs": args.pairs,
        "sides": {
            side: {
                "pairs_per_s": round(args.pairs / each["loop_s"], 3),
                "with_reference": round(args.pairs / (each["loop_s"] + each["reference_s"]), 3),
                "peak_mb": round(each["peak_mb"]),
                "peak_over_ready_mb": round(each["peak_mb"] - each["ready_mb"]),
            }
            for side, each in sides.items()
        },
        "loop_ratio": round(loop / mine["loop_s"], 2),
        "whole_ratio": round(whole / (mine["loop_s"] + mine["reference_s"]), 2),
        "memory_ratio": round(mine["peak_mb"] / min(each["peak_mb"] for each in rivals), 3),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
