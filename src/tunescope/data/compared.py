"""Several completions of one prompt, as columns give them: what rows of pairs and of ranked responses have in common.

A completion is text or messages; it may also be a whole text, transcript or conversation that holds its prompt too. The
prompt is then what all of them begin with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tunescope.data.messages import Message, from_json, messages_of
from tunescope.data.reading import BadRow, Table, check_bad
from tunescope.data.rows import IGNORED_SPACE, messages_notes, reading_notes, spoken
from tunescope.data.transcripts import common_border, transcript
from tunescope.errors import DataError

_T = TypeVar("_T")
_TRANSCRIPTS = "read as transcripts (Human: … Assistant: …)"
_Found = tuple[tuple[Message, ...], list[str]]  # the prompt's messages, and the completions


@dataclass(frozen=True)
class Compared:
    """Several completions of one prompt.

    Attributes:
        messages: what stands before the completions; the last one is the user's. One for a prompt given as text.
        completions: at least two, as ``rows.spoken`` gives them.
        convention: what they follow that their columns' names do not say, in words; None where there is nothing to say.
    """

    messages: tuple[Message, ...]
    completions: list[str]
    convention: str | None = None


def convert(
    table: Table,
    columns: Sequence[str],
    completions_of: Callable[[Mapping[str, Any]], Mapping[str, Any] | str],
    make: Callable[[Mapping[str, Any], Compared, int], _T | str],
    *,
    skip_bad: int = 0,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[_T]:
    """What the rows of a table compare.

    Args:
        table: rows as read.
        columns: those that are read beside the prompt.
        completions_of: a row's completions by what messages call them, at least two; or why it has none.
        make: of a row's fields, what they compare and the line; or why it cannot be used.
        skip_bad: how many rows that do not fit may be left out.
        on_note: callback for what is worth knowing of how they were read, as that of ``to_rows``.

    Raises:
        DataError: rows that do not fit, each with its line and reason, or none that does.
    """
    given = [completions_of(row) for row in table.rows]
    texts = (
        (row.get("prompt"), list(c.values()))
        for row, c in zip(table.rows, given, strict=True)
        if not isinstance(c, str)
    )
    strip_prompt = _repeats_prompt(texts)
    found, bad, conventions = [], [], Counter[str]()
    for fields, line, completions in zip(table.rows, table.lines, given, strict=True):
        compared = completions if isinstance(completions, str) else understand(fields, completions, strip_prompt)
        made = compared if isinstance(compared, str) else make(fields, compared, line)
        if isinstance(made, str):
            bad.append(BadRow(line, made))
            continue
        found.append(made)
        if isinstance(compared, Compared) and compared.convention:
            conventions[compared.convention] += 1
    check_bad(table.path, bad, skip_bad)
    if not found:
        raise DataError(f"{table.path}: no usable rows.")
    read = ("conversations" if "conversations" in table.columns else "prompt", *columns)
    followed = [f"{count} {'row' if count == 1 else 'rows'} {text}" for text, count in conventions.items()]
    notes = [*reading_notes(table, len(bad)), *followed, *messages_notes(table, read), *table.unread(read)]
    for note in notes:
        on_note(f"{table.path}: {note}.")
    return found


def understand(fields: Mapping[str, Any], completions: Mapping[str, Any], strip_prompt: bool) -> Compared | str:
    """What a row compares, or why it cannot be used.

    Args:
        fields: of the row, for its prompt.
        completions: by what they are called in messages; at least two.
        strip_prompt: whether completions that are whole texts begin with their prompt.
    """
    named = "conversations" if fields.get("conversations") is not None else "prompt"
    given, answers = from_json(fields.get(named)), {name: from_json(value) for name, value in completions.items()}
    convention = None
    if (turns := _transcripts(given, answers)) is not None:
        found = _conversation(given, turns, named)
        convention = _TRANSCRIPTS
    elif given is None and all(isinstance(answer, str) for answer in answers.values()):
        found = _split_texts(answers)
    elif strip_prompt and (bare := _without_prompt(given, list(answers.values()))) is not None:
        found = _conversation(given, dict(zip(answers, bare, strict=True)), named)
        convention = f"whose {_together(answers)} repeat the prompt, which is left out there"
    else:
        found = _conversation(given, answers, named)
    if isinstance(found, str):
        return found
    texts = [spoken(text) for text in found[1]]
    for name, text in zip(answers, texts, strict=True):
        if not text.strip():
            return f"{name} is empty" + (" after the common prefix" if given is None else "")
    return Compared(found[0], texts, convention)


def _repeats_prompt(rows: Iterable[tuple[Any, Sequence[Any]]]) -> bool:
    """Whether completions begin with their prompt, as whole texts: in more than half of the rows whose prompt is text.

    In fewer rows it is chance: an answer may begin with the words of a short prompt.

    Args:
        rows: the prompt and the completions of each.
    """
    texts = [(prompt, answers) for prompt, answers in rows if isinstance(prompt, str)]
    return 2 * sum(_without_prompt(prompt, answers) is not None for prompt, answers in texts) > len(texts)


def number(value: Any) -> float | None:
    """A finite number, also one written as text, as every value of a CSV file is."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _together(names: Iterable[str]) -> str:
    """What completions are called together: chosen and rejected; responses, of response 1, response 2 ..."""
    kinds = list(dict.fromkeys(name.rstrip(" 0123456789") for name in names))
    return " and ".join(kinds) if len(kinds) > 1 else f"{kinds[0]}s"


