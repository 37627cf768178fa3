"""The content of a pair: a prompt, the completion that was preferred, and the one that was not.

Columns as TRL's: ``prompt, chosen, rejected``, each text or a list of messages; or ``chosen, rejected`` alone, two
whole texts, transcripts or conversations whose common prefix is the prompt. As LLaMA-Factory's: ``conversations,
chosen, rejected`` with turns of ``from`` and ``value``. A prompt that whole texts repeat is left out of them. How much
better the chosen one is may stand in ``margin``, or follows from ``reward_chosen, reward_rejected``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tunescope.data.compared import Compared, convert, number
from tunescope.data.messages import Message, describe
from tunescope.data.reading import Table
from tunescope.data.rows import Row
from tunescope.errors import DataError

_MARGIN = ("margin", "reward_chosen", "reward_rejected")


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt.

    Attributes:
        messages: what stands before the completions; the last one is the user's. One for a prompt given as text.
        chosen: the preferred completion, as ``rows.spoken`` gives it.
        rejected: the other one.
        number: line in the file, from 1, for messages about it.
        margin: how much better the chosen one is, in the unit of whoever judged; None where it is not given.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    number: int
    margin: float | None = None

    @property
    def content(self) -> list[Any]:
        """The pair's content, without its line number."""
        return [self.messages, self.chosen, self.rejected, self.margin]

    @property
    def best(self) -> Row:
        """The prompt with its chosen completion."""
        return Row(self.messages, self.chosen, self.number)


def is_pairs(table: Table) -> bool:
    """Whether a table's columns are those of pairs."""
    return {"chosen", "rejected"} <= set(table.columns)


def to_pairs(table: Table, *, skip_bad: int = 0, on_note: Callable[[str], None] = lambda note: None) -> list[Pair]:
    """Understand the columns of a table of pairs. Identical pairs are kept: each counts.

    Args:
        table: rows as read.
        skip_bad: how many rows that do not fit may be left out.
        on_note: callback for what is worth knowing of how the pairs were read, as that of ``to_rows``.

    Raises:
        DataError: columns that make no pairs, or rows that do not fit theirs, each with its line and reason.
    """
    columns = set(table.columns)
    if missing := sorted({"chosen", "rejected"} - columns):
        raise DataError(
            f"{table.path}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; the columns are "
            f"{', '.join(sorted(columns))}. Pairs have prompt, chosen, rejected (or chosen and rejected with a common "
            "prefix), ranked responses have prompt, responses, ranks."
        )
    if unclear := _unclear_margin(columns):
        raise DataError(f"{table.path}: {unclear}.")
    return convert(table, ("chosen", "rejected", *_MARGIN), _completions, _pair, skip_bad=skip_bad, on_note=on_note)


def _completions(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fields.get(name) for name in ("chosen", "rejected")}


def _pair(fields: Mapping[str, Any], found: Compared, line: int) -> Pair | str:
    """The pair of a row, or why there is none."""
    chosen, rejected = found.completions
    if chosen == rejected:
        return "chosen and rejected are equal"
    margin = _margin(fields)
    return margin if isinstance(margin, str) else Pair(found.messages, chosen, rejected, line, margin)


def _margin(fields: Mapping[str, Any]) -> float | str | None:
    """How much better the chosen completion is, None where no column says, or why the column is not usable."""
    if unclear := _unclear_margin(fields):
        return unclear
    values = {}
    for column in _MARGIN:
        if column in fields:
            value = number(fields[column])
            if value is None:
                return f"{column} is {describe(fields[column])}, expected a number"
            values[column] = value
    if "margin" in values:
        return values["margin"] if values["margin"] >= 0 else f"margin is {values['margin']:g}, expected 0 or more"
    if not values:
        return None
    margin = values["reward_chosen"] - values["reward_rejected"]
    if margin < 0:
        return (
            f"reward_chosen {values['reward_chosen']:g} is below reward_rejected {values['reward_rejected']:g}: the "
            "completions look exchanged"
        )
    return margin


def _unclear_margin(columns: Collection[str]) -> str | None:
    """Why columns do not say how much better the chosen completion is, if they say it in no way or in two."""
    stand = [column for column in _MARGIN if column in columns]
    if stand in ([], ["margin"], ["reward_chosen", "reward_rejected"]):
        return None
    return (
        "how much better a chosen completion is stands in margin, or in reward_chosen and reward_rejected together; "
        f"here stand {', '.join(stand)}"
    )
