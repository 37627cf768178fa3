"""The content of a row, once its columns are understood: a prompt, and the completion to learn.

By convention: ``prompt, completion`` (or ``response``); ``messages`` (OpenAI's, with ``tools``); ``conversations``
(ShareGPT's); ``instruction, input, output`` (Alpaca's); ``prompt`` alone. Any other columns with a pattern such as
``"{sentence} sentiment: {label}"`` whose last field is the completion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunescope.data.attributes import KEY, Columns
from tunescope.data.messages import Message, describe, from_json, messages_of, tools_of, unread_keys
from tunescope.data.patterns import Pattern
from tunescope.data.reading import BadRow, Table, check_bad
from tunescope.errors import DataError

# At the ends of a prompt or completion: not part of the content; what stands between the two is the template's.
IGNORED_SPACE = " \t"


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        messages: what stands before the completion; the last one is the user's, or a tool's result. One for a prompt
            given as text.
        completion: the text to learn, as ``spoken`` gives it, or None where there is only a prompt.
        number: line in the file, from 1, for messages about it.
        tool_calls: functions that the answer calls, as the chat template's ``tool_calls``; the completion is then the
            text beside them, and may be empty.
        tools: descriptions of the functions that may be called, as JSON schemas.
    """

    messages: tuple[Message, ...]
    completion: str | None
    number: int
    tool_calls: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> str:
        """The last message's text: what a person would call the input."""
        return self.messages[-1]["content"]

    @property
    def attributes(self) -> Mapping[str, float]:
        """What the completion is like; see ``data.attributes``. Empty where nothing is known."""
        found: Mapping[str, float] = self.messages[-1].get(KEY, {})
        return found

    def with_attributes(self, values: Mapping[str, float]) -> Row:
        """The row with these values."""
        return replace(self, messages=(*self.messages[:-1], {**self.messages[-1], KEY: dict(values)}))

    @property
    def content(self) -> list[Any]:
        """The row's content, without its line number."""
        functions = [self.tool_calls, self.tools] if self.tool_calls or self.tools else []
        return [self.messages, self.completion, *functions]


def spoken(text: str) -> str:
    """A completion without what separates it from its prompt and its end.

    Spaces and tabs at its end go, and a single space before it: GPT-style data writes " yes", which is the label "yes".
    Any other white space before it is content, such as the indentation of code.
    """
    return without_joint(text.rstrip(IGNORED_SPACE))


def without_joint(text: str) -> str:
    """A completion without the single space that separates it from its prompt, if it begins with one."""
    return text[1:] if text.startswith(" ") and not text[1:2].isspace() else text


def answer_columns(pattern: str | None) -> tuple[str, ...]:
    """The columns that hold the completion, by the pattern or by convention: rows without one may lack them.

    Raises:
        DataError: a pattern that cannot be understood.
    """
    return ("completion", "output") if pattern is None else (Pattern.parse(pattern).target,)


def to_rows(
    table: Table,
    pattern: str | None = None,
    *,
    skip_bad: int = 0,
    need_completion: bool = True,
    on_note: Callable[[str], None] = lambda note: None,
    on_bad: Callable[[BadRow], None] | None = None,
    attributes: Columns | None = None,
) -> list[Row]:
    """Understand the columns of a table.

    Args:
        table: rows as read.
        pattern: how any columns make prompt and completion, whatever their names; the table's own default where None
            and it has one.
        skip_bad: how many rows that do not fit may be left out.
        need_completion: False accepts rows with a prompt alone: the completion's column is missing, or empty.
        on_note: callback for what is worth knowing of how the rows were read: encoding and delimiter, the convention,
            what was not read, how many rows were left out. Each note names the table.
        attributes: columns with attributes of the completion, which become ``Row.attributes``.
        on_bad: callback for each row that does not fit. Who asks for them reports them: no note counts them then.

    Raises:
        DataError: columns that no convention fits, or rows that do not fit theirs, each with its line and reason.
    """
    if attributes is not None:
        attributes.check(table)
    content = table if attributes is None else attributes.rest(table)
    convention = _convention(content, table.default_template if pattern is None else pattern, need_completion)
    rows, bad = [], []
    for fields, line in zip(table.rows, table.lines, strict=True):
        made = convention.convert(fields, line)
        if attributes is not None and isinstance(made, Row):
            values = attributes.values(fields)
            made = values if isinstance(values, str) else made.with_attributes(values)
        if isinstance(made, Row):
            rows.append(made)
        else:
            bad.append(BadRow(line, made))
    if on_bad is not None:
        for each in bad:
            on_bad(each)
    check_bad(table.path, bad, skip_bad)
    if not rows:
        raise DataError(f"{table.path}: no usable rows.")
    for note in [*reading_notes(table, 0 if on_bad else len(bad)), *convention.notes()]:
        on_note(f"{table.path}: {note}.")
    return rows


