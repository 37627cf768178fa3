"""The content of a pair: a prompt, the completion that was preferred, and the one that was not.

Columns as TRL's: ``prompt, chosen, rejected``, each text or a list of messages; or ``chosen, rejected`` alone, two
whole texts, transcripts or conversations whose common prefix is the prompt. As LLaMA-Factory's: ``conversations,
chosen, rejected`` with turns of ``from`` and ``value``. A prompt that whole texts repeat is left out of them. How much
better the chosen one is may stand in ``margin``, or follows from ``reward_chosen, reward_rejected``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.data.messages import Message, describe, from_json, messages_of
from tunescope.data.reading import BadRow, Table, check_bad
from tunescope.data.rows import IGNORED_SPACE, messages_notes, reading_notes, spoken
from tunescope.data.transcripts import common_border, transcript
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
            "beginning)."
        )
    if unclear := _unclear_margin(columns):
        raise DataError(f"{table.path}: {unclear}.")
    strip_prompt = _repeats_prompt(table)
    conventions: Counter[str] = Counter()
    pairs, bad = [], []
    for fields, line in zip(table.rows, table.lines, strict=True):
        made = _pair(fields, line, strip_prompt, conventions)
        if isinstance(made, Pair):
            pairs.append(made)
        else:
            bad.append(BadRow(line, made))
    check_bad(table.path, bad, skip_bad)
    if not pairs:
        raise DataError(f"{table.path}: no usable pairs.")
    for note in [*reading_notes(table, len(bad)), *_notes(table, conventions)]:
        on_note(f"{table.path}: {note}.")
    return pairs


def _notes(table: Table, conventions: Counter[str]) -> list[str]:
    """How pairs were read where their columns' names do not say it, and what was not read."""
    prompt = "conversations" if "conversations" in table.columns else "prompt"
    columns = (prompt, "chosen", "rejected")
    notes = [f"{count} {'row' if count == 1 else 'rows'} {text}" for text, count in conventions.items()]
    notes += messages_notes(table, columns)
    return [*notes, *table.unread({*columns, *_MARGIN})]


def repeated(pairs: Sequence[Pair]) -> list[str]:
    """Notes on pairs that occur more than once; empty when none does."""
    first: dict[str, int] = {}
    again = [pair.number for pair in pairs if first.setdefault(repr(pair.content), pair.number) != pair.number]
    if not again:
        return []
    shown = ", ".join(map(str, again[:10])) + (" …" if len(again) > 10 else "")
    pairs_are, lines = ("1 pair repeats", "line") if len(again) == 1 else (f"{len(again)} pairs repeat", "lines")
    return [f"{pairs_are} an earlier one word for word and counts again ({lines} {shown})."]


_Found = tuple[tuple[Message, ...], str, str]  # the prompt's messages, the chosen and the rejected completion
_TRANSCRIPTS = "read as transcripts (Human: … Assistant: …)"
_REPEATED = "whose chosen and rejected repeat the prompt, which is left out there"


def _pair(fields: Mapping[str, Any], line: int, strip_prompt: bool, followed: Counter[str]) -> Pair | str:
    """The pair of a row, or why there is none. The convention it follows is counted in ``followed``."""
    named = "conversations" if fields.get("conversations") is not None else "prompt"
    given, chosen, rejected = (from_json(fields.get(name)) for name in (named, "chosen", "rejected"))
    convention = None
    if (turns := _transcripts(given, chosen, rejected)) is not None:
        found = _texts(given, *turns, named)
        convention = _TRANSCRIPTS
    elif given is None and isinstance(chosen, str) and isinstance(rejected, str):
        found = _split_texts(chosen, rejected)
    elif strip_prompt and (bare := _without_prompt(given, chosen, rejected)) is not None:
        found = _texts(given, *bare, named)
        convention = _REPEATED
    else:
        found = _texts(given, chosen, rejected, named)
    if isinstance(found, str):
        return found
    messages, better, worse = found[0], spoken(found[1]), spoken(found[2])
    for column, text in (("chosen", better), ("rejected", worse)):
        if not text.strip():
            return f"{column} is empty" + (" after the common beginning" if given is None else "")
    if better == worse:
        return "chosen and rejected are equal"
    margin = _margin(fields)
    if isinstance(margin, str):
        return margin
    if convention:
        followed[convention] += 1
    return Pair(messages, better, worse, line, margin)


