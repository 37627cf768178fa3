"""Reuters R8 on its full standard split: LoRA by several seeds, settings watched on rows of the training part.

    python benchmarks/r8.py [--seeds 0 1 2] [--work FOLDER] [--json]

Of the 5,485 training rows 500, stratified, are kept to see the loss on; LoRA of rank 8 on q and v learns from the
others for two passes; each seed is measured once on the 2,189 test rows. With --work what was trained is kept there,
and a call that was interrupted goes on.

Others on this split: 97.1 (TextGCN, Yao et al. 2019, arXiv:1809.05679), 98.1 (BertGCN, Lin et al. 2021,
arXiv:2105.05727).
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sides import machine

import tunescope as ts

SETTINGS = ("--max-length", "128", "--epochs", "2", "--lr", "2e-3", "--validate-every", "400")
KEPT = 500


def parts(folder: Path) -> str:
    """Write what is learned from and what is watched; returns the template."""
    table = ts.read("reuters-r8")
    labels: dict[str, list[Any]] = {}
    for row in table.rows:
        labels.setdefault(row["label"], []).append(row)
    drawn, watched, learned = random.Random(7), [], []
    for _, rows in sorted(labels.items()):
        drawn.shuffle(rows)
        count = max(3, round(len(rows) * KEPT / len(table.rows)))
        watched, learned = [*watched, *rows[:count]], [*learned, *rows[count:]]
    drawn.shuffle(learned)
    for name, rows in (("val", watched), ("train", learned)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(table.default_template)


def tunescope(*arguments: str, folder: Path) -> Any:
    """What a command prints as JSON; its progress goes to the terminal."""
    command = [sys.executable, "-m", "tunescope", *arguments, "--json"]
    return json.loads(subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main() -> None:
    """Train and measure every seed, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        template = parts(folder)
        found: dict[str, Any] = {**machine(), "seeds": {}}
        for seed in given.seeds:
            data = ("--data", "train.jsonl", "--validation", "val.jsonl", "--template", template)
            entry = f"bank/seed-{seed}"
            if not (folder / entry).exists():
                base = ("--base", "smollm2-135m", "--seed", str(seed), "--out", entry)
                tunescope("train", "lora", *base, *data, *SETTINGS, folder=folder)
            card = tunescope("eval", entry, "--data", "reuters-r8", "--generate-rows", "4", folder=folder)
            kept = ("accuracy", "score_low", "score_high", "macro_f1", "rows", "forgetting_on", "confusion")
            found["seeds"][seed] = {name: card[name] for name in kept}
    accuracies = [each["accuracy"] for each in found["seeds"].values()]
    found["mean"] = sum(accuracies) / len(accuracies)
    if given.json:
        print(json.dumps(found))
        return
    for seed, each in found["seeds"].items():
        print(f"seed {seed}: {each['accuracy']:.2%} ({each['score_low']:.2%} to {each['score_high']:.2%})")
    print(f"mean: {found['mean']:.2%}")


if __name__ == "__main__":
    main()
