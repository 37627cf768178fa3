"""Rows as the exact tokens that training would see."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from tunescope.base.loading import load_tokenizer
from tunescope.commands.command import Result
from tunescope.commands.report import Report
from tunescope.data.encoding import Encoded, EncodedPreference, Encoder
from tunescope.data.pairs import Pair
from tunescope.data.rankings import is_preferences, repeated
from tunescope.data.reading import Table, read
from tunescope.data.template import default_template
from tunescope.objectives import DPO, SFT

if TYPE_CHECKING:
    from tunescope.commands.look import LookRequest

Note = Callable[[str], None]

_WIDTH, _BINS = 50, 12
_STYLES = {
    "template": "dim cyan",
    "prompt": "default",
    "trained": "bold black on green",
    "rejected": "black on yellow",
    "stop": "bold white on red",
    "virtual": "magenta",
}


@dataclass(frozen=True)
class _Seen:
    """What training would see of a table."""

    rows: int
    task: str
    encoded: Sequence[Encoded | EncodedPreference]
    encoder: Encoder
    trained: int
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Looked(Result):
    """What training would see.

    Attributes:
        seen: the rows as tokens.
        pieces: of each row that is shown, as (kind, text).
        lengths: of every row, in tokens.
    """

    seen: _Seen
    pieces: list[list[tuple[str, str]]]
    lengths: list[int]

    def show(self, console: Console) -> None:
        """Rows in color, a histogram of their lengths, and what is cut."""
        for example, pieces in zip(self.seen.encoded[: len(self.pieces)], self.pieces, strict=True):
            text = Text()
            for kind, piece in pieces:
                text.append(piece, style=_STYLES[kind])
            cut = f", {example.dropped} prompt tokens cut" if example.dropped else ""
            console.print(Text(f"row of line {example.number}, {len(example)} tokens{cut}", style="bold"))
            console.print(text, "\n")
        legend = Text("colors: ")
        for kind, look in _STYLES.items():
            legend.append(f" {kind} ", style=look).append(" ")
        console.print(legend, "\n")
        if self.lengths:
            _histogram(console, self.lengths)
        values = self.values
        console.print(
            f"{values['rows']} rows, {values['task']}. {values['tokens']} tokens, {values['trained_tokens']} of them "
            f"trained; a row has {values['shortest']} to {values['longest']}, median {values['median']:.0f}."
        )
        for note in [*self.seen.notes, *(self.seen.encoder.notes() or ["Nothing is cut and no row is dropped."])]:
            console.print(note)


def look(request: LookRequest, report: Report) -> Looked:
    """The rows as training would see them."""
    tokenizer, context = load_tokenizer(request.base)
    table = read(request.data, split=request.split, skip_bad=request.skip_bad)
    left = max(request.skip_bad - len(table.skipped), 0)
    pattern = request.template or table.default_template
    made = default_template(tokenizer, pattern=pattern, style=request.style)
    limit = request.max_length
    seen = (
        _preferences(table, Encoder(tokenizer, made, context, limit, DPO.cut), request.template, left, report.note)
        if is_preferences(table)
        else _rows(table, Encoder(tokenizer, made, context, limit), pattern, left, report.note)
    )
    lengths = [len(example) for example in seen.encoded]
    examples = [_pieces(tokenizer, seen.encoder, example) for example in seen.encoded[: request.rows]]
    values: dict[str, Any] = {
        "rows": seen.rows,
        "task": seen.task,
        "trained_tokens": seen.trained,
        "tokens": sum(lengths),
        "shortest": min(lengths, default=0),
        "median": statistics.median(lengths or [0]),
        "longest": max(lengths, default=0),
        "truncated": seen.encoder.truncated,
        "dropped": len(seen.encoder.dropped_rows),
        "skipped": len(table.skipped),
        "examples": examples,
    }
    return Looked(values, seen=seen, pieces=examples, lengths=lengths)


def _rows(table: Table, encoder: Encoder, pattern: str | None, skip_bad: int, on_note: Note) -> _Seen:
    objective = SFT()
    rows = objective.rows(table, pattern, skip_bad, on_note)
    labels, encoded = objective.labels(rows), encoder.encode_all(rows)
    trained = sum(len(e.completion) + sum(b - a for a, b in e.earlier) for e in encoded)
    task = f"classification into {', '.join(labels)}" if labels else "text"
    return _Seen(len(rows), task, encoded, encoder, trained, [])


def _preferences(table: Table, encoder: Encoder, pattern: str | None, skip_bad: int, on_note: Note) -> _Seen:
    rows = DPO().rows(table, pattern, skip_bad, on_note)
    encoded = encoder.encode_pairs(rows)
    trained = sum(len(completion) for row in encoded for completion in row.completions)
    task = "pairs" if isinstance(rows[0], Pair) else "ranked responses"
    return _Seen(len(rows), task, encoded, encoder, trained, repeated(rows))


def _pieces(tokenizer: Any, encoder: Encoder, example: Encoded | EncodedPreference) -> list[tuple[str, str]]:
    """The row as (kind, text): template around it, its own prompt, what is trained, and the stop token."""
    if not isinstance(example, Encoded):
        best, *others = example.completions
        shown = _pieces(tokenizer, encoder, Encoded(example.prompt, best))
        return [*shown, *(("rejected", tokenizer.decode(other)) for other in others)]
    virtual = sum(token < 0 for token in example.prompt)
    spans = [*example.earlier, (len(example.prompt), len(example.prompt) + len(example.completion))]
    tokens = example.prompt + example.completion
    special = set(tokenizer.all_special_ids) | set(encoder.template.stop)
    pieces: list[tuple[str, str]] = [("virtual", f"[{virtual} virtual tokens]")] if virtual else []
    for position, token in enumerate(tokens):
        if token < 0:
            continue
        trained = any(begin <= position < end for begin, end in spans)
        stop = trained and token in encoder.template.stop
        kind = "stop" if stop else "trained" if trained else "template" if token in special else "prompt"
        if pieces and pieces[-1][0] == kind and kind != "stop":
            pieces[-1] = (kind, pieces[-1][1] + "\0" + str(token))
        else:
            pieces.append((kind, str(token)))
    return [
        (kind, text if kind == "virtual" else tokenizer.decode([int(t) for t in text.split("\0")]))
        for kind, text in pieces
    ]


def _histogram(console: Console, lengths: Sequence[int]) -> None:
    low, high = min(lengths), max(lengths)
    width = max((high - low) // _BINS + 1, 1)
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    for i, count in enumerate(counts):
        begin = low + i * width
        bar = "█" * round(_WIDTH * count / max(counts)) or ("▏" if count else "")
        console.print(f"{begin:>6}-{begin + width - 1:<6} {bar} {count}")
    console.print("tokens a row\n", style="dim")
