"""What is said of the methods, tested on a comparison of one's own: each claim with its figures and a verdict.

    make demo
    python benchmarks/claims.py --run runs/demo > claims.md

Scores, costs and forgetting are the comparison's. What holds exactly or not at all (identity at the start, off is the
base, merging, a shared batch) is computed here, on the entries that the comparison made, in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tunescope as ts
from tunescope.bank.merge import merged_model
from tunescope.comparison.results import Comparison, MethodResult, read_comparison
from tunescope.comparison.tradeoff import difference
from tunescope.data.template import default_template
from tunescope.methods import customize

PROMPTS = [
    "What is this story about?",
    "Say something of the sea.",
    "The price of oil rose again on Monday.",
    "Count to five.",
]
TOKENS = 24


@dataclass(frozen=True)
class Claim:
    """What is said, whether it is so here, and the figures."""

    text: str
    verdict: str
    figures: str


class Tested:
    """A comparison and its entries on the base in float32."""

    def __init__(self, run: Path) -> None:
        self.comparison: Comparison = read_comparison(run)
        self.base = ts.load_base(self.comparison.base.name, dtype="float32")
        self.rows = {row.method: row for row in self.comparison.rows if row.score is not None}
        self.trained = [row for row in self.rows.values() if row.trains]
        self.bank = run / "bank"

    def __getitem__(self, method: str) -> MethodResult:
        return self.rows[method]

    def entry(self, method: str) -> Any:
        """The entry that the comparison made."""
        return ts.load(self.bank / method, self.base)

    def logits(self, model: Any) -> torch.Tensor:
        """[prompts, vocabulary] of the token behind each prompt, by a transformers model."""
        ids = [self.base.tokenizer(text)["input_ids"] for text in PROMPTS]
        with torch.inference_mode():
            return torch.stack([model(torch.tensor([own])).logits[0, -1] for own in ids])

    def logits_under(self, customized: Any) -> torch.Tensor:
        """The same by the base's model while a customization acts on it."""
        with customized.active() as base:
            return self.logits(base.model)


def prompting(t: Tested) -> Iterator[Claim]:
    """What a longer prompt costs."""
    few, zero, lora = t["few-shot"], t["zero-shot"], t["lora"]
    read = "kept" if few.settings.get("choice") in ("balanced", "random") else "read each time"
    yield Claim(
        "Few-shot prompting costs latency",
        "holds" if few.ttft_ms > 1.1 * zero.ttft_ms else "hardly",
        f"{few.extra_prompt_tokens} tokens more, {read}; first token {few.ttft_ms:.0f} ms against {zero.ttft_ms:.0f}, "
        f"each further one {few.ms_per_token:.0f} against {zero.ms_per_token:.0f}",
    )
    cheaper = [row.method for row in t.trained if row.ttft_ms < few.ttft_ms]
    yield Claim(
        "What is trained answers sooner than few-shot prompts",
        "holds" if len(cheaper) == len(t.trained) else f"for {', '.join(cheaper)}",
        f"first token of lora {lora.ttft_ms:.0f} ms, of full {t['full'].ttft_ms:.0f}, of few-shot {few.ttft_ms:.0f}",
    )
    gap = difference(few, zero, t.comparison.metric)
    yield Claim("Worked examples in the prompt help", _verdict(gap.low, gap.high), f"{_points(gap)} over zero-shot")


def forgetting(t: Tested) -> Iterator[Claim]:
    """What stays of the base."""
    frozen = [row for row in t.trained if row.method != "full"]
    exact = all(row.forgetting_off == 0 for row in frozen)
    yield Claim(
        "Switched off, methods that keep the base frozen forget nothing",
        "holds, exactly" if exact else "does not",
        "nats/token: " + ", ".join(f"{r.method} {r.forgetting_off:.3f}" for r in t.trained),
    )
    most = max(frozen, key=lambda row: row.forgetting_on)
    yield Claim(
        "Methods that train little forget little",
        "does not" if most.forgetting_on > t["full"].forgetting_on else "holds",
        "switched on, nats/token: " + ", ".join(f"{r.method} {r.forgetting_on:.2f}" for r in (*frozen, t["full"])),
    )
    yield _rising(
        "Forgetting follows how far the model moved on its task",
        "KL on the task and forgetting",
        [(row.kl_task, row.forgetting_on) for row in t.trained],
    )


