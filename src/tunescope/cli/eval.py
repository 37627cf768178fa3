"""``eval``."""

from __future__ import annotations

from pathlib import Path

from tunescope import bank
from tunescope.base import load_base
from tunescope.cli.eval_judged import evaluate_by_judge
from tunescope.cli.eval_pairs import evaluate_pairs, score_texts
from tunescope.cli.loading import base_of
from tunescope.cli.options import typed
from tunescope.cli.output import Output, print_facts
from tunescope.data.inputs import has_part
from tunescope.data.pairs import is_pairs
from tunescope.data.reading import read
from tunescope.data.rows import label_set, to_rows
from tunescope.data.splitting import split as split_rows
from tunescope.data.template import default_template
from tunescope.errors import TunescopeError
from tunescope.evaluation import PER_ROW, default_probes, evaluate, user_probes
from tunescope.methods import Customization, Customized, ZeroShot
from tunescope.training.run import rows_hash

# What is measured, and the options that have no meaning there.
_TASK_ONLY = ("probe", "all_probes", "generate_rows")
_UNUSED = {
    "completions are judged": (*_TASK_ONLY, "max_length", "plot"),
    "pairs are measured": (*_TASK_ONLY, "template", "max_new_tokens", "n", "skip_unjudged"),
    "a reward model scores texts": (*_TASK_ONLY, "template", "max_new_tokens", "n", "skip_unjudged", "plot"),
    "a task is measured": ("n", "skip_unjudged", "plot"),
}


def evaluate_entry(
    entry: Path | None,
    base: str | None,
    device: str | None,
    data: str,
    *,
    split: str | None,
    template: str | None,
    style: str,
    probe: Path | None,
    all_probes: bool,
    max_rows: int | None,
    generate_rows: int | None,
    max_new_tokens: int,
    max_length: int | None,
    skip_bad: int,
    plot: Path | None,
    judge: str | None,
    n: int,
    skip_unjudged: int,
    given: set[str],
    output: Output,
) -> None:
    """Measure an entry, keep the measurements in its record, and print them. ``given`` are the options that were."""
    if entry is None and base is None:
        raise TunescopeError("Name what to measure: an entry of a bank, or a base with --base.")
    template = typed(template, output.note)
    record = bank.read_record(entry) if entry is not None else None
    if record and style not in ("auto", record.template.style):
        raise TunescopeError(
            f"{entry} was made in {record.template.style} style; measuring it in {style} style would not measure what "
            "it serves. Leave --style out."
        )
    if split is None and has_part(data, "test"):
        split = "test"
    table = read(data, split=split, skip_bad=skip_bad)
    left = skip_bad - len(table.skipped)
    if judge is not None:
        _refuse_unused("completions are judged", given)
        evaluate_by_judge(
            entry, base, device, table, judge=judge, n=n, template=template, max_rows=max_rows,
            max_new_tokens=max_new_tokens, skip_bad=left, skip_unjudged=skip_unjudged, output=output,
        )  # fmt: skip
        return
    if max_length is None and record and record.train_settings:
        max_length = record.train_settings.get("max_length")
    if entry is not None and is_pairs(table):
        _refuse_unused("pairs are measured", given)
        evaluate_pairs(
            entry,
            base,
            device,
            table,
            max_rows=max_rows,
            max_length=max_length,
            skip_bad=left,
            plot=plot,
            output=output,
        )
        return
    if entry is not None and record is not None and record.objective == "reward":
        _refuse_unused("a reward model scores texts", given)
        score_texts(entry, base, device, table, max_rows=max_rows, max_length=max_length, skip_bad=left, output=output)
        return
    _refuse_unused("a task is measured", given)
    pattern = template or (record.template.pattern if record else None) or table.default_template
    if record and record.template.pattern and pattern != record.template.pattern:
        raise TunescopeError(
            f"{entry} was made with the template {record.template.pattern!r}; measuring it under another would not "
            "measure what it serves. Leave --template out."
        )
    rows = to_rows(table, pattern, skip_bad=left, on_note=output.note)
    labels = record.labels if record else label_set(rows)
    if generate_rows == 0 and not labels:
        raise TunescopeError("--generate-rows 0 leaves nothing to score: the answers are free texts. Give at least 1.")
    customized = _customized(entry, base, device, pattern, style)
    if record and record.data and rows_hash(rows) == record.data.sha256:
        output.note("These are the rows it was trained on: the scores say nothing about new rows.")
    if max_rows is not None and max_rows < len(rows):
        names = [row.completion or "" for row in rows] if labels else None
        rows = [rows[i] for i in split_rows(len(rows), names, max_rows, 0)[1]]
    probes = user_probes(probe) if probe is not None else default_probes(everything=all_probes)
    with output.progress.status("measuring") as status:
        card = evaluate(
            customized,
            rows,
            labels=labels,
            probes=probes,
            generate_rows=generate_rows,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            on_stage=lambda stage: status.update(f"measuring: {stage}"),
        )
    card = {key: value for key, value in card.items() if key not in PER_ROW}
    if entry is not None and record is not None:
        card["artifact_mb"] = bank.size_mb(entry)
        bank.write_card(entry, card, record)
    for note in card["notes"]:
        output.note(note)
    shown = {k: v for k, v in card.items() if k not in ("probes", "notes")}
    for name, found in (card.get("probes") or {}).items():
        interval = f"[{found['accuracy_low']:.3f}, {found['accuracy_high']:.3f}]"
        of_base = f"base {found['base_accuracy']:.3f}, {found['rows']} questions"
        shown[name] = f"{found['accuracy']:.3f} {interval} ({of_base})"
    output.result(card, lambda console: print_facts(console, shown))


def _refuse_unused(where: str, given: set[str]) -> None:
    for name in _UNUSED[where]:
        if name in given:
            raise TunescopeError(f"--{name.replace('_', '-')} has no meaning where {where}: leave it out.")


def _customized(
    entry: Path | None, base: str | None, device: str | None, pattern: str | None, style: str
) -> Customized:
    if entry is not None:
        return bank.load(entry, base_of(entry, base, device))
    assert base is not None  # the callers asked for one of the two
    loaded = load_base(base, device=device)
    template = default_template(loaded.tokenizer, pattern=pattern, style=style)
    return Customized(loaded, Customization(ZeroShot(), template, {}), loaded)
