"""Fine-tuning by LoRA: tunescope against TRL, and a step with the rows' common prefix computed once against each row by
itself.

    python benchmarks/training.py [--kinds trec r8 ...] [--steps 8] [--repeats 3] [--trl float32 ...] [--json]

SmolLM2-135M-Instruct, LoRA of rank 16 on all linear layers, 8 rows a step, the base's chat template, loss on the
completions only. Kinds of rows:

    trec         TREC's questions with their class behind them: about 48 tokens, of which the chat template has most
    r8           Reuters R8 under the set's own template, at most 128 tokens
    instruction  30 words of R8 behind an instruction of some 500 tokens
    alpaca       instructions with answers, at most 512 tokens

Against TRL every run is a process of its own and the sides take turns. Both get the same rows, as lists of messages
that neither has to cut, in the same batches in the same order: ours, written down for TRL's sequential sampler. TRL's
template ends each row with one token more. The first step is not timed. Of TRL the fastest of the settings in ``--trl``
counts; its own defaults are autocast with checkpointing. Packing and padding-free batches need flash attention, which
CPUs do not have. What is compared, of medians over the repeats:

    rows_per_s_ratio   our rows a second against TRL's
    cpu_ratio          the same per second of CPU time, which other work on the machine disturbs less; meant for
                       OMP_NUM_THREADS=1, since threads that wait for each other count as working
    memory_ratio       our peak memory against TRL's, of whole processes
    matmul_ratio       what cpu_ratio would be if our steps were the frozen base's matmuls and nothing else: each
                       linear map of the layers once forward and once backward, of the tokens that we compute

And in one process, of the fastest repeats, for the shared prefix:

    token_ratio        tokens computed with each row by itself against those behind a common prefix
    speed_ratio        the same for the time of forward and backward pass

Needs trl and peft (the ``oracles`` extra) unless ``--trl`` is given no setting.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sides import Figures, machine, medians, peak_mb, take_turns

from tunescope.base.sites import LINEAR_SITES

BASE, RANK, LEARNING_RATE, BATCH = "smollm2-135m", 16, 1e-4, 8
LENGTHS = {"trec": 512, "r8": 128, "instruction": 2048, "alpaca": 512}
INSTRUCTION = "You are a careful assistant. Read the whole report before you answer. " * 36
# What of TRL is set otherwise than in float32 without autocast and without checkpointing.
TRL: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "autocast": {"bf16": True},
    "checkpointing": {"gradient_checkpointing": True},
    "defaults": {"bf16": True, "gradient_checkpointing": True},
    "eager": {"attention": "eager"},
}


class Clock:
    """When steps end, and the CPU time until then."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def tick(self) -> None:
        """A step ends."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def passed(self) -> Figures:
        """Seconds of all steps but the first."""
        (first, first_cpu), (last, last_cpu) = self.ends[0], self.ends[-1]
        return {"seconds": last - first, "cpu_seconds": last_cpu - first_cpu}


def rows_of(kind: str) -> list[Any]:
    """The rows of a kind, as they are in its set."""
    from tunescope.data.reading import read
    from tunescope.data.rows import to_rows

    if kind == "trec":
        return to_rows(read("trec"), "{question} {label}")
    if kind == "alpaca":
        return to_rows(read("alpaca-en-demo"))
    rows = to_rows(read("reuters-r8"))
    if kind == "r8":
        return rows
    stories = to_rows(read("reuters-r8"), "{text} {label}")
    behind = (INSTRUCTION + " ".join(row.prompt.split()[:30]) for row in stories)
    return [replace(row, messages=({"role": "user", "content": text},)) for row, text in zip(rows, behind, strict=True)]


def fitting(kind: str, count: int) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows that neither side cuts, as lists of messages, and the order in which the training loop takes them."""
    from tunescope.base.loading import load_tokenizer
    from tunescope.data.batching import BatchOrder
    from tunescope.data.encoding import Encoder
    from tunescope.data.template import default_template

    tokenizer, context = load_tokenizer(BASE)
    # TRL's template may end a turn in a token more.
    encoder = Encoder(tokenizer, default_template(tokenizer), context, LENGTHS[kind] - 1)
    rows, found, examples = rows_of(kind), [], []
    for index, example in encoder.fitting(rows[: 2 * count]):
        answer = [{"role": "assistant", "content": rows[index].completion}]
        found.append({"prompt": list(example.messages), "completion": answer})
        examples.append(example)
    order = BatchOrder.of(examples[:count], BATCH, 0).epoch(0)
    return found[:count], [index for batch in order for index in batch]


