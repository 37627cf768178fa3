"""Pairs from a model's own samples: of each prompt's completions the one that a judge finds best, and the worst.

What is done lies in ``.pairs`` beside the file that is made, prompt by prompt, until all of it is: a call that was
killed goes on where it was when it is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import operator
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunescope import storage
from tunescope.data.rows import Row
from tunescope.errors import DataError, Interrupted, TunescopeError
from tunescope.judging.functions import prompt_of
from tunescope.judging.judges import Judge, check_answers
from tunescope.judging.samples import Judged, Samples, Unjudged, judged_samples, with_score
from tunescope.locks import writing
from tunescope.methods import Customized
from tunescope.methods.fingerprint import hash_customized

_DONE, _RECIPE = "samples.jsonl", "recipe.json"
UNFINISHED = storage.Kind("unfinished call of pairs", unsealed=(_DONE, _RECIPE))
_RESTART = "Start over with --restart."


@dataclass
class Made:
    """What was made.

    Attributes:
        pairs: rows of ``prompt, chosen, rejected, reward_chosen, reward_rejected``, in the order of the prompts.
        samples: rows of ``line, sample, prompt, completion, score, finished, tokens``, and ``unjudged`` with the reason
            where there is no score.
        undecided: lines of prompts that give no pair, since fewer than two samples differ in text and score.
        seconds: sampling and judging, of this call alone.
        new_tokens: sampled by this call.
        notes: what is worth knowing.
    """

    pairs: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    undecided: list[int]
    seconds: float
    new_tokens: int
    notes: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The counts, the mean score of all samples, and of the chosen and the rejected ones."""
        scores = [sample["score"] for sample in self.samples if sample["score"] is not None]
        return {
            "prompts": len(self.pairs) + len(self.undecided),
            "samples": len(self.samples),
            "unjudged": len(self.samples) - len(scores),
            "pairs": len(self.pairs),
            "mean_score": _mean(scores),
            "mean_chosen": _mean([pair["reward_chosen"] for pair in self.pairs]),
            "mean_rejected": _mean([pair["reward_rejected"] for pair in self.pairs]),
            "finished": _mean([float(sample["finished"]) for sample in self.samples]),
            "mean_tokens": _mean([sample["tokens"] for sample in self.samples]),
            "tokens_per_s": round(self.new_tokens / self.seconds, 1) if self.new_tokens else None,
            "seconds": round(self.seconds, 1),
        }


def make_pairs(
    customized: Customized,
    rows: Sequence[Row],
    judge: Judge,
    sampling: Samples,
    out: Path,
    *,
    skip_unjudged: int = 10,
    restart: bool = False,
    overwrite: bool = False,
    on_prompt: Callable[[int], None] = lambda done: None,
) -> Made:
    """Sample, judge, and write ``out`` with the pairs and, beside it, ``NAME.samples.jsonl`` with all samples.

    Args:
        customized: whose completions; a base alone is one too.
        rows: prompts.
        judge: higher is better.
        sampling: at least two completions of each prompt.
        out: the file to write.
        skip_unjudged: how many samples the judge may fail on.
        restart: drop what an unfinished call sampled.
        overwrite: replace files of an earlier call.
        on_prompt: callback with the number of prompts done.

    Raises:
        DataError: a prompt that cannot be answered, or without the answer that the judge needs; more failures of the
            judge than allowed; no pair at all; or an unfinished call with other settings.
        TunescopeError: a file of that name is there, or another run writes it.
        Interrupted: after Ctrl-C; what was sampled is kept.
    """
    if sampling.n < 2:
        raise DataError(f"n is {sampling.n}: a pair needs at least two completions of a prompt.")
    check_answers(judge, rows)
    with writing(out), writing(samples_path(out)):
        _check_files(out, overwrite)
        return _made(customized, rows, judge, sampling, out, skip_unjudged, restart, on_prompt)


