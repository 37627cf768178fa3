"""What each part of PPO is for: the bandit of the tests with one part left out.

    PYTHONPATH=. python benchmarks/ablations.py [--rounds 20] [--seeds 3]

An answer is one token of a tiny model, so the best policy for E[r] - β KL is known, and what a policy reaches is exact:
the share of what there is to gain, over all tokens. 16 samples of each of 4 prompts a round, β = 0.2.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from tests.training.test_policy import gain, objective

from tunescope.objectives import ppo

PARTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without whitening": {"whiten": False},
    "without the distance": {"beta": 0.0},
    "without a critic": {},
}


def main() -> None:
    """Print one JSON object: by what is left out the share gained with each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    values, found = ppo.critic_values, {}
    for name, changes in PARTS.items():
        if name == "without a critic":  # which foresees nothing
            ppo.critic_values = lambda critic, rollouts: [[[0.0] * len(ids) for ids in e.completions] for e in rollouts]
        wanted = {"max_new_tokens": 1, "n": 16, "rounds": args.rounds, "beta": 0.2} | changes
        found[name] = [round(gain(objective("ppo", **wanted), 0.2, seed), 3) for seed in range(args.seeds)]
        ppo.critic_values = values
    print(json.dumps({"rounds": args.rounds, "gained": found}))


if __name__ == "__main__":
    main()
