"""How costs grow here: with rows, with customizations, with length, and on paper with the base.

    python benchmarks/scale.py [--only rows customizations lengths paper] [--json]

    rows             1,000 to 100,000 rows read and made tokens: seconds, and memory over what was there before
    customizations   1 to 1,000 LoRAs in one bank: listing it, opening one, bytes each; and 1 to 64 loaded at once in an
                     engine that answers eight rows by eight of them
    lengths          a step of LoRA on one text of 128 to 8,192 tokens: seconds and memory, planned memory beside them
    paper            a step of LoRA, also on the base in nf4, and of full fine-tuning on one text of 1,024 tokens,
                     layers computed again, for bases of Llama 3.1's sizes (billions of parameters): memory as planned;
                     nothing is computed

Each size runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import machine

BASE = "smollm2-135m"
SIZES = {
    "rows": (1_000, 10_000, 100_000),
    "customizations": (1, 10, 100, 1_000),
    "lengths": (128, 512, 2_048, 8_192),
    "paper": (8, 70, 405),
}
# Of Llama 3.1 (Llama Team 2024, arXiv:2407.21783, table 3): hidden size, inner size, layers, heads.
LLAMAS = {8: (4_096, 14_336, 32, 32), 70: (8_192, 28_672, 80, 64), 405: (16_384, 53_248, 126, 128)}
LOADED = 64  # most that are loaded at once


def rows(count: int, folder: Path) -> dict[str, float]:
    """Read so many rows of messages and labels, and make them tokens."""
    import torch

    import tunescope as ts
    from tunescope import peak_memory
    from tunescope.base.loading import load_tokenizer
    from tunescope.data.encoding import Encoder
    from tunescope.data.rows import to_rows
    from tunescope.data.template import default_template

    known = ts.read("sms-spam", split="train").rows
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            own = known[number % len(known)]
            file.write(json.dumps({"prompt": f"{number}: {own['text']}", "completion": str(own["label"])}) + "\n")
    tokenizer, context = load_tokenizer(BASE)
    template = default_template(tokenizer)
    device = torch.device("cpu")
    peak_memory.reset_peak(device)
    before, start = peak_memory.peak_mb(device), time.perf_counter()
    encoded = Encoder(tokenizer, template, context).encode_all(to_rows(ts.read(path), None))
    seconds = time.perf_counter() - start
    tokens = sum(map(len, encoded))
    return {"seconds": seconds, "tokens": tokens, "memory_mb": peak_memory.peak_mb(device) - before}


def customizations(count: int, folder: Path) -> dict[str, float]:
    """A bank of so many LoRAs, listed and opened; and as many of them as may be in one engine."""
    import torch

    import tunescope as ts
    from tunescope import peak_memory

    base = ts.load_base(BASE)
    bank = folder / "bank"
    settings = ts.TrainSettings(max_steps=1, batch_size=2)
    data = [{"prompt": "say yes", "completion": "yes"}] * 2
    trained = ts.train(base, ts.LoRA(), ts.SFT(), data, settings=settings, out=bank / "lora-0")
    size = sum(file.stat().st_size for file in (bank / "lora-0").rglob("*") if file.is_file())
    for number in range(1, count):
        shutil.copytree(bank / "lora-0", bank / f"lora-{number}")
    start = time.perf_counter()
    listed = len(ts.list_entries(bank))
    listing = time.perf_counter() - start
    start = time.perf_counter()
    ts.load(bank / f"lora-{count - 1}", base)
    opening = time.perf_counter() - start
    device = torch.device("cpu")
    loaded = min(count, LOADED)
    engine = ts.Engine(base)
    peak_memory.reset_peak(device)
    before = peak_memory.peak_mb(device)
    for number in range(loaded):
        engine.load(f"lora-{number}", trained.customized)
    how = ts.Sampling(max_new_tokens=16)
    asked = [ts.Request("Tell me a tale.", f"lora-{number % loaded}", how) for number in range(8)]
    engine.generate(asked)
    start = time.perf_counter()
    engine.generate(asked)
    seconds = time.perf_counter() - start
    return {
        "listed": listed,
        "listing_ms": 1e3 * listing,
        "opening_ms": 1e3 * opening,
        "bytes_each": size,
        "loaded": loaded,
        "loaded_mb": peak_memory.peak_mb(device) - before,
        "answers_seconds": seconds,
    }


def lengths(length: int, folder: Path) -> dict[str, float]:
    """Two steps on one text each, the second of which is timed."""
    import torch

    import tunescope as ts
    from tunescope import peak_memory
    from tunescope.data.template import default_template
    from tunescope.methods import customize
    from tunescope.planning import Texts
    from tunescope.training import Learner
    from tunescope.training.loop import train_loop

    base = ts.load_base(BASE)
    for parameter in base.model.parameters():
        torch.hash_tensor(parameter)
    settings = ts.TrainSettings(batch_size=1, max_steps=2)
    texts = Texts.made_up(2, length, compared=False)
    asked = ts.PlanSettings(length=length, texts=2, methods=("lora",), objectives=("sft",))
    planned = ts.plan(BASE, settings=asked, training=settings, dtype=base.dtype).rows[0]
    customized = customize(base, ts.LoRA(), default_template(base.tokenizer))
    learner = Learner(customized, ts.SFT(), list(texts.all), settings, folder)
    seconds: list[float] = []
    peak_memory.reset_peak(base.device)
    before = peak_memory.peak_mb(base.device)
    train_loop([learner], on_step=lambda _, metrics: seconds.append(metrics.seconds))
    return {
        "step_seconds": seconds[1] - seconds[0],
        "memory_mb": peak_memory.peak_mb(base.device) - before,
        "planned_mb": planned.peak_memory_mb,
    }


def paper(billions: int, folder: Path) -> dict[str, float]:
    """What the planner says of a base of which there is a configuration alone."""
    import torch

    import tunescope as ts
    from tunescope.planning import gpu

    hidden, inner, layers, heads = LLAMAS[billions]
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "num_key_value_heads": 8,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 128_256,
        "max_position_embeddings": 8_192, "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    start = time.perf_counter()
    asked = ts.PlanSettings(length=1_024, texts=8, methods=("lora", "full"), objectives=("sft",))
    settings = ts.TrainSettings(batch_size=1, recompute=True)
    how: dict[str, Any] = {"training": settings, "machine": gpu("h100"), "dtype": torch.bfloat16}
    plan = ts.plan(str(folder), settings=asked, **how)
    found = {"parameters": plan.parameters, "weights_gb": plan.weights_mb / 1e3, "planned_in": 0.0}
    for row in plan.rows:
        found[f"{row.method}_gb"] = (plan.weights_mb + row.peak_memory_mb) / 1e3
        found |= {f"{row.method}_{part}_gb": size / 1e3 for part, size in vars(row.parts).items() if size}
        found[f"{row.method}_trained"] = row.trainable_parameters
    quantized = ts.plan(f"{folder}:nf4", settings=asked.model_copy(update={"methods": ("lora",)}), **how)
    found |= {"nf4_weights_gb": quantized.weights_mb / 1e3}
    found |= {"nf4_lora_gb": (quantized.weights_mb + quantized.rows[0].peak_memory_mb) / 1e3}
    return found | {"planned_in": time.perf_counter() - start}


MEASURES: dict[str, Callable[[int, Path], dict[str, float]]] = {
    "rows": rows,
    "customizations": customizations,
    "lengths": lengths,
    "paper": paper,
}


def main() -> None:
    """Measure every size, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(MEASURES[given.cell[0]](int(given.cell[1]), Path(folder))))
        return
    found: dict[str, Any] = {"base": BASE, **machine()}
    for what in given.only:
        found[what] = {}
        for size in SIZES[what]:
            command = [sys.executable, __file__, "--cell", what, str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found[what][size] = json.loads(done.stdout.splitlines()[-1])
            print(what, size, found[what][size], file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