def _conversation(given: Any, completions: Mapping[str, Any], named: str) -> _Found | str:
    """The completions of a row with a prompt, or with whole conversations."""
    answers = []
    for name, value in completions.items():
        answer = _answer(value, name)
        if isinstance(answer, str):
            return answer
        if "tool_calls" in answer[-1]:
            return f"{name} calls functions, which completions that are compared cannot do"
        answers.append(answer)
    messages = answers[0][:-1]
    if any(answer[:-1] != messages for answer in answers):
        return f"{_together(completions)} are conversations that differ before their last message"
    if given is not None:
        prompt = _prompt(given, named)
        if isinstance(prompt, str):
            return prompt
        if messages and messages[-len(prompt) :] != prompt:
            return f"{named} is not what the conversations in {_together(completions)} begin with"
        messages = messages or prompt
    if not messages:
        return f"prompt is missing, and {_together(completions)} have no common prefix"
    if messages[-1]["role"] not in ("user", "tool"):
        return f"{named} does not end in a user's turn"
    return messages, [answer[-1]["content"] for answer in answers]


def _transcripts(given: Any, completions: Mapping[str, Any]) -> dict[str, list[Message]] | None:
    """The completions as the turns of transcripts; None where one is none, or not of a given prompt's."""
    found = {}
    for name, value in completions.items():
        turns = transcript(value) if isinstance(value, str) else None
        if turns is None:
            return None
        found[name] = turns
    if given is not None:
        prompt = _prompt(given, "prompt")
        if isinstance(prompt, str) or any(tuple(turns[-len(prompt) - 1 : -1]) != prompt for turns in found.values()):
            return None
    return found


def _split_texts(completions: Mapping[str, str]) -> _Found | str:
    """Whole texts: their common prefix is the prompt."""
    texts = list(completions.values())
    end = common_border(min(texts), max(texts))  # in order of characters: all others lie between these two
    if not texts[0][:end].strip():
        return (
            f"there is no prompt column, and {_together(completions)} share no prefix that ends with a line, a "
            "sentence or a speaker's name, so the prompt cannot be told"
        )
    prompt = {"role": "user", "content": texts[0][:end].rstrip(IGNORED_SPACE)}
    return (prompt,), [text[end:] for text in texts]


def _without_prompt(prompt: Any, completions: Sequence[Any]) -> list[str] | None:
    """The completions of texts that repeat their prompt; None where they do not."""
    if not (isinstance(prompt, str) and all(isinstance(text, str) for text in completions)):
        return None
    repeated = prompt.rstrip()
    if not repeated or not all(text.startswith(repeated) for text in completions):
        return None
    length = len(prompt) if all(text.startswith(prompt) for text in completions) else len(repeated)
    rests = [text[length:] for text in completions]
    inside_word = prompt[length - 1].isalnum() and any(text[:1].isalnum() for text in rests)
    return None if inside_word else rests


def _prompt(value: Any, column: str) -> tuple[Message, ...] | str:
    if not isinstance(value, str):
        return messages_of(value, column, "text, or a list" if column == "prompt" else "a list", whole=False)
    turns = transcript(value)
    if turns and turns[-1] == {"role": "assistant", "content": ""}:
        return messages_of(turns[:-1], column, whole=False)
    return ({"role": "user", "content": value},) if value.strip() else f"{column} is empty"


def _answer(value: Any, name: str) -> tuple[Message, ...] | str:
    """A completion as messages, the last of them the assistant's: one for a completion alone, more with its prompt."""
    if isinstance(value, str):
        return ({"role": "assistant", "content": value},) if value.strip() else f"{name} is empty"
    turns = messages_of([value] if isinstance(value, dict) else value, name, "text, or a list", whole=False)
    if not isinstance(turns, str) and turns[-1]["role"] != "assistant":
        return f"{name} does not end in an assistant's turn"
    return turns
