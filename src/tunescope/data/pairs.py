"""What a pair says: a prompt, the completion that was preferred, and the one that was not.

Columns as TRL's: ``prompt, chosen, rejected``, each text or a list of messages; or ``chosen, rejected`` alone, two
whole texts or conversations whose common beginning is the prompt. As LLaMA-Factory's: ``conversations, chosen,
rejected`` with turns of ``from`` and ``value``. How much better the chosen one is may stand in ``margin``, or follows
from ``reward_chosen, reward_rejected``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.data.reading import BadRow, Table, check_bad
from tunescope.data.rows import IGNORED_SPACE, Message, describe, messages_of
from tunescope.errors import DataError

_MARGIN = ("margin", "reward_chosen", "reward_rejected")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt.

    Attributes:
        messages: what stands before the completions; the last one is the user's. One for a prompt given as text.
        chosen: the preferred completion, without spaces around it.
        rejected: the other one.
        number: line in the file, from 1, for messages about it.
        margin: how much better the chosen one is, in the unit of whoever judged; None where nobody said.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    number: int
    margin: float | None = None

    @property
    def content(self) -> list[Any]:
        """What the pair says, wherever it stands."""
        return [self.messages, self.chosen, self.rejected, self.margin]


def is_pairs(table: Table) -> bool:
    """Whether a table's columns are those of pairs."""
    return {"chosen", "rejected"} <= set(table.columns)


def columns_of_pairs(table: Table) -> set[str]:
    """The columns that ``to_pairs`` reads."""
    prompt = "conversations" if "conversations" in table.columns else "prompt"
    return {prompt, "chosen", "rejected", *_MARGIN}


def to_pairs(table: Table, *, skip_bad: int = 0) -> list[Pair]:
    """Understand the columns of a table of pairs. Identical pairs are kept: each counts.

    Args:
        table: rows as read.
        skip_bad: how many rows that do not fit may be left out.

    Raises:
        DataError: columns that make no pairs, or rows that do not fit theirs, each with its line and reason.
    """
    columns = set(table.columns)
    if missing := sorted({"chosen", "rejected"} - columns):
        raise DataError(
            f"{table.path}: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; the columns are "
            f"{', '.join(sorted(columns))}. Pairs have prompt, chosen, rejected (or chosen and rejected with a common "
            "beginning)."
        )
    if said := _unclear_margin(columns):
        raise DataError(f"{table.path}: {said}.")
    pairs, bad = [], []
    for fields, line in zip(table.rows, table.lines, strict=True):
        made = _pair(fields, line)
        if isinstance(made, Pair):
            pairs.append(made)
        else:
            bad.append(BadRow(line, made))
    check_bad(table.path, bad, skip_bad)
    if not pairs:
        raise DataError(f"{table.path}: no usable pairs.")
    return pairs


def repeated(pairs: Sequence[Pair]) -> list[str]:
    """What is said of pairs that occur more than once; empty when none does."""
    first: dict[str, int] = {}
    again = [pair.number for pair in pairs if first.setdefault(repr(pair.content), pair.number) != pair.number]
    if not again:
        return []
    shown = ", ".join(map(str, again[:10])) + (" …" if len(again) > 10 else "")
    pairs_are, lines = ("1 pair repeats", "line") if len(again) == 1 else (f"{len(again)} pairs repeat", "lines")
    return [f"{pairs_are} an earlier one word for word and counts again ({lines} {shown})."]


def _pair(fields: Mapping[str, Any], line: int) -> Pair | str:
    """The pair of a row, or why there is none."""
    named = "conversations" if fields.get("conversations") is not None else "prompt"
    given = fields.get(named)
    texts = _texts(given, fields["chosen"], fields["rejected"], named)
    if isinstance(texts, str):
        return texts
    messages, chosen, rejected = texts[0], texts[1].strip(IGNORED_SPACE), texts[2].strip(IGNORED_SPACE)
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            return f"{column} is empty" + (" after the common beginning" if given is None else "")
    if chosen == rejected:
        return "chosen and rejected are equal"
    margin = _margin(fields)
    return margin if isinstance(margin, str) else Pair(messages, chosen, rejected, line, margin)