def _texts(given: Any, chosen: Any, rejected: Any, named: str) -> _Found | str:
    """The pair of a row with a prompt, or with whole conversations."""
    answers = []
    for column, value in (("chosen", chosen), ("rejected", rejected)):
        answer = _answer(value, column)
        if isinstance(answer, str):
            return answer
        if "tool_calls" in answer[-1]:
            return f"{column} calls functions, which pairs cannot hold"
        answers.append(answer)
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
    if messages[-1]["role"] not in ("user", "tool"):
        return f"{named} does not end in a user's turn"
    return messages, answers[0][-1]["content"], answers[1][-1]["content"]


def _transcripts(given: Any, chosen: Any, rejected: Any) -> tuple[list[Message], list[Message]] | None:
    """Chosen and rejected as the turns of transcripts; None where they are none, or not of a given prompt's."""
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return None
    one, other = transcript(chosen), transcript(rejected)
    if one is None or other is None:
        return None
    if given is not None:
        prompt = _prompt(given, "prompt")
        if isinstance(prompt, str) or not all(tuple(turns[-len(prompt) - 1 : -1]) == prompt for turns in (one, other)):
            return None
    return one, other


def _split_texts(chosen: str, rejected: str) -> _Found | str:
    """Two whole texts: their common prefix is the prompt."""
    end = common_border(chosen, rejected)
    if not chosen[:end].strip():
        return (
            "there is no prompt column, and chosen and rejected share no beginning that ends with a line, a sentence "
            "or a speaker's name, so the prompt cannot be told"
        )
    return ({"role": "user", "content": chosen[:end].rstrip(IGNORED_SPACE)},), chosen[end:], rejected[end:]


def _repeats_prompt(table: Table) -> bool:
    """Whether chosen and rejected begin with the prompt, as whole texts: in more than half of the rows.

    In fewer rows it is chance: an answer may begin with the words of a short prompt.
    """
    texts = [row for row in table.rows if isinstance(row.get("prompt"), str)]
    count = sum(_without_prompt(row["prompt"], row["chosen"], row["rejected"]) is not None for row in texts)
    return 2 * count > len(texts)


def _without_prompt(prompt: Any, chosen: Any, rejected: Any) -> tuple[str, str] | None:
    """The completions of texts that repeat their prompt; None where they do not."""
    if not (isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)):
        return None
    repeated = prompt.rstrip()
    if not repeated or not (chosen.startswith(repeated) and rejected.startswith(repeated)):
        return None
    length = len(prompt) if chosen.startswith(prompt) and rejected.startswith(prompt) else len(repeated)
    completions = chosen[length:], rejected[length:]
    inside_word = prompt[length - 1].isalnum() and any(text[:1].isalnum() for text in completions)
    return None if inside_word else completions


def _prompt(value: Any, column: str) -> tuple[Message, ...] | str:
    if not isinstance(value, str):
        return messages_of(value, column, "text, or a list" if column == "prompt" else "a list", whole=False)
    turns = transcript(value)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        return messages_of(turns[:-1], column, whole=False)
    return ({"role": "user", "content": value},) if value.strip() else f"{column} is empty"


def _answer(value: Any, column: str) -> tuple[Message, ...] | str:
    """A completion as messages, the last of them the assistant's: one for a completion alone, more with its prompt."""
    if isinstance(value, str):
        return ({"role": "assistant", "content": value},) if value.strip() else f"{column} is empty"
    turns = messages_of([value] if isinstance(value, dict) else value, column, "text, or a list", whole=False)
    if not isinstance(turns, str) and turns[-1]["role"] != "assistant":
        return f"{column} does not end in an assistant's turn"
    return turns


def _margin(fields: Mapping[str, Any]) -> float | str | None:
    """How much better the chosen completion is, None where no column says, or why the column is not usable."""
    if unclear := _unclear_margin(fields):
        return unclear
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