def _made(
    customized: Customized,
    rows: Sequence[Row],
    judge: Judge,
    sampling: Samples,
    out: Path,
    skip_unjudged: int,
    restart: bool,
    on_prompt: Callable[[int], None],
) -> Made:
    work = _work_folder(out)
    if restart:
        storage.remove_folder(work, UNFINISHED)
    work = storage.claim_folder(work, UNFINISHED)
    _check_recipe(work, out, _recipe(customized, rows, judge, sampling))
    done = _unfinished(work / _DONE, len(rows))
    failed = Unjudged(skip_unjudged)
    for index, judged in done.items():
        done[index] = _judged_again(judge, rows[index], judged)
        failed.add(rows[index].number, done[index])
    left = [index for index in range(len(rows)) if index not in done]
    new_tokens, started = 0, time.perf_counter()
    on_prompt(len(done))
    with storage.disk_errors(work), (work / _DONE).open("a", encoding="utf-8") as file:

        def keep(i: int, judged: list[Judged]) -> None:
            nonlocal new_tokens
            failed.add(rows[left[i]].number, judged)
            done[left[i]] = judged
            new_tokens += sum(len(each.tokens) for each in judged)
            file.write(json.dumps([left[i], [asdict(each) for each in judged]], ensure_ascii=False) + "\n")
            file.flush()
            on_prompt(len(done))

        try:
            judged_samples(customized, [rows[index] for index in left], sampling, judge, keep)
        except KeyboardInterrupt:
            raise Interrupted(
                f"Stopped after {len(done)} of {len(rows)} prompts. Make the same call to go on from there."
            ) from None
    made = _pairs(rows, done, time.perf_counter() - started, new_tokens)
    made.notes += [*failed.notes(), *_cut(made.samples, sampling.max_new_tokens)]
    if not made.pairs and failed.seen:  # the samples stay for a judge that is mended
        raise DataError(
            f"There are no pairs: {failed.notes()[0]}\nMend the judge and make the same call: what was sampled is kept."
        )
    if not made.pairs:
        _remove(work)
        raise DataError(
            f"None of {len(rows)} prompts has two samples that differ in text and score, so there are no pairs. Sample "
            "more freely (--temperature, --n, another --seed), or take a judge that tells them apart."
        )
    storage.write_output(samples_path(out), _lines(made.samples))
    storage.write_output(out, _lines(made.pairs))
    _remove(work)
    return made


def _remove(work: Path) -> None:
    storage.remove_folder(work, UNFINISHED)
    with contextlib.suppress(OSError):  # other calls' work lies there too
        work.parent.rmdir()


def _judged_again(judge: Judge, row: Row, judged: Sequence[Judged]) -> list[Judged]:
    """The samples of an unfinished call; a judge that had no score for some may have been mended since."""
    return [each if each.unjudged is None else with_score(each, judge([row], [each.text])[0]) for each in judged]


def samples_path(out: Path) -> Path:
    """Where all samples of the pairs in ``out`` lie."""
    return out.with_name(f"{out.stem}.samples.jsonl")


def check_files(out: Path, overwrite: bool) -> None:
    """Stop before any work where its result would have no place.

    Raises:
        TunescopeError: a name that is none of JSON lines, a file that is there and not to be replaced, or another run
            that writes it.
    """
    with writing(out), writing(samples_path(out)):
        _check_files(out, overwrite)


def _check_files(out: Path, overwrite: bool) -> None:
    if out.suffix != ".jsonl":
        raise TunescopeError(f"{out}: pairs are written as JSON lines. Give --out a name that ends in .jsonl.")
    goes_on = (_work_folder(out) / _DONE).is_file()  # a call that was killed while it wrote its files
    for path in (out, samples_path(out)):
        if path.exists() and not overwrite and not goes_on:
            raise TunescopeError(f"{path} exists already. Choose another --out, or replace it with --overwrite.")
        storage.check_output(path)