def reading_notes(table: Table, bad: int) -> list[str]:
    """Notes on how a table was read; ``bad`` rows of it were left out later."""
    left_out = len(table.skipped) + bad
    rows = "1 bad row" if left_out == 1 else f"{left_out} bad rows"
    return [*table.notes, *([f"left out {rows}, as --skip-bad allows"] if left_out else [])]


def messages_notes(table: Table, columns: Sequence[str]) -> list[str]:
    """Notes on columns that hold messages: that they were text, and which keys nothing reads."""
    notes = []
    for column in columns:
        values = [row.get(column) for row in table.rows]
        if any(isinstance(value, str) and isinstance(from_json(value), list) for value in values):
            notes.append(f"{column}: lists of messages, read from JSON text")
        if keys := unread_keys(values):
            notes.append(f"{column}: not read: {', '.join(keys)}")
    return notes


@dataclass(frozen=True)
class _Convention:
    """One way to understand a table's columns.

    Attributes:
        convert: makes the row of the fields at a line, or says why there is none.
        notes: what is worth knowing, once all rows are converted.
    """

    convert: Callable[[Mapping[str, Any], int], Row | str]
    notes: Callable[[], list[str]] = list


def _convention(table: Table, pattern: str | None, need: bool) -> _Convention:
    """The way to understand a table: the pattern, or what its columns say."""
    columns = set(table.columns)
    if pattern is not None:
        understood = Pattern.parse(pattern)
        try:
            understood.check(table.columns, target=need)
        except DataError as error:
            raise DataError(f"{table.path}: {error}") from None
        return _Convention(lambda fields, line: _from_pattern(fields, line, understood, need))
    if "messages" in columns:
        return _conversation(table, "messages", need)
    answer = "completion" if "completion" in columns or "response" not in columns else "response"
    if "prompt" in columns and (answer in columns or not need):
        return _Convention(
            lambda fields, line: _from_prompt({**fields, "completion": fields.get(answer)}, line, need),
            lambda: [*messages_notes(table, ("prompt", answer)), *table.unread(("prompt", answer))],
        )
    if "conversations" in columns:
        return _conversation(table, "conversations", need)
    if "instruction" in columns and ("output" in columns or not need):
        note = "read as Alpaca's rows: instruction, a line break and input make the prompt, output is learned"
        return _Convention(
            lambda fields, line: _from_alpaca(fields, line, need), lambda: [note, *table.unread(_ALPACA)]
        )
    raise DataError(
        f"{table.path}: the columns are {', '.join(sorted(columns))}; expected prompt and completion, messages, "
        "conversations (ShareGPT), or instruction and output (Alpaca)"
        f"{'' if need else '; without completions prompt, messages, conversations or instruction'}. Other columns need "
        'a template, for example --template "{text} topic: {label}".'
    )


def _from_pattern(fields: Mapping[str, Any], line: int, pattern: Pattern, need: bool) -> Row | str:
    inputs, target = pattern.fields, pattern.target
    asked = target in fields and (need or not _is_unlabelled(fields[target]))
    for name in [*inputs, *([target] if asked else [])]:
        if not _is_scalar(fields[name]):
            return f"{name} is {describe(fields[name])}, expected text"
    if not any(str(fields[name]).strip() for name in inputs):
        return f"{' and '.join(inputs)} {'is' if len(inputs) == 1 else 'are'} empty"
    if asked and not str(fields[target]).strip():
        return f"{target} is empty"
    completion = spoken(str(fields[target])) if asked else None
    return Row(({"role": "user", "content": pattern.render(fields)},), completion, line)