def _texts(given: Any, chosen: Any, rejected: Any, named: str) -> tuple[tuple[Message, ...], str, str] | str:
    """The prompt's messages and the two completions, or why they cannot be told."""
    if given is None and isinstance(chosen, str) and isinstance(rejected, str):
        return _split_texts(chosen, rejected)
    answers = []
    for column, value in (("chosen", chosen), ("rejected", rejected)):
        found = _answer(value, column)
        if isinstance(found, str):
            return found
        answers.append(found)
    whole = [answer[:-1] for answer in answers]
    if whole[0] != whole[1]:
        return "chosen and rejected are conversations that differ before their last message"
    messages = whole[0]
    if given is not None:
        prompt = _prompt(given, named)
        if isinstance(prompt, str):
            return prompt
        if messages and messages[-len(prompt) :] != prompt:
            return f"{named} is not what the conversations in chosen and rejected begin with"
        messages = messages or prompt
    if not messages:
        return "prompt is missing, and chosen and rejected have no common beginning"
    if messages[-1]["role"] != "user":
        return f"{named} does not end in a user's turn"
    return messages, answers[0][-1]["content"], answers[1][-1]["content"]


def _split_texts(chosen: str, rejected: str) -> tuple[tuple[Message, ...], str, str] | str:
    """Two whole texts: their common beginning, back to the last space or line end in it, is the prompt.

    Back to there, because the completions are tokenized apart from the prompt: one that began in the middle of a word
    would be no text that a model writes.
    """
    end = 0
    for i, (one, other) in enumerate(zip(chosen, rejected, strict=False), start=1):
        if one != other:
            break
        end = i if one.isspace() else end
    if not chosen[:end].strip():
        return "there is no prompt column, and chosen and rejected share no beginning that could be the prompt"
    return ({"role": "user", "content": chosen[:end].rstrip(IGNORED_SPACE)},), chosen[end:], rejected[end:]


def _prompt(value: Any, column: str) -> tuple[Message, ...] | str:
    if isinstance(value, str):
        return ({"role": "user", "content": value},) if value.strip() else f"{column} is empty"
    return _turns(value, column, "text, or a list" if column == "prompt" else "a list")


def _answer(value: Any, column: str) -> tuple[Message, ...] | str:
    """A completion as messages, the last of them the assistant's: one for a completion alone, more with its prompt."""
    if isinstance(value, str):
        return ({"role": "assistant", "content": value},) if value.strip() else f"{column} is empty"
    turns = _turns([value] if isinstance(value, dict) else value, column, "text, or a list")
    if not isinstance(turns, str) and turns[-1]["role"] != "assistant":
        return f"{column} does not end in an assistant's turn"
    return turns


def _turns(value: Any, column: str, expected: str) -> tuple[Message, ...] | str:
    """Messages of ``role`` and ``content``, or of ``from`` and ``value`` as LLaMA-Factory has them."""
    if isinstance(value, list) and any(isinstance(turn, dict) and "from" in turn for turn in value):
        speakers = [turn.get("from") if isinstance(turn, dict) else None for turn in value]
        if unknown := [speaker for speaker in speakers if not isinstance(speaker, str) or speaker not in _SPEAKERS]:
            return f"{column} has a turn from {unknown[0]!r}, expected one of {', '.join(_SPEAKERS)}"
        value = [{"role": _SPEAKERS[turn["from"]], "content": turn.get("value")} for turn in value]
    return messages_of(value, column, expected)


def _margin(fields: Mapping[str, Any]) -> float | str | None:
    """How much better the chosen completion is, None where no column says, or why the column is not usable."""
    if said := _unclear_margin(fields):
        return said
    values = {}
    for column in _MARGIN:
        if column in fields:
            value = _number(fields[column])
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


def _number(value: Any) -> float | None:
    """A finite number, also one written as text, as every value of a CSV file is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
