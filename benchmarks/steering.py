"""What steering adds: a steered entry at each value of an attribute, beside plain fine-tuning and DPO.

    python benchmarks/steering.py --steered bank/steered --sft bank/sft --dpo bank/dpo --data grimm-sentences \\
        --attribute verbosity --judge examples.attributes:verbosity

Held-out prompts are answered by the fine-tuned entry, by DPO from there (on pairs of its own samples by the same
judge), and by the steered entry, which is asked for each value in turn. Of each: the judge's mean score of what it
writes, and KL(it ‖ base) in nats a completion, both with 95% intervals over the prompts.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from sides import machine


def main() -> None:
    """Measure, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m")
    for name in ("--steered", "--sft", "--dpo", "--attribute", "--judge"):
        parser.add_argument(name, required=True)
    parser.add_argument("--data", default="grimm-sentences")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=112)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    import tunescope as ts
    from tunescope import bank
    from tunescope.data.rows import to_rows
    from tunescope.evaluation.judged import divergence, sampled, scores_of
    from tunescope.evaluation.statistics import bootstrap_interval
    from tunescope.judging import Samples, Unjudged, load_judge
    from tunescope.objectives.reference import untouched

    base = ts.load_base(given.base)
    judge, sampling = load_judge(given.judge, base), Samples(n=given.n, max_new_tokens=given.max_new_tokens)
    rows = to_rows(ts.read(given.data, split="test"))[: given.rows]
    sft, dpo, steered = (bank.load(path, base) for path in (given.sft, given.dpo, given.steered))
    steering = steered.template.steering
    if steering is None or given.attribute not in steering.names:
        sys.exit(f"{given.steered} was not trained on {given.attribute}.")
    plain = untouched(sft)
    sides: list[tuple[str, Any, list[Any]]] = [("base", plain, rows), ("sft", sft, rows), ("dpo", dpo, rows)]
    for value in range(steering.low, steering.high + 1):
        asked = [row.with_attributes(steering.asked({given.attribute: value})) for row in rows]
        sides.append((f"steered, {given.attribute}={value}", steered, asked))
    found = []
    for name, customized, own in sides:
        samples = sampled(customized, own, judge, sampling, Unjudged(0))
        figures = {
            "score": [float(scores_of(judged).mean()) for judged in samples],
            "kl": divergence(customized, plain, own, samples).tolist(),
        }
        side: dict[str, Any] = {"side": name}
        for key, values in figures.items():
            interval = bootstrap_interval(values)
            side |= {key: sum(values) / len(values), f"{key}_low": interval.low, f"{key}_high": interval.high}
        found.append(side)
        if not given.json:
            print("{side:24} {score:.2f} ({score_low:.2f} to {score_high:.2f}) at {kl:.2f} nats".format(**side))
    if given.json:
        print(json.dumps({**machine(), "judge": given.judge, "rows": len(rows), "sides": found}))


if __name__ == "__main__":
    main()
