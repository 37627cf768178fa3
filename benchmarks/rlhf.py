"""PPO by LoRA: tunescope against TRL, every run in a process of its own, the sides taking turns.

    python benchmarks/rlhf.py --trl-python PATH [--trl float32 ...] [--prompts 8] [--n 4] [--new-tokens 32]
                              [--minibatches 2] [--epochs 4] [--rounds 3] [--repeats 2] [--json]

TRL had PPO up to 1.12, so it needs an environment of its own (``pip install trl==1.12.0 peft`` beside the torch and
transformers that this one has), whose interpreter is ``--trl-python``. Without that, only ours is measured.

SmolLM2-135M-Instruct, a policy by LoRA of rank 16 on all linear layers, a reward model of the same size. A step is a
rollout and the updates on it: n samples of each prompt, scores, log-probabilities, values, advantages, and each
minibatch truly stepped in each epoch. Both get the same prompts as token ids in the same rounds and sample from the
policy as it is (temperature 1). TRL takes a prompt n times. Samples are drawn, so their lengths differ a little
(``sampled_tokens``). The first round is not timed.

TRL's value model is trained in full, since its ``peft_config`` wraps the policy only; settings with ``-lora`` give it
a LoRA by hand, which is leaner. Of ``--trl`` the fastest setting counts for speed, the leanest for memory:

    steps_per_s_ratio  our steps a second against TRL's
    cpu_ratio          the same per second of processor time, meant for OMP_NUM_THREADS=1
    memory_ratio       our peak memory against TRL's, of whole processes
    matmul_ratio       what cpu_ratio would be if our step were the frozen base's matmuls and nothing else

``step`` splits one of our steps into sampling, scoring (rewards, log-probabilities under policy and reference, values)
and updating. Beside each part stands its floor, ``matmul_seconds``: processor time of the layers' and the head's
matmuls for the tokens that must be computed, each prompt once, decoding in as many rows as there are samples.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import Figures, machine, medians, take_turns

BASE, RANK, LEARNING_RATE, LONGEST = "smollm2-135m", 16, 1e-5, 64
PARTS = ("sampling", "scoring", "updating")
# Weights of all four models, and how the value model is trained.
TRL = {
    "float32": ("float32", "full"),
    "bfloat16": ("bfloat16", "full"),
    "float32-lora": ("float32", "lora"),
    "bfloat16-lora": ("bfloat16", "lora"),
}


def peak_mb() -> float:
    """Peak memory of this process so far, in 1e6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def prompts_of(count: int) -> list[dict[str, Any]]:
    """So many short instructions: their text for us, and for TRL the token ids that we make of it."""
    from tunescope.base.loading import load_tokenizer
    from tunescope.data.encoding import Encoder
    from tunescope.data.reading import read
    from tunescope.data.rows import to_rows
    from tunescope.data.template import default_template

    tokenizer, context = load_tokenizer(BASE)
    encoder = Encoder(tokenizer, default_template(tokenizer), context)
    found = []
    for row in to_rows(read("alpaca-en-demo")):
        if len(row.messages) == 1 and len(ids := encoder.prompt(row.messages).ids) <= LONGEST:
            found.append({"prompt": row.messages[0]["content"], "ids": list(ids)})
    if len(found) < count:
        sys.exit(f"There are {len(found)} prompts of at most {LONGEST} tokens, fewer than prompts × rounds.")
    return found[:count]


def lora() -> Any:
    """Our method."""
    import tunescope as ts

    return ts.LoRA(rank=RANK, alpha=2 * RANK, targets=("all-linear",))


def make_reward_model(folder: Path) -> None:
    """A reward model of the bank, barely trained: what it says does not matter to the time."""
    import tunescope as ts

    pairs = [{"prompt": "How are you?", "chosen": "Fine, thank you.", "rejected": "No."}]
    settings = ts.TrainSettings(max_steps=1, batch_size=1)
    ts.train(ts.load_base(BASE), lora(), ts.Reward(), pairs, settings=settings, out=folder / "reward")