def _work_folder(out: Path) -> Path:
    out = storage.resolved(out)
    return out.parent / ".pairs" / out.name


def _pairs(rows: Sequence[Row], done: dict[int, list[Judged]], seconds: float, new_tokens: int) -> Made:
    made = Made([], [], [], seconds, new_tokens)
    for index, row in enumerate(rows):
        prompt = prompt_of(row.messages)
        for number, each in enumerate(done[index], start=1):
            about: dict[str, Any] = {"line": row.number, "sample": number, "prompt": prompt, "completion": each.text}
            about |= {"score": each.score, "finished": each.finished, "tokens": len(each.tokens)}
            made.samples.append(about | ({"unjudged": each.unjudged} if each.unjudged is not None else {}))
        # An empty completion is no answer that could be preferred or avoided.
        usable = [(each.score, each.text) for each in done[index] if each.score is not None and each.text.strip()]
        # Of equal scores the first sample: an order of texts would be learned as a preference.
        by_score = operator.itemgetter(0)
        best, chosen = max(usable, key=by_score, default=(0, ""))
        worst, rejected = min(usable, key=by_score, default=(0, ""))
        if best == worst or chosen.strip() == rejected.strip():
            made.undecided.append(row.number)
            continue
        pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        made.pairs.append(pair | {"reward_chosen": best, "reward_rejected": worst})
    if made.undecided:
        shown = ", ".join(map(str, made.undecided[:10])) + (" …" if len(made.undecided) > 10 else "")
        made.notes.append(
            f"{len(made.undecided)} of {len(rows)} prompts give no pair, as no two samples differ in text and score "
            f"(lines {shown})."
        )
    return made


def _cut(samples: Sequence[dict[str, Any]], limit: int) -> list[str]:
    """Notes on completions that the limit cut: in training every completion ends in a stop token."""
    cut = sum(not sample["finished"] for sample in samples)
    if not cut:
        return []
    return [
        f"{cut} of {len(samples)} samples were cut at {limit} tokens, and what learns from them learns to stop there. "
        "--max-new-tokens allows more."
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _recipe(customized: Customized, rows: Sequence[Row], judge: Judge, sampling: Samples) -> dict[str, Any]:
    """What decides which samples there are."""
    asked = [[row.number, row.messages, *([row.completion] if judge.needs_answers else [])] for row in rows]
    prompts = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    return {
        "base": customized.origin.fingerprint.computing,
        "customization": hash_customized(customized),
        "prompts": prompts,
        "judge": judge.name,
        **sampling.model_dump(mode="json"),
    }


def _check_recipe(work: Path, out: Path, recipe: dict[str, Any]) -> None:
    """Refuse to go on with samples that other settings gave."""
    path = work / _RECIPE
    if (work / _DONE).is_file():
        before = storage.read_state(path, lambda text: dict(json.loads(text)), _RESTART)
        if differing := [name for name in recipe if before.get(name) != recipe[name]]:
            raise DataError(
                f"Unfinished samples for {out} had other settings ({', '.join(differing)}). Give the same settings to "
                "go on with them, or --restart to start over."
            )
    storage.atomic_write(path, json.dumps(recipe, indent=2))


def _unfinished(path: Path, rows: int) -> dict[int, list[Judged]]:
    """What an earlier call sampled; a line that it was killed in is cut off.

    Raises:
        TunescopeError: another line is damaged.
    """
    if not path.is_file():
        return {}
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)

    def parse(text: str) -> dict[int, list[Judged]]:
        lines = text.split("\n")[:-1]  # not splitlines, which takes characters of a completion for ends of lines
        found = {index: [Judged(**each) for each in judged] for index, judged in map(json.loads, lines)}
        if strange := [index for index in found if index not in range(rows)]:
            raise ValueError(f"it names prompt {strange[0]}, and there are {rows}")
        return found

    return storage.read_state(path, parse, _RESTART)