def ours(folder: Path, dtype: str) -> Figures:
    """Train by tunescope."""
    import tunescope as ts

    base = ts.load_base(BASE, dtype=dtype)  # type: ignore[arg-type]
    loaded = peak_mb()  # training counts from anew
    method = ts.LoRA(rank=RANK, alpha=2 * RANK, targets=("all-linear",))
    settings = ts.TrainSettings(epochs=1, batch_size=BATCH, lr=LEARNING_RATE)
    clock = Clock()
    trained = ts.train(
        base,
        method,
        ts.SFT(),
        str(folder / "rows.jsonl"),
        settings=settings,
        on_step=lambda _: clock.tick(),
    )
    result, steps, peak = trained.result, len(clock.ends) - 1, max(loaded, peak_mb())
    return {
        **clock.passed(),
        "matmul_seconds": steps * matmul_seconds(base, result.computed_tokens // (steps + 1)),
        "first_loss": result.losses[0],
        "tokens": result.tokens,
        "computed_tokens": result.computed_tokens,
        "peak_mb": peak,
    }


def matmul_seconds(base: Any, tokens: int) -> float:
    """Processor time of all layers' linear maps for so many tokens, forward and backward: the fastest of five."""
    import torch

    linears = [site.weight for site in base.sites.all if site.name in LINEAR_SITES]
    inputs = {width: torch.randn(tokens, width, dtype=base.dtype) for linear in linears for width in linear.shape}
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        for weight in linears:
            torch.mm(inputs[weight.shape[1]], weight.T)
            torch.mm(inputs[weight.shape[0]], weight)
        seconds.append(time.process_time() - begin)
    return min(seconds)


def theirs(folder: Path, *, dtype: str = "float32", attention: str = "sdpa", **settings: Any) -> Figures:
    """Train by TRL."""
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    from tunescope.base.sources import resolve

    source = resolve(BASE).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, attn_implementation=attention)
    targets = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    chosen = {"bf16": False, "gradient_checkpointing": False, **settings}
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=BATCH,
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            max_length=None,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **chosen,
        ),
        train_dataset=Dataset.from_list([json.loads(line) for line in (folder / "ordered.jsonl").open()]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=targets),
    )
    watch = _watch(trainer)
    trainer.train()
    first = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    return {**watch.clock.passed(), "first_loss": first, **watch.tokens, "peak_mb": peak_mb()}


def _watch(trainer: Any) -> Any:
    """Note when each step ends, and count the tokens that the model is given."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.clock = Clock()
            self.tokens = {"tokens": 0, "computed_tokens": 0}

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.clock.tick()

        def step(self, inner: Callable[..., Any], model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            self.tokens["tokens"] += int(inputs["attention_mask"].sum())
            self.tokens["computed_tokens"] += inputs["input_ids"].numel()
            return inner(model, inputs, *rest, **named)

    watch = Watch()
    trainer.add_callback(watch)
    trainer.training_step = partial(watch.step, trainer.training_step)
    return watch


def against_trl(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One kind of rows, trained by both."""
    rows, order = fitting(kind, args.steps * BATCH)
    with tempfile.TemporaryDirectory() as folder:
        for name, some in (("rows", range(len(rows))), ("ordered", order)):
            Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(rows[i]) + "\n" for i in some))
        command = ["--dtype", args.dtype, "--folder", folder, "--side"]
        runs = take_turns(["tunescope", *args.trl], args.repeats, lambda side: [*command, side])
    timed = len(rows) - BATCH
    found: dict[str, Any] = {}
    for side, own in runs.items():
        rates = [round(timed / run["seconds"], 2) for run in own]
        rest = {name: round(value, 3) for name, value in medians(own).items() if name != "seconds"}
        rate = round(timed / medians(own)["seconds"], 2)
        found[side] = {"rows_per_s": rate, "rows_per_s_range": [min(rates), max(rates)], **rest}
    fastest = max(args.trl, key=lambda side: found[side]["rows_per_s"])
    mine, other = found["tunescope"], found[fastest]
    return {
        "rows_per_s_ratio": round(mine["rows_per_s"] / other["rows_per_s"], 2),
        "cpu_ratio": round(other["cpu_seconds"] / mine["cpu_seconds"], 2),
        "matmul_ratio": round(other["cpu_seconds"] / mine["matmul_seconds"], 2),
        "memory_ratio": round(mine["peak_mb"] / other["peak_mb"], 3),
        "trl": fastest,
        "sides": found,
    }


def shared_against_apart(kinds: list[str], args: argparse.Namespace) -> dict[str, Figures]:
    """Each kind of rows, with the common prefix computed once and each row by itself."""
    import tunescope as ts
    from tunescope.data.encoding import Encoder
    from tunescope.data.template import default_template
    from tunescope.methods import customize

    base = ts.load_base(BASE, dtype=args.dtype)
    customized = customize(base, ts.LoRA(rank=RANK, targets=("all-linear",)), default_template(base.tokenizer))
    found = {}
    for kind in kinds:
        encoder = Encoder(base.tokenizer, customized.template, base.context_length, LENGTHS[kind])
        examples = encoder.encode_all(rows_of(kind)[:256])
        found[kind] = _both_ways(customized, examples, args.steps, args.repeats)
    return found


def _both_ways(customized: Any, examples: list[Any], steps: int, repeats: int) -> Figures:
    from tunescope.data import batching
    from tunescope.objectives import SFT

    worth, order = batching._WORTH, batching.BatchOrder.of(examples, BATCH, 0).epoch(0)[:steps]
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
    figures = {**{f"tokens_{k}": v for k, v in tokens.items()}, "token_ratio": token_ratio, "speed_ratio": speed_ratio}
    return {name: round(value, 3) for name, value in figures.items()}


def main() -> None:
    """Print one JSON object; the runs as they end go to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--dtype", default="auto", help="tunescope's")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trl", nargs="*", choices=TRL, default=["float32"], help="TRL's settings; none: no TRL")
    parser.add_argument("--json", action="store_true", help="on one line")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        found = ours(args.folder, args.dtype) if args.side == "tunescope" else theirs(args.folder, **TRL[args.side])
        print(json.dumps(found))
        return
    result: dict[str, Any] = machine()
    if args.trl:
        result["against_trl"] = {kind: against_trl(kind, args) for kind in args.kinds}
    result["shared_prefix"] = shared_against_apart(args.kinds, args)
    print(json.dumps(result, indent=None if args.json else 2))


if __name__ == "__main__":
    main()