class Stopwatch:
    """Wall and processor time of functions, those of the rounds before ``start`` left out."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Count from here on."""
        self.begun = time.perf_counter(), time.process_time()
        self.spent: dict[str, list[float]] = {}

    def total(self) -> tuple[float, float]:
        """Since ``start``."""
        return time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]

    def around(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        """``inner``, whose time counts under ``name``."""

        def timed(*given: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = inner(*given, **named)
            spent = self.spent.setdefault(name, [0.0, 0.0])
            spent[0] += time.perf_counter() - wall
            spent[1] += time.process_time() - cpu
            return result

        return timed


def ours(args: argparse.Namespace) -> Figures:
    """Train by tunescope."""
    import tunescope as ts
    from tunescope.training import policy
    from tunescope.training.learner import Learner

    base = ts.load_base(BASE, dtype=args.dtype)
    loaded, watch, steps = peak_mb(), Stopwatch(), args.epochs * args.minibatches
    tokens: list[int] = []  # of each round's samples

    def counted(customized: Any, prompts: Any, **how: Any) -> Any:
        found = sample(customized, prompts, **how)
        tokens.append(sum(len(each.tokens) for own in found for each in own))
        return found

    def after(metrics: Any) -> None:
        if metrics.step == steps:
            watch.start()

    sample, begin_round = policy.sample, Learner.begin_round
    policy.sample = watch.around("sampling", counted)
    Learner.begin_round = watch.around("collecting", begin_round)  # type: ignore[method-assign]
    objective = ts.PPO(
        reward=str(args.folder / "reward"), rounds=args.rounds, prompts=args.prompts, n=args.n,
        max_new_tokens=args.new_tokens, critic_warmup=0,
    )  # fmt: skip
    settings = ts.TrainSettings(epochs=args.epochs, batch_size=args.prompts // args.minibatches, lr=LEARNING_RATE)
    ts.train(base, lora(), objective, str(args.folder / "prompts.jsonl"), settings=settings, on_step=after)
    (seconds, cpu), timed, peak = watch.total(), args.rounds - 1, max(loaded, peak_mb())
    sampling, collecting = watch.spent["sampling"], watch.spent["collecting"]
    prompts = [len(json.loads(line)["ids"]) for line in (args.folder / "prompts.jsonl").open()][args.prompts :]
    sampled = sum(tokens[1:])
    parts = {
        "sampling": sampling,
        "scoring": [a - b for a, b in zip(collecting, sampling, strict=True)],
        "updating": [seconds - collecting[0], cpu - collecting[1]],
    }
    found = {"seconds": seconds / timed, "cpu_seconds": cpu / timed, "sampled_tokens": sampled / timed, "peak_mb": peak}
    for name, (wall, spent) in parts.items():
        found |= {f"{name}_seconds": wall / timed, f"{name}_cpu_seconds": spent / timed}
    floor = matmul_seconds(base, args, sum(prompts) / timed, sampled / timed)
    return found | {f"{name}_matmul_seconds": floor[name] for name in PARTS}


def matmul_seconds(base: Any, args: argparse.Namespace, prompts: float, sampled: float) -> Figures:
    """Processor time of a step's matmuls by the frozen base, by measured times a token.

    Args:
        base: whose weights are multiplied.
        args: of the run.
        prompts: tokens of a round's prompts.
        sampled: tokens of its samples; the last one of each is scored and not computed further.
    """
    from tunescope.base.sites import LINEAR_SITES
    from tunescope.data.packing import PASS_TOKENS

    layers = [site.weight for site in base.sites.all if site.name in LINEAR_SITES]
    head = [base.model.get_output_embeddings().weight]
    rows = args.prompts * args.n
    wide = {"layers": _seconds_a_token(layers, PASS_TOKENS), "head": _seconds_a_token(head, PASS_TOKENS)}
    decoding = _seconds_a_token(layers, rows)[0] + _seconds_a_token(head, rows)[0]
    (forward, backward), (head_forward, head_backward) = wide["layers"], wide["head"]
    computed = prompts + sampled - rows
    updates = 2 * computed * (forward + backward) + sampled * (head_forward + head_backward)
    return {
        "sampling": prompts * forward + sampled * decoding,
        "scoring": (3 * computed + prompts + sampled) * forward + 2 * sampled * head_forward,
        "updating": args.epochs * updates,
    }


def _seconds_a_token(weights: list[Any], tokens: int) -> tuple[float, float]:
    """Processor time a token of products with weights, forward and backward: the fastest of three."""
    import torch

    widths = {width for weight in weights for width in weight.shape}
    inputs = {width: torch.randn(tokens, width, dtype=weights[0].dtype) for width in widths}
    found = []
    for forward in (True, False):
        seconds = []
        for _ in range(3):
            begin = time.process_time()
            for weight in weights:
                torch.mm(inputs[weight.shape[forward]], weight.T if forward else weight)
            seconds.append(time.process_time() - begin)
        found.append(min(seconds) / tokens)
    return found[0], found[1]


def theirs(args: argparse.Namespace, dtype: str, critic: str) -> Figures:
    """Train by TRL; this process need not have tunescope."""
    import torch
    from trl.experimental.ppo import ppo_trainer

    trainer = _trainer(args, dtype, critic)
    watch, rounds = Stopwatch(), []

    def sampled(*given: Any, **named: Any) -> Any:
        texts, logits = generate(*given, **named)
        rounds.append(texts[:, given[1].shape[1] :])
        return texts, logits

    generate = ppo_trainer.batch_generation
    ppo_trainer.batch_generation = watch.around("sampling", sampled)
    trainer.add_callback(_after_first(watch))
    trainer.train()
    (seconds, cpu), timed = watch.total(), args.rounds - 1
    stop = trainer.processing_class.eos_token_id
    ended = [(texts == stop).int().cumsum(1) - (texts == stop).int() for texts in rounds[1:]]  # 0 up to the stop token
    return {
        "seconds": seconds / timed,
        "cpu_seconds": cpu / timed,
        "sampled_tokens": sum(int(torch.sum(each == 0)) for each in ended) / timed,
        "peak_mb": peak_mb(),
        **{
            f"sampling_{kind}": value / timed
            for kind, value in zip(("seconds", "cpu_seconds"), watch.spent["sampling"], strict=True)
        },
    }


def _after_first(watch: Stopwatch) -> Any:
    """Starts the watch when the first round has ended."""
    from transformers import TrainerCallback

    class AfterFirst(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 1:
                watch.start()

    return AfterFirst()


def _trainer(args: argparse.Namespace, dtype: str, critic: str) -> Any:
    """TRL's, whose loader gives the rounds' prompts in our order."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig, inject_adapter_in_model
    from torch.utils.data import DataLoader
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.source, padding_side="left")
    # It takes every pad token as padding, and SmolLM2's is the one that ends turns.
    tokenizer.pad_token = tokenizer.unk_token
    adapter = {
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")],
    }

    def scorer() -> Any:
        kind = transformers.AutoModelForSequenceClassification
        return kind.from_pretrained(args.source, num_labels=1, dtype=dtype, pad_token_id=tokenizer.pad_token_id)

    values = scorer()
    if critic == "lora":
        inject_adapter_in_model(LoraConfig(**adapter), values)
        values.score.requires_grad_(True)
    ids = [json.loads(line)["ids"] for line in (args.folder / "prompts.jsonl").open()]
    data = Dataset.from_dict({"input_ids": [own for own in ids for _ in range(args.n)]})
    batch = args.prompts * args.n
    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir=str(args.folder / "trl"), total_episodes=args.rounds * batch, learning_rate=LEARNING_RATE,
            # All in one device batch: accumulating would skip the optimizer's steps between minibatches.
            per_device_train_batch_size=batch, gradient_accumulation_steps=1, num_mini_batches=args.minibatches,
            num_ppo_epochs=args.epochs, local_rollout_forward_batch_size=batch, response_length=args.new_tokens,
            stop_token="eos", temperature=1.0, missing_eos_penalty=1.0, num_sample_generations=0, bf16=False,
            gradient_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True,
        ),
        processing_class=tokenizer,
        model=transformers.AutoModelForCausalLM.from_pretrained(args.source, dtype=dtype),
        ref_model=None,
        reward_model=scorer(),
        value_model=values,
        train_dataset=data,
        eval_dataset=data.select(range(1)),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **adapter),
    )  # fmt: skip
    trainer.dataloader = DataLoader(data, batch_size=batch, collate_fn=trainer.data_collator)
    return trainer


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sides and put their figures beside each other."""
    from tunescope.base.sources import resolve

    with tempfile.TemporaryDirectory() as folder:
        make_reward_model(Path(folder))
        lines = [json.dumps(each) + "\n" for each in prompts_of(args.prompts * args.rounds)]
        Path(folder, "prompts.jsonl").write_text("".join(lines))
        given = [*sys.argv[1:], "--folder", folder, "--source", str(resolve(BASE).folder), "--side"]
        rivals = args.trl if args.trl_python else []
        runs = take_turns(
            ["tunescope", *rivals], args.repeats, lambda side: [*given, side],
            lambda side: sys.executable if side == "tunescope" else args.trl_python,
        )  # fmt: skip
    sides = {side: medians(own) for side, own in runs.items()}
    mine = sides.pop("tunescope")
    kinds = ("seconds", "cpu_seconds", "matmul_seconds")
    step = {part: {kind: round(mine.pop(f"{part}_{kind}"), 3) for kind in kinds} for part in PARTS}
    floor = sum(part["matmul_seconds"] for part in step.values())
    shape = {name: getattr(args, name) for name in ("prompts", "n", "new_tokens", "minibatches", "epochs", "rounds")}
    result: dict[str, Any] = {"what": "ppo", **machine(), **shape}
    if sides:
        fastest = min(sides, key=lambda side: sides[side]["seconds"])
        leanest = min(sides, key=lambda side: sides[side]["peak_mb"])
        result |= {
            "steps_per_s_ratio": round(sides[fastest]["seconds"] / mine["seconds"], 2),
            "cpu_ratio": round(sides[fastest]["cpu_seconds"] / mine["cpu_seconds"], 2),
            "matmul_ratio": round(sides[fastest]["cpu_seconds"] / floor, 2),
            "memory_ratio": round(mine["peak_mb"] / sides[leanest]["peak_mb"], 3),
            "fastest": fastest,
            "leanest": leanest,
        }
    result["step"] = step | {"matmul_share": round(floor / mine["cpu_seconds"], 3)}
    result["sides"] = {}
    for side, own in {"tunescope": mine, **sides}.items():
        seconds = [run["seconds"] for run in runs[side]]
        spread = [round(1 / max(seconds), 4), round(1 / min(seconds), 4)]
        figures = {name: round(value, 3) for name, value in own.items()}
        result["sides"][side] = {"steps_per_s": round(1 / own["seconds"], 4), "steps_per_s_range": spread, **figures}
    return result


def main() -> None:
    """Print one JSON object; the runs as they end go to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="interpreter of an environment with TRL 1.12; without it only ours runs")
    parser.add_argument("--trl", nargs="+", choices=TRL, default=["float32", "float32-lora"], help="TRL's settings")
    parser.add_argument("--dtype", default="auto", help="tunescope's")
    parser.add_argument("--prompts", type=int, default=8, help="a round")
    parser.add_argument("--n", type=int, default=4, help="samples of each prompt")
    parser.add_argument("--new-tokens", type=int, default=32, help="most of a sample")
    parser.add_argument("--minibatches", type=int, default=2, help="an epoch")
    parser.add_argument("--epochs", type=int, default=4, help="a round")
    parser.add_argument("--rounds", type=int, default=3, help="with the first, which is not timed")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="on one line")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prompts % args.minibatches:
        parser.error("--prompts must be a multiple of --minibatches")
    if args.rounds < 2:
        parser.error("--rounds must be at least 2: the first is not timed")
    if args.side:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        found = ours(args) if args.side == "tunescope" else theirs(args, *TRL[args.side])
        print(json.dumps(found))
        return
    print(json.dumps(compare(args), indent=None if args.json else 2))


if __name__ == "__main__":
    main()
