"""Reward against the distance from the reference: the frontier of Rafailov et al. 2023 (arXiv:2305.18290, figure 2) in
small, for every way to learn from a reward.

    python benchmarks/frontier.py --out runs/frontier [--only ppo dpo ...] [--rewards truth] [--plot FRONTIER.html]

SmolLM2-135M-Instruct learns to continue the brothers Grimm's tales (``sft``); from there each method learns to be liked
by a reward, held back more or less by its β. Each point is then measured on openings of tales that nothing learned
from: the mean reward of two samples of each, and KL(π ‖ sft) in nats a sample, both with 95% intervals.

    truth    the reward is VADER's sentiment itself
    proxy    the reward is a model of it, learned from rankings of the sft model's own samples; what counts is VADER's
             sentiment all the same, and the proxy's own mean stands beside it (Gao et al. 2022, arXiv:2210.10760)

Best-of-n takes the best of n samples of the sft model by the same reward; its KL is log n - (n - 1)/n, an upper bound
(Beirami et al. 2024, arXiv:2401.01879). Every other point is one run of ``tunescope.train``.

Each point is a file in ``--out``/points, written when it is measured. A point that is there is not run again, and a run
that was killed goes on where it was: the same command, given again, completes the table. Once ``--only best-of`` has
made what all points share (the sft model, the pairs, the reward model), several processes may work on one ``--out``,
each on methods or rewards of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from sides import machine

from tunescope.judging.preference_pairs import samples_path

BASE, DATA = "smollm2-135m", "grimm-stories"
NEW_TOKENS, RANKED, LEARNED, HELD_OUT = 24, 4, 480, 120
ROUNDS = {"rounds": 12, "prompts": 16, "n": 4}
RATES = {"ppo": 3e-4, "rloo": 3e-4, "grpo": 3e-4, "dpo": 5e-4}
BETAS = {"ppo": (0.01, 0.05, 0.2), "rloo": (0.01, 0.05, 0.2), "grpo": (0.01, 0.05, 0.2), "dpo": (0.05, 0.2, 1.0)}
BEST_OF = (4, 16)
SIZES = {
    "base": BASE,
    "data": DATA,
    "new_tokens": NEW_TOKENS,
    "ranked": RANKED,
    "learned": LEARNED,
    "held_out": HELD_OUT,
    **ROUNDS,
    "rates": RATES,
}
PROXY_METHODS = ("dpo", "ppo")
TITLES = {"truth": "the reward is VADER's sentiment", "proxy": "the reward is a model of it"}
MEASURED = (
    *("score", "score_low", "score_high", "difference", "difference_low", "difference_high", "base_score"),
    *("kl", "kl_low", "kl_high", "tokens", "stop_share", "base_stop_share", "distinct_2", "base_distinct_2", "rows"),
)
# Stages before a model that is liked, and what stands beside the base while it is trained.
NEEDS = {
    "best-of": ("sft, reward", "nothing is trained; n samples an answer"),
    "dpo": ("sft, pairs", "the policy, the reference"),
    "ppo": ("sft, reward", "the policy, the reference, the critic, the reward"),
    "rloo": ("sft, reward", "the policy, the reference, the reward"),
    "grpo": ("sft, reward", "the policy, the reference, the reward"),
}


@dataclass(frozen=True)
class Point:
    """One point of the frontier: a method, held back by ``strength`` (β, or n of best-of-n), under a reward."""

    reward: str
    method: str
    strength: float
    seed: int = 0

    @property
    def name(self) -> str:
        """A file's name."""
        return f"{self.reward}-{self.method}-{self.strength:g}-{self.seed}"


def points() -> Iterator[Point]:
    """All of them; the end points, with the least β, twice. The middle ones come last, so that what is there tells the
    most at any time.
    """
    every = [(reward, method) for reward in TITLES for method in BETAS if reward == "truth" or method in PROXY_METHODS]
    yield from (Point(reward, "best-of", n) for reward in TITLES for n in BEST_OF)
    for seed, place in ((0, 0), (0, 2), (1, 0), (0, 1)):
        yield from (Point(reward, method, BETAS[method][place], seed) for reward, method in every)


