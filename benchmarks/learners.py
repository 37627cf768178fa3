"""Several settings of one method, trained in the same passes of the base against one after the other.

    python benchmarks/learners.py [--dtype float32] [--learners 4] [--steps 3] [--repeats 3] [--json]

LoRA of rank 8 on SmolLM2-135M-Instruct at as many learning rates as there are learners, on Reuters R8 cut at 128
tokens. For 1, 2, 4 and 8 rows a step, once with the rows' common prefix computed once a step, as training does, and
once with each row by itself: the ratio of the fastest repeats' times; above 1 the shared passes win.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = (1, 2, 4, 8)


def seconds(learners: list[Any], *, together: bool) -> float:
    """How long all of them train."""
    from tunescope.training.loop import train_loop

    began = time.perf_counter()
    for group in [learners] if together else [[learner] for learner in learners]:
        train_loop(group)
    return time.perf_counter() - began


def main() -> None:
    """Print a line for each number of rows, or one object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--learners", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    import tunescope as ts
    from tunescope.data import batching
    from tunescope.data.encoding import Encoder
    from tunescope.data.rows import to_rows
    from tunescope.data.template import default_template
    from tunescope.methods import customize
    from tunescope.training import Learner

    base = ts.load_base("smollm2-135m", dtype=args.dtype)
    template = default_template(base.tokenizer)
    encoder = Encoder(base.tokenizer, template, base.context_length, 128)
    examples = encoder.encode_all(to_rows(ts.read("reuters-r8"))[:256])

    def learners(rows: int, folder: Path) -> list[Any]:
        made = []
        for number in range(args.learners):
            own = folder / str(number)
            own.mkdir(parents=True)
            settings = ts.TrainSettings(max_steps=args.steps, batch_size=rows, lr=1e-4 * 2**number)
            customized = customize(base, ts.LoRA(rank=8), template)
            made.append(Learner(customized, ts.SFT(), examples, settings, own))
        return made

    found: dict[str, Any] = {}
    worth = batching._WORTH
    for prefix in ("shared", "apart"):
        batching._WORTH = worth if prefix == "shared" else 0.0
        for rows in ROWS:
            taken: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(args.repeats):
                for together in (True, False):
                    with tempfile.TemporaryDirectory() as folder:
                        taken[together].append(seconds(learners(rows, Path(folder)), together=together))
            ratio = min(taken[False]) / min(taken[True])
            found[f"{rows}_rows_prefix_{prefix}_speed_ratio"] = round(ratio, 3)
            if not args.json:
                print(f"{rows} rows a step, prefix {prefix}: {ratio:.2f}x", flush=True)
    batching._WORTH = worth
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
