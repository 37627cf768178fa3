"""Decoding many customizations at once: tunescope's engine against transformers and PEFT, both in one run.

    python benchmarks/engine.py --base smollm2-135m [--rows 16] [--new-tokens 48] [--repeats 5]

Every figure is a median over repeats that alternate between the sides, so that a machine that slows down slows both.
Tokens are those generated; the time is of whole calls, prompts included. The milliseconds to the first token are of
single requests: without shots, and with 16 shots whose keys and values are kept, or are not. Needs peft (the
``oracles`` extra).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tunescope.base import Base, load_base
from tunescope.base.device import device_name
from tunescope.data.reading import read
from tunescope.data.rows import Row, to_rows
from tunescope.data.template import default_template
from tunescope.inference import Engine, Request, Sampling
from tunescope.methods import IA3, Adapter, Customized, FewShot, LoRA, Method, PromptTuning, System, ZeroShot, customize


def moved(base: Base, method: Method, seed: int) -> Customized:
    """A customization with an effect: trained ones cost the same."""
    made = customize(base, method, default_template(base.tokenizer), seed=seed)
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    made.finish()
    return made


def prompts_of(base: Base, rows: int) -> list[list[int]]:
    """The first words of Reuters R8's test stories: prompts so short that the time is that of the steps."""
    texts = [" ".join(row.prompt.split()[-24:-8]) for row in to_rows(read("reuters-r8", split="test"))[:rows]]
    return [base.tokenizer(text)["input_ids"] for text in texts]


def ours(base: Base, prompts: list[list[int]], names: list[str | None], new_tokens: int) -> Callable[[], None]:
    """A run of the engine; ``names`` says each row's customization."""
    methods: dict[str, Method] = {
        **{f"lora{i}": LoRA(rank=8) for i in range(8)},
        "ia3": IA3(),
        "adapter": Adapter(),
        "prompt-tuning": PromptTuning(),
        "system": System(instruction="Answer in one word."),
    }
    engine = Engine(base, slots=len(prompts), prefix_mb=0)
    made = {name: moved(base, methods[name], i) for i, name in enumerate(sorted(set(names) - {None}))}  # type: ignore[type-var]
    for name, each in made.items():
        engine.load(name, each)
    virtual = {name: each.template.virtual_ids for name, each in made.items()}
    sampling = Sampling(max_new_tokens=new_tokens, min_new_tokens=new_tokens)

    def run() -> None:
        tickets = [
            engine.submit_ids([*(virtual[name] if name else []), *prompt], name, sampling)
            for prompt, name in zip(prompts, names, strict=True)
        ]
        while engine.step():
            pass
        assert all(ticket.tokens == new_tokens for ticket in tickets)

    return run


def theirs(base: Base, prompts: list[list[int]], new_tokens: int, adapters: int) -> Callable[[], None]:
    """A run of transformers' generate, with that many LoRAs of PEFT mixed in the batch."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=base.dtype).to(base.device).eval()
    more: dict[str, Any] = {}
    if adapters:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config, adapter_name="lora0")
        for i in range(1, adapters):
            model.add_adapter(f"lora{i}", config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.02)
        model.to(base.dtype).eval()
        more["adapter_names"] = [f"lora{i % adapters}" for i in range(len(prompts))]
    length = max(map(len, prompts))
    pad = base.tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts], device=base.device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=base.device)

    @torch.inference_mode()
    def run() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad,
            **more,
        )

    return run


def first_tokens(base: Base, words: int, requests: int) -> dict[str, float]:
    """Milliseconds to the first token, without shots and with 16, where prompts and shots are stories' first words."""

    def rows(split: str) -> list[Row]:
        every = [row for row in to_rows(read("reuters-r8", split=split)) if len(row.prompt.split()) >= words]
        cut = [{"role": "user", "content": " ".join(row.prompt.split()[:words])} for row in every]
        return [replace(row, messages=(message,)) for row, message in zip(every, cut, strict=True)]

    template, shots, shown = default_template(base.tokenizer), FewShot(shots=16), rows("train")
    made = {
        "zero_shot": customize(base, ZeroShot(), template),
        "16_shots_kept": customize(base, shots, template, shown),
        "16_shots_computed": customize(base, shots, template, shown),
    }
    engines = {name: Engine(base, prefix_mb=0 if name == "16_shots_computed" else 512) for name in made}
    for name, customized in made.items():
        engines[name].load(name, customized)
    found: dict[str, list[float]] = {name: [] for name in made}
    for row in rows("test")[: requests + 1]:
        for name, engine in engines.items():
            start = time.perf_counter()
            answer = engine.generate([Request(row.prompt, name, Sampling(max_new_tokens=1))])[0]
            found[name].append(time.perf_counter() - start)
            assert not answer.error, answer.error
    milliseconds = {name: round(1e3 * statistics.median(each[1:]), 1) for name, each in found.items()}
    return {**milliseconds, "kept_ratio": round(milliseconds["16_shots_kept"] / milliseconds["zero_shot"], 2)}


def main() -> None:
    """Print one JSON object: tokens a second of each side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-rivals", action="store_true", help="time only our side")
    args = parser.parse_args()
    base = load_base(args.base)
    prompts = prompts_of(base, args.rows)
    five = ["lora0", "ia3", "adapter", "prompt-tuning", None]
    mixes: dict[str, list[str | None]] = {
        "base": [None] * args.rows,
        "one_lora": ["lora0"] * args.rows,
        "eight_loras": [f"lora{i % 8}" for i in range(args.rows)],
        "five_methods": [five[i % 5] for i in range(args.rows)],
    }
    runs = {name: ours(base, prompts, names, args.new_tokens) for name, names in mixes.items()}
    if not args.skip_rivals:
        runs["transformers_base"] = theirs(base, prompts, args.new_tokens, 0)
        runs["peft_eight_loras"] = theirs(base, prompts, args.new_tokens, 8)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    tokens = args.rows * args.new_tokens
    rate = {name: tokens / statistics.median(found) for name, found in seconds.items()}
    result: dict[str, Any] = {
        "machine": device_name(base.device),
        "threads": torch.get_num_threads(),
        "dtype": str(base.dtype).removeprefix("torch."),
        "prompt_tokens": sum(map(len, prompts)),
        **{f"{name}_tokens_per_s": round(value, 1) for name, value in rate.items()},
        "five_methods_cost": round(rate["base"] / rate["five_methods"], 3),
        "first_token_ms": {f"{words}_words": first_tokens(base, words, 15) for words in (16, 32, 64)},
    }
    if not args.skip_rivals:
        result["base_ratio"] = round(rate["base"] / rate["transformers_base"], 2)
        result["mixed_ratio"] = round(rate["eight_loras"] / rate["peft_eight_loras"], 2)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