class Frontier:
    """The models and the rows that the points have in common.

    Args:
        out: folder of the entries and the ledger.
    """

    def __init__(self, out: Path) -> None:
        import tunescope as ts

        self.ts, self.out = ts, out
        self.base = ts.load_base(BASE)
        self.truth = ts.load_judge("sentiment", self.base)

    def entry(self, name: str, objective: Any, data: Any, *, start: str | None = "sft", **settings: Any) -> Path:
        """An entry, trained where it is not there yet."""
        path = self.out / name
        if not path.is_dir():
            if start is not None:
                self.sft  # noqa: B018 (trained first)
            given = {"settings": self.ts.TrainSettings(**settings), "start": self.out / start if start else None}
            self.ts.train(self.base, self.lora, objective, data() if callable(data) else data, out=path, **given)
        return path

    @cached_property
    def lora(self) -> Any:
        """What every stage trains."""
        return self.ts.LoRA(rank=16, targets=("all-linear",))

    @cached_property
    def sft(self) -> Any:
        """The reference of all."""
        path = self.entry("sft", self.ts.SFT(), DATA, start=None, max_steps=40, max_length=160)
        return self.ts.load(path, self.base)

    @cached_property
    def proxy(self) -> Any:
        """A model of the reward, as a judge."""
        settings = {"epochs": 2, "lr": 1e-3, "batch_size": 8}
        path = self.entry("reward", self.ts.Reward(), lambda: str(self.rankings()), **settings)
        return self.ts.load_judge(str(path), self.base)

    def judge(self, reward: str) -> Any:
        """Who scores under this reward."""
        return self.truth if reward == "truth" else self.proxy

    def pairs(self, reward: str) -> Path:
        """The best and the worst of samples of the sft model for each opening, by this reward."""
        out = self.out / f"pairs-{reward}.jsonl"
        if not out.is_file():
            sampling = self.ts.Samples(n=RANKED, max_new_tokens=NEW_TOKENS, seed=0)
            self.ts.make_pairs(self.sft, self.prompts("train")[:LEARNED], self.judge(reward), sampling, out)
        return out

    def rankings(self) -> Path:
        """The same samples of each opening, all of them, ranked by the truth."""
        from tunescope.storage import write_output

        samples: dict[str, dict[str, float]] = {}
        with samples_path(self.pairs("truth")).open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                if row["completion"].strip():
                    samples.setdefault(row["prompt"], {})[row["completion"]] = row["score"]
        lines = []
        for prompt, scored in samples.items():
            order = sorted(set(scored.values()), reverse=True)
            if len(order) > 1:
                ranks = [1 + order.index(score) for score in scored.values()]
                lines.append(json.dumps({"prompt": prompt, "responses": list(scored), "ranks": ranks}) + "\n")
        out = self.out / "rankings.jsonl"
        write_output(out, "".join(lines))
        return out

    def prompts(self, split: str) -> list[Any]:
        """The openings of the tales to train on, or the first ones of the others."""
        from tunescope.data.rows import to_rows

        rows = to_rows(self.ts.read(DATA, split=split), need_completion=False)
        return rows if split == "train" else rows[:HELD_OUT]

    def trained(self, point: Point) -> Path:
        """The entry of a point."""
        if point.method == "dpo":
            objective, data = self.ts.DPO(beta=point.strength), str(self.pairs(point.reward))
            return self.entry(point.name, objective, data, epochs=1, lr=RATES["dpo"], seed=point.seed)
        reward = "sentiment" if point.reward == "truth" else self.proxy.name
        kind = {"ppo": self.ts.PPO, "rloo": self.ts.RLOO, "grpo": self.ts.GRPO}[point.method]
        objective = kind(reward=reward, beta=point.strength, missing_stop="keep", max_new_tokens=NEW_TOKENS, **ROUNDS)
        return self.entry(point.name, objective, DATA, epochs=2, lr=RATES[point.method], seed=point.seed)

    def measure(self, point: Point) -> dict[str, Any]:
        """What a point is worth on openings of tales that nothing learned from."""
        begin, cpu = time.perf_counter(), time.process_time()
        path = self.trained(point)
        customized, record = self.ts.load(path, self.base), self.ts.read_record(path)
        sampling = self.ts.Samples(n=2, max_new_tokens=NEW_TOKENS, seed=1)
        rows = self.prompts("test")
        card = self.ts.evaluate_judged(customized, rows, self.truth, sampling, against=self.sft)
        found = {name: card[name] for name in MEASURED} | {
            "train": record.training,
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": time.process_time() - cpu,
        }
        if point.reward == "proxy":
            proxy = self.ts.evaluate_judged(customized, rows, self.proxy, sampling, against=self.sft)
            found |= {"proxy": proxy["score"], "proxy_sft": proxy["base_score"]}
        return found

    def best_of(self, point: Point) -> dict[str, Any]:
        """The same of the best of n samples of the sft model."""
        from tunescope.evaluation.statistics import bootstrap_interval, paired_difference
        from tunescope.judging import judged_samples

        begin, n, rows = time.perf_counter(), int(point.strength), self.prompts("test")
        sampling, judged = self.ts.Samples(n=n, max_new_tokens=NEW_TOKENS, seed=1), {}
        judged_samples(self.sft, rows, sampling, self.judge(point.reward), judged.__setitem__)
        best, mean = [], []
        for index, row in enumerate(rows):
            truth = self.truth([row] * n, [each.text for each in judged[index]])
            best.append(truth[int(np.argmax([each.score for each in judged[index]]))])
            mean.append(np.mean(truth))
        gain = paired_difference(np.array(best), np.array(mean))
        score, kl = bootstrap_interval(np.array(best)), math.log(n) - (n - 1) / n
        return {
            **{"score": float(np.mean(best)), "score_low": score.low, "score_high": score.high},
            **{"difference": gain.mean, "difference_low": gain.low, "difference_high": gain.high},
            **{"base_score": float(np.mean(mean)), "kl": kl, "kl_low": kl, "kl_high": kl, "rows": len(rows)},
            "seconds": time.perf_counter() - begin,
        }


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Reward against KL with their intervals, a line a method; one panel a reward."""
    from plotly import graph_objects, subplots
    from plotly.colors import qualitative

    rewards = [reward for reward in TITLES if any(p["reward"] == reward for p in found)]
    figure = subplots.make_subplots(1, len(rewards), shared_yaxes=True, subplot_titles=[TITLES[r] for r in rewards])
    colors = dict(zip((*NEEDS, "sft"), qualitative.D3, strict=False))

    def line(column: int, method: str, own: list[dict[str, Any]]) -> None:
        def around(name: str) -> dict[str, Any]:
            far = {"array": [p[f"{name}_high"] - p[name] for p in own]}
            near = {"arrayminus": [p[name] - p[f"{name}_low"] for p in own]}
            return {"symmetric": False, "thickness": 1, "width": 3, **far, **near}

        trace = graph_objects.Scatter(
            x=[p["kl"] for p in own],
            y=[p["score"] for p in own],
            error_x=around("kl"),
            error_y=around("score"),
            name=method,
            legendgroup=method,
            showlegend=column == 1,
            mode="lines+markers",
            marker={"size": 8, "color": colors[method]},
        )
        figure.add_trace(trace, row=1, col=column)

    for column, reward in enumerate(rewards, start=1):
        for method in NEEDS:
            own = [p for p in found if (p["reward"], p["method"]) == (reward, method)]
            if own:
                line(column, method, sorted(own, key=lambda p: float(p["kl"])))
        base = float(np.mean([p["base_score"] for p in found]))
        at_base = {"kl": 0, "kl_low": 0, "kl_high": 0, "score": base, "score_low": base, "score_high": base}
        line(column, "sft", [at_base])
        figure.update_xaxes(title_text="KL from the sft model, nats a sample", row=1, col=column)
    figure.update_yaxes(title_text="VADER's sentiment of a sample", row=1, col=1)
    figure.update_layout(template="plotly_white", width=250 + 500 * len(rewards), height=460)
    figure.write_html(path, include_plotlyjs=True, config={"displayModeBar": False})


def ledger(out: Path) -> dict[str, Any]:
    """All points that were measured, beside what they have in common."""
    files = [path for path in sorted((out / "points").glob("*.json")) if not path.name.startswith(".")]
    found = [json.loads(path.read_text()) for path in files]
    return json.loads((out / "sizes.json").read_text()) | {"points": found}


def main() -> None:
    """Print the ledger as one JSON object; the points as they end go to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--only", nargs="+", choices=NEEDS, default=list(NEEDS), help="methods")
    parser.add_argument("--rewards", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--plot", type=Path, help="an .html page of the points there are")
    args = parser.parse_args()
    from tunescope.storage import write_output

    frontier, sizes = Frontier(args.out), args.out / "sizes.json"
    if not sizes.is_file():
        write_output(sizes, json.dumps({"sizes": SIZES, **machine(), "dtype": str(frontier.base.dtype)}, indent=1))
    if (given := json.loads(sizes.read_text())["sizes"]) != json.loads(json.dumps(SIZES)):
        sys.exit(f"{args.out} has points of other sizes ({given}): choose another --out.")
    for point in points():
        kept = args.out / "points" / f"{point.name}.json"
        if point.method not in args.only or point.reward not in args.rewards or kept.is_file():
            continue
        measured = asdict(point) | (frontier.best_of(point) if point.method == "best-of" else frontier.measure(point))
        write_output(kept, json.dumps(measured, indent=1))
        print(f"{point.name}: {measured['score']:.3f} at {measured['kl']:.2f} nats", file=sys.stderr, flush=True)
    found = ledger(args.out)
    if args.plot:
        plot(found["points"], args.plot)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