def _from_prompt(fields: Mapping[str, Any], line: int, need: bool) -> Row | str:
    completion = from_json(fields.get("completion"))
    if not need and _is_unlabelled(completion):
        completion = None
    calls: tuple[dict[str, Any], ...] = ()
    if isinstance(completion, list):  # TRL's conversational form
        turns = messages_of(completion, "completion", whole=False)
        if isinstance(turns, str):
            return turns
        if len(turns) > 1 or turns[0]["role"] != "assistant":
            return "completion is a list, but not of one message by the assistant"
        completion, calls = turns[0]["content"], tuple(turns[0].get("tool_calls", ()))
    if not isinstance(completion, str) and (need or completion is not None):
        return f"completion is {describe(completion)}, expected text"
    if isinstance(completion, str) and not completion.strip() and not calls:
        return "completion is empty"
    prompt = from_json(fields.get("prompt"))
    if isinstance(prompt, str):
        if not prompt.strip():
            return "prompt is empty"
        turns = ({"role": "user", "content": prompt},)
    else:
        turns = messages_of(prompt, "prompt", "text, or a list", whole=False)
        if isinstance(turns, str):
            return turns
        if turns[-1]["role"] not in ("user", "tool"):
            return "prompt does not end in a user's turn"
    return Row(turns, None if completion is None else spoken(completion), line, calls)


_ALPACA = ("instruction", "input", "output")


def _from_alpaca(fields: Mapping[str, Any], line: int, need: bool) -> Row | str:
    instruction, given, output = (fields.get(name) for name in _ALPACA)
    if not isinstance(instruction, str) or not instruction.strip():
        return f"instruction is {'empty' if instruction == '' else describe(instruction)}, expected text"
    if given is not None and not isinstance(given, str):
        return f"input is {describe(given)}, expected text"
    if need or not _is_unlabelled(output):
        if not isinstance(output, str):
            return f"output is {describe(output)}, expected text"
        if not output.strip():
            return "output is empty"
    prompt = f"{instruction}\n{given}" if given and given.strip() else instruction
    completion = spoken(output) if isinstance(output, str) and output.strip() else None
    return Row(({"role": "user", "content": prompt},), completion, line)


def _conversation(table: Table, column: str, need: bool) -> _Convention:
    """Rows of whole conversations, and of the functions that may be called in them."""
    shortened: list[int] = []

    def convert(fields: Mapping[str, Any], line: int) -> Row | str:
        turns = messages_of(fields.get(column), column)
        if isinstance(turns, str):
            return turns
        tools = tools_of(fields.get("tools"))
        if isinstance(tools, str):
            return tools
        row = _from_turns(turns, column, line, tools, need)
        if isinstance(row, Row) and len(row.messages) + (row.completion is not None) < len(turns):
            shortened.append(line)
        return row

    def notes() -> list[str]:
        first = from_json(table.rows[0].get(column))
        notes = []
        if isinstance(first, list) and isinstance(first[0], dict) and "from" in first[0]:
            notes.append("read as ShareGPT conversations")
        if shortened:
            rows = "1 row ends" if len(shortened) == 1 else f"{len(shortened)} rows end"
            notes.append(f"{rows} in turns of weight 0, which are left out with what stands between them")
        return [*notes, *messages_notes(table, (column,)), *table.unread({column, "tools"})]

    return _Convention(convert, notes)


def _from_turns(
    turns: tuple[Message, ...], column: str, line: int, tools: tuple[dict[str, Any], ...], need: bool
) -> Row | str:
    """The row that a conversation is: its last assistant's turn that is not weighted 0 is the completion."""
    if turns[-1]["role"] != "assistant":
        return f"{column} does not end in an assistant's turn" if need else Row(turns, None, line, (), tools)
    learned = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight") != 0]
    if not learned:
        return f"{column} has no turn to learn: those of the assistant have weight 0"
    before, last = turns[: learned[-1]], turns[learned[-1]]
    if not before or before[-1]["role"] not in ("user", "tool"):
        return f"{column} has no user's turn right before the last one"
    return Row(before, spoken(last["content"]), line, tuple(last.get("tool_calls", ())), tools)


def _is_unlabelled(value: Any) -> bool:
    """Whether a cell is empty: null, NaN as pandas writes it, or no text."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def label_set(rows: Sequence[Row], most: int = 50) -> tuple[str, ...] | None:
    """The labels, sorted, when the rows are a classification task: few distinct one-line completions, often repeated.

    None when they are free text, or call functions. At most ``most`` labels of at most 60 characters, each needed for
    on average four rows or more: with fewer examples a label is as likely an answer that happened to recur.
    """
    completions = [row.completion for row in rows if row.completion is not None]
    labels = sorted(set(completions))
    short = all(len(label) <= 60 and "\n" not in label for label in labels)
    if any(row.tool_calls for row in rows) or not short or not 2 <= len(labels) <= min(most, len(completions) // 4):
        return None
    return tuple(labels)
