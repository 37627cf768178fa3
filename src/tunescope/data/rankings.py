"""Ranked responses: several completions of one prompt, and how good each is among them. A pair is a ranking of two.

Columns: ``prompt, responses, ranks``, with a list of two or more completions and a list of as many numbers; 1 is the
best, and completions of one rank are tied. Prompt and completions are understood as those of pairs are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeAlias

from tunescope.data.compared import Compared, convert, number
from tunescope.data.json_rows import strict_json
from tunescope.data.messages import Message, describe
from tunescope.data.pairs import Pair, is_pairs, to_pairs
from tunescope.data.reading import Table
from tunescope.data.rows import Row
from tunescope.errors import DataError


@dataclass(frozen=True)
class Ranking:
    """Completions of one prompt, with their ranks.

    Attributes:
        messages: what stands before the completions; the last one is the user's. One for a prompt given as text.
        responses: the completions, at least two, as ``rows.spoken`` gives them. Of a row that was read the best first.
        ranks: of each, 1 for the best, 2 for the next; equal where they are tied, but not all.
        number: line in the file, from 1, for messages about it.

    Raises:
        DataError: not one rank a response, or all are tied.
    """

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    number: int

    def __post_init__(self) -> None:
        if len(self.ranks) != len(self.responses):
            raise DataError(f"Ranking {self.number} has {len(self.ranks)} ranks for {len(self.responses)} responses.")
        if len(set(self.ranks)) < 2:
            raise DataError(f"Ranking {self.number} has no two responses of different rank, so nothing to learn.")

    @property
    def content(self) -> list[Any]:
        """The ranking's content, without its line number."""
        return [self.messages, self.responses, self.ranks]

    @property
    def best(self) -> Row:
        """The prompt with its best completion, the first of them."""
        return Row(self.messages, self.responses[self.ranks.index(min(self.ranks))], self.number)


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking as tokens.

    Attributes:
        prompt: the token ids that all texts begin with, up to the end of the prompt. A negative id -1 - i is the i-th
            virtual token.
        completions: token ids of each response, the stop token last.
        ranks: of each; 1 is the best.
        dropped: how many prompt tokens were cut to fit.
        number: the ranking's line in its file.
        reference: log-probabilities of the completions under the reference, in nats, once they are known.
    """

    margin: ClassVar[None] = None  # ranks say which is better, and not by how much
    prompt: list[int]
    completions: list[list[int]]
    ranks: tuple[int, ...]
    dropped: int = 0
    number: int = 0
    reference: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + sum(map(len, self.completions))


Preference: TypeAlias = Pair | Ranking
"""What a preference objective learns from."""


def untied(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """Indices (better, worse) of every two of different rank, by the better one's place and then the worse one's."""
    count = range(len(ranks))
    return [(i, j) for i in count for j in count if ranks[i] < ranks[j]]


def is_preferences(table: Table) -> bool:
    """Whether a table's columns are those of pairs or of ranked responses."""
    return is_pairs(table) or _is_rankings(table)


def to_preferences(
    table: Table, *, skip_bad: int = 0, on_note: Callable[[str], None] = lambda note: None
) -> list[Pair] | list[Ranking]:
    """Understand the columns of a table of ranked responses, or of pairs where it has theirs; see ``to_pairs``."""
    read = to_rankings if _is_rankings(table) and not is_pairs(table) else to_pairs
    return read(table, skip_bad=skip_bad, on_note=on_note)


def to_rankings(
    table: Table, *, skip_bad: int = 0, on_note: Callable[[str], None] = lambda note: None
) -> list[Ranking]:
    """Understand the columns of a table of ranked responses.

    Args:
        table: rows as read.
        skip_bad: how many rows that do not fit may be left out.
        on_note: callback for what is worth knowing of how they were read, as that of ``to_rows``.

    Raises:
        DataError: rows that do not fit, each with its line and reason.
    """
    high: list[int] = []
    make = partial(_ranking, high)
    found = convert(table, ("responses", "ranks"), _responses, make, skip_bad=skip_bad, on_note=on_note)
    if high:
        rows = "1 row has" if len(high) == 1 else f"{len(high)} rows have"
        on_note(
            f"{table.path}: {rows} no rank of 1 (the first on line {high[0]}); the lowest rank is taken for the best. "
            "Scores, of which the highest is the best, have to be turned into ranks."
        )
    return found


def repeated(rows: Sequence[Preference]) -> list[str]:
    """Notes on rows that occur more than once; empty when none does."""
    first: dict[str, int] = {}
    again = [row.number for row in rows if first.setdefault(repr(row.content), row.number) != row.number]
    if not again:
        return []
    shown = ", ".join(map(str, again[:10])) + (" …" if len(again) > 10 else "")
    noun = "pair" if all(isinstance(row, Pair) for row in rows) else "row"
    they, lines = (f"1 {noun} repeats", "line") if len(again) == 1 else (f"{len(again)} {noun}s repeat", "lines")
    return [f"{they} an earlier one word for word and counts again ({lines} {shown})."]


def _is_rankings(table: Table) -> bool:
    return {"responses", "ranks"} <= set(table.columns)


def _responses(fields: Mapping[str, Any]) -> dict[str, Any] | str:
    """The responses of a row by their place, or why it has none."""
    found = _list(fields.get("responses"))
    if found is None:
        return f"responses is {describe(fields.get('responses'))}, expected a list of texts"
    if len(found) < 2:
        return f"responses has {len(found)} text{'s' * (len(found) != 1)}, expected 2 or more to compare"
    return {f"response {place}": value for place, value in enumerate(found, start=1)}


def _ranking(high: list[int], fields: Mapping[str, Any], found: Compared, line: int) -> Ranking | str:
    """The ranking of a row, or why there is none; its line is added to ``high`` where its best rank is not 1."""
    ranks = _ranks(fields.get("ranks"), len(found.completions))
    if isinstance(ranks, str):
        return ranks
    best: dict[str, int] = {}
    for place, text in enumerate(found.completions):
        other = best.setdefault(text, place)
        if ranks[other] != ranks[place]:
            return f"responses {other + 1} and {place + 1} are equal, but their ranks are not"
    # Tied ones may have their mean place for a rank: 2 where the best three are tied.
    if min(ranks) > (ranks.count(min(ranks)) + 1) / 2:
        high.append(line)
    order = sorted(range(len(ranks)), key=lambda place: ranks[place])
    levels = sorted(set(ranks))
    responses = tuple(found.completions[place] for place in order)
    return Ranking(found.messages, responses, tuple(levels.index(ranks[place]) + 1 for place in order), line)


def _ranks(value: Any, count: int) -> list[float] | str:
    """The ranks of ``count`` responses, or why they are not usable."""
    given = _list(value)
    if given is None:
        return f"ranks is {describe(value)}, expected a list of numbers"
    if len(given) != count:
        return f"ranks has {len(given)} number{'s' * (len(given) != 1)} for {count} responses"
    ranks = []
    for place, each in enumerate(given, start=1):
        rank = number(each)
        if rank is None:
            return f"rank {place} is {describe(each)}, expected a number"
        if rank < 1:
            return f"rank {place} is {rank:g}, expected 1 (the best) or more"
        ranks.append(rank)
    return ranks if len(set(ranks)) > 1 else "all ranks are equal, so none of the responses is better than another"


def _list(value: Any) -> list[Any] | None:
    """A list, also one written as JSON text, as a CSV file has it; None where it is none."""
    if isinstance(value, str):
        try:
            value = strict_json(value)
        except ValueError:
            return None
    return list(value) if isinstance(value, list | tuple) else None
