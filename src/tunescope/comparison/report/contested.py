"""The test rows that methods answer differently, and those that none gets right: where to look at the data itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunescope.comparison import formatting as form
from tunescope.comparison.results import Comparison, MethodResult, RowText
from tunescope.data.tokenizing import common_prefix

# Rows of each kind that the page shows: as many as people read.
_MOST = 20
# A text that a method writes may differ this much in chrF from another's before the row is contested.
_APART = 20.0


@dataclass(frozen=True)
class Answer:
    """What some methods answered to a row.

    Attributes:
        text: the label, or what was written.
        right: whether it is what was expected; None for texts, which are more or less near.
        methods: names of rows of the comparison.
        score: how near a text came, as it is shown; empty for labels.
    """

    text: str
    right: bool | None
    methods: Sequence[str]
    score: str = ""


@dataclass(frozen=True)
class Contested:
    """A test row with what was answered to it, the most given answer first.

    Attributes:
        row: the test row.
        answers: to it.
        own: its text without what the texts of all rows begin with, such as an instruction.
    """

    row: RowText
    answers: Sequence[Answer]
    own: str


@dataclass(frozen=True)
class Answered:
    """The test rows, by who gets them right.

    Attributes:
        contested: on which methods differ, those first that part them most evenly, or whose texts are furthest apart.
        all_wrong: which no method gets right; none where answers are texts.
        counts: how many rows all get right, some do, and none does; empty where answers are texts.
    """

    contested: list[Contested]
    all_wrong: list[Contested]
    counts: tuple[int, ...] = ()


def answered(comparison: Comparison) -> Answered | None:
    """The test rows that all methods with answers have in common; None where fewer than two have any."""
    rows = [row for row in comparison.rows if row.answers and row.row_keys]
    if len(rows) < 2 or comparison.split != "test":
        return None
    shared = [each for each in comparison.tested if all(each.key in row.answers for row in rows)]
    begin = _common_begin([each.prompt for each in shared])
    if comparison.metric != "accuracy":
        return Answered(_by_text(shared, rows, comparison.metric, begin)[:_MOST], [])
    found = [(each, _share_right(each, rows)) for each in shared]
    contested = sorted((abs(share - 0.5), i) for i, (_, share) in enumerate(found) if 0 < share < 1)
    wrong = [each for each, share in found if share == 0]
    return Answered(
        [
            Contested(found[i][0], _by_label(found[i][0], rows), found[i][0].prompt[begin:])
            for _, i in contested[:_MOST]
        ],
        [Contested(each, _by_label(each, rows), each.prompt[begin:]) for each in wrong[:_MOST]],
        (sum(share == 1 for _, share in found), len(contested), len(wrong)),
    )


def _common_begin(texts: Sequence[str]) -> int:
    """How many characters all texts begin with, in whole words; none where a text is nothing else, or the only one."""
    first = texts[0] if texts else ""
    shared = min((common_prefix(first, text) for text in texts[1:]), default=0)
    if any(len(text) == shared for text in texts):
        return 0
    return max((i + 1 for i, character in enumerate(first[:shared]) if character.isspace()), default=0)


def _share_right(tested: RowText, rows: Sequence[MethodResult]) -> float:
    return sum(row.answers[tested.key] == tested.expected for row in rows) / len(rows)


def _by_label(tested: RowText, rows: Sequence[MethodResult]) -> list[Answer]:
    given: dict[str, list[str]] = {}
    for row in rows:
        given.setdefault(row.answers[tested.key], []).append(row.name)
    found = [Answer(label, label == tested.expected, names) for label, names in given.items()]
    return sorted(found, key=lambda answer: -len(answer.methods))


def _by_text(shared: Sequence[RowText], rows: Sequence[MethodResult], metric: str, begin: int) -> list[Contested]:
    """Rows whose texts are far apart in score, the furthest first."""
    scores = {row.name: dict(zip(row.row_keys, row.per_row, strict=True)) for row in rows}
    apart = _APART if metric == "chrf" else 0.0
    found = []
    for tested in shared:
        own = sorted(((scores[row.name].get(tested.key, 0.0), row) for row in rows), key=lambda each: -each[0])
        answers = [
            Answer(row.answers[tested.key], None, [row.name], form.number(score, form.digits(metric)))
            for score, row in own
        ]
        found.append((own[0][0] - own[-1][0], Contested(tested, answers, tested.prompt[begin:])))
    return [each for spread, each in sorted(found, key=lambda pair: -pair[0]) if spread > apart]