def costs(t: Tested) -> Iterator[Claim]:
    """What training takes, and what it buys."""
    ia3, lora, adapter, full = (t[name] for name in ("ia3", "lora", "adapter", "full"))
    yield Claim(
        "IA3 trains fewer parameters than LoRA and adapters",
        "holds" if ia3.trainable_parameters < min(lora.trainable_parameters, adapter.trainable_parameters) else "not",
        f"{ia3.trainable_parameters:,}, {lora.trainable_parameters:,} and {adapter.trainable_parameters:,}",
    )
    gap = difference(lora, full, t.comparison.metric)
    yield Claim(
        "LoRA needs less memory than full fine-tuning and competes in score",
        "holds" if lora.peak_memory_mb < full.peak_memory_mb and gap.high >= 0 else "not here",
        f"{lora.peak_memory_mb / 1e3:.1f} GB against {full.peak_memory_mb / 1e3:.1f}; {_points(gap)}",
    )
    yield _rising(
        "More trained weights buy a higher score",
        "trained parameters and score",
        [(row.trainable_parameters, row.score) for row in t.trained],
    )


def exact(t: Tested) -> Iterator[Claim]:
    """What holds bit for bit, or up to rounding."""
    template, plain = default_template(t.base.tokenizer, style="plain"), t.logits(t.base.model)
    kinds = (ts.Adapter(), ts.LoRA(), ts.IA3())
    same = [kind.name for kind in kinds if torch.equal(t.logits_under(customize(t.base, kind, template)), plain)]
    yield Claim(
        "Adapters, LoRA and IA3 start as the base",
        "holds, bit for bit" if len(same) == len(kinds) else f"for {', '.join(same) or 'none'}",
        "logits before the first step are equal",
    )
    for name in ("lora", "ia3"):
        entry = t.entry(name)
        merged = merged_model(t.base, entry.customization)
        gap = float((t.logits_under(entry) - t.logits(merged)).abs().max())
        yield Claim(
            f"Merged, {name} changes no architecture and adds no latency",
            "holds" if _shapes(merged) == _shapes(t.base.model) and gap < 1e-2 else "does not",
            f"the same {len(_shapes(merged))} tensors of the same shapes; logits differ by {gap:.1e} at most",
        )
    table = t.entry("p-tuning")
    kept = {name: tuple(each.shape) for name, each in table.customization.tensors().items()}
    yield Claim(
        "The encoder of p-tuning is not needed after training", "holds",
        f"the entry holds {', '.join(f'{name} {shape}' for name, shape in kept.items())} and answers by it",
    )  # fmt: skip


def batch(t: Tested) -> Iterator[Claim]:
    """Several customizations at once."""
    engine, names = ts.Engine(t.base), ("ia3", "lora", "prompt-tuning", "adapter")
    for name in names:
        engine.load(name, t.entry(name))
    how = ts.Sampling(max_new_tokens=TOKENS)
    requests = [ts.Request(prompt, name, how) for prompt in PROMPTS for name in names]
    started = time.perf_counter()
    together = [answer.text for answer in engine.generate(requests)]
    mixed = time.perf_counter() - started
    started = time.perf_counter()
    alone = [engine.generate([request])[0].text for request in requests]
    apart = time.perf_counter() - started
    yield Claim(
        "Different tasks' IA3, LoRA, adapters and prompts share a batch",
        "holds"
        if together == alone
        else f"{sum(a == b for a, b in zip(together, alone, strict=True))} of {len(alone)}",
        f"{len(requests)} requests to {len(names)} customizations: the same texts as one after the other, "
        f"{apart / mixed:.1f} times as fast",
    )


def _shapes(model: Any) -> list[tuple[str, torch.Size]]:
    return [(name, each.shape) for name, each in model.named_parameters()]


def _points(gap: Any) -> str:
    return f"{100 * gap.mean:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"


def _verdict(low: float, high: float) -> str:
    return "holds" if low > 0 else "does the opposite" if high < 0 else "not shown"


def _rising(text: str, what: str, pairs: Sequence[tuple[float, float]]) -> Claim:
    """A claim that one figure rises with another, from method to method."""
    from scipy.stats import spearmanr

    found = spearmanr(*zip(*pairs, strict=True))
    verdict = "not shown" if found.pvalue > 0.05 else "holds" if found.statistic > 0 else "does the opposite"
    how = f"rank correlation of {what} over {len(pairs)} methods: {found.statistic:.2f} (p {found.pvalue:.2f})"
    return Claim(text, verdict, how)


def as_markdown(claims: Sequence[Claim]) -> str:
    """A table."""
    lines = ["| claim | here | figures |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {each.text} | **{each.verdict}** | {each.figures} |" for each in claims)])


def main() -> None:
    """Print the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished comparison of all methods")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    tested = Tested(given.run)
    groups: list[Callable[[Tested], Iterator[Claim]]] = [prompting, forgetting, costs, exact, batch]
    claims = [claim for group in groups for claim in group(tested)]
    print(json.dumps([vars(each) for each in claims], indent=2) if given.json else as_markdown(claims))


if __name__ == "__main__":
    main()
