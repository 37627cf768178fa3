"""Mixtures of tasks, for instruction tuning: how many rows of each, in whose words, in which order.

    tasks:
      topics:    {data: reuters-r8, templates: ["{text}\nTopic: {label}", "Name the topic of this. {text} {label}"]}
      questions: {data: trec, most: 2000}
      reading:   {data: boolq}
    unseen: [reading]                  # held out as a whole
    general: {data: alpaca-en-demo}    # against forgetting
    general_share: 0.1
    rows: 4000
    temperature: 2

A task's weight is its size, to the power 1 / temperature (Raffel et al. 2020, arXiv:1910.10683, section 3.5.2): 1 mixes
in proportion, and the higher it is the more alike they count. Everything is a function of the seed: the rows, their
order, and which of a task's templates words each.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, model_validator

from tunescope.data.inputs import has_part
from tunescope.data.patterns import Pattern
from tunescope.data.reading import Table, read
from tunescope.data.rows import IGNORED_SPACE, Row, to_rows
from tunescope.errors import DataError, UnknownNameError
from tunescope.settings import Settings

GENERAL = "general"
# Words in a row that two texts must share to count as the same (Brown et al. 2020, arXiv:2005.14165, appendix C).
_WORDS = 13


class Task(Settings):
    """One data set of a mixture."""

    data: str
    """A file, a built-in set or a hub id."""
    split: str | None = None
    """Which part of it."""
    templates: tuple[str, ...] = ()
    """Ways to word it, as --template is written; each row is worded by one of them, drawn by the seed. Without any, by
    the columns' own convention."""
    weight: float | None = Field(None, gt=0)
    """Its share among the tasks, in place of its size."""
    most: int | None = Field(None, ge=1)
    """At most so many of its rows; a larger share repeats them."""
    skip_bad: int = Field(0, ge=0)
    """How many of its rows may be bad and left out."""


class Mixture(Settings):
    """Tasks that are mixed."""

    tasks: dict[str, Task]
    """By name."""
    unseen: tuple[str, ...] = ()
    """Names of tasks that are held out as a whole, to be measured and never learned."""
    general: Task | None = None
    """Rows of another kind, mixed in so that less is forgotten."""
    general_share: float = Field(0.1, gt=0, lt=1)
    """Their share of the rows, or of the tokens."""
    rows: int | None = Field(None, ge=1)
    """How many rows in all; by default as many as the tasks have."""
    by: Literal["rows", "tokens"] = "rows"
    """What shares are of."""
    temperature: float = Field(1.0, ge=1)
    """1 takes tasks in proportion to their size; higher, more alike."""
    seed: int = Field(0, ge=0)
    """Of the rows, their wording and their order."""

    @model_validator(mode="after")
    def _check_tasks(self) -> Mixture:
        if unknown := [name for name in self.unseen if name not in self.tasks]:
            raise ValueError(str(UnknownNameError("task", unknown[0], self.tasks)).rstrip("."))
        if not set(self.tasks) - set(self.unseen):
            raise ValueError("no task is left to learn: tasks is empty, or all of them are unseen")
        weighed = [name for name, task in self.tasks.items() if task.weight is not None and name not in self.unseen]
        if weighed and len(weighed) < len(self.tasks) - len(self.unseen):
            raise ValueError(f"{weighed[0]} has a weight and others have none: give all of them one, or none")
        if self.general_share != type(self).model_fields["general_share"].default and self.general is None:
            raise ValueError("general_share is the share of general, and there is none")
        if self.general is not None and self.general.weight is not None:
            raise ValueError("general has a share of its own, general_share, and no weight")
        if GENERAL in self.tasks:
            raise ValueError(f"{GENERAL} is the name of the rows against forgetting: call the task otherwise")
        return self


@dataclass(frozen=True)
class Share:
    """What a task is of a mixture.

    Attributes:
        rows: of the mixture.
        available: different rows that it has, after ``most``.
        share: of all rows.
        token_share: of all tokens; None where they were not counted.
        templates: how many rows each of its templates words.
    """

    rows: int
    available: int
    share: float
    token_share: float | None
    templates: tuple[int, ...]


@dataclass(frozen=True)
class Mixed:
    """A mixture, mixed.

    Attributes:
        rows: columns ``prompt`` (a text, or messages), ``completion``, ``task``, ``source`` (set and line) and
            ``template`` (its number, from 1; 0 for the convention), in an order drawn by the seed.
        shares: of each task by name.
        leaks: of each unseen task how many of its rows share words with the mixture (see ``leaked``).
        notes: how the data was read, in words.
    """

    rows: list[dict[str, Any]]
    shares: dict[str, Share]
    leaks: dict[str, int]
    notes: list[str] = field(default_factory=list)


def mix(mixture: Mixture, count: Callable[[str], int] | None = None) -> Mixed:
    """Draw the rows of a mixture.

    Args:
        mixture: what to mix.
        count: tokens of a text; needed where shares are of tokens.

    Raises:
        DataError: data that cannot be read, a template with unknown columns, rows without completion, or shares of
            tokens without ``count``.
    """
    if mixture.by == "tokens" and count is None:
        raise DataError("Shares of tokens need a base, whose tokens are counted: name one with --base.")
    notes: list[str] = []
    learned = {name: task for name, task in mixture.tasks.items() if name not in mixture.unseen}
    pools = {name: _Pool(name, task, mixture.seed, notes) for name, task in learned.items()}
    general = _Pool(GENERAL, mixture.general, mixture.seed, notes) if mixture.general is not None else None
    counts = _counts(mixture, pools, general, count)
    every = pools if general is None else {**pools, GENERAL: general}
    rows = [row for name, pool in every.items() for row in pool.drawn(counts[name])]
    random.Random(f"{mixture.seed} order").shuffle(rows)
    seen = {gram for row in rows for gram in _grams(_prompt_text(row["prompt"]))}
    unseen = unseen_rows(mixture, notes.append)
    leaks = {name: sum(leaked(_prompt_text_of(row), seen) for row in own) for name, own in unseen.items()}
    return Mixed(rows, _shares(rows, every, count), leaks, notes)


def unseen_rows(mixture: Mixture, on_note: Callable[[str], None] = lambda note: None) -> dict[str, list[Row]]:
    """The rows of the tasks that are held out, by name, in their first wording; of a built-in set its test part where
    it has one and the task names none.

    Args:
        mixture: with their names.
        on_note: callback for how they were read.

    Raises:
        DataError: as ``mix``.
    """
    found, notes = {}, list[str]()
    for name in mixture.unseen:
        task = mixture.tasks[name]
        if task.split is None and has_part(task.data, "test"):
            task = task.model_copy(update={"split": "test"})
        found[name] = _Pool(name, task, mixture.seed, notes).rows
    for note in notes:
        on_note(note)
    return found


def leaked(text: str, seen: set[str]) -> bool:
    """Whether a text has 13 words in a row that are in ``seen``; a shorter text, all of its words."""
    return any(gram in seen for gram in _grams(text))


class _Pool:
    """A task's rows, in every wording, to be drawn from."""

    def __init__(self, name: str, task: Task, seed: int, notes: list[str]) -> None:
        self.name, self.task, self._seed = name, task, seed
        table = read(task.data, split=task.split, skip_bad=task.skip_bad)
        self.table = table if task.most is None else _first(table, task.most, f"{seed} {name}")
        patterns: list[str | None] = list(task.templates) or [table.default_template]
        for pattern in task.templates:
            try:
                Pattern.parse(pattern).check(table.columns, target=True)
            except DataError as error:
                raise DataError(f"Task {name}, template {pattern!r}: {error}") from None
        self.worded = [[_trimmed(row) for row in self._rows(pattern, notes)] for pattern in patterns]
        self.rows = self.worded[0]
        if len({len(rows) for rows in self.worded}) > 1:
            raise DataError(
                f"Task {name}: its templates leave out different rows: correct these, and leave skip_bad out."
            )
        if functions := [row.number for row in self.rows if row.tools or row.tool_calls]:
            raise DataError(f"Task {name}: line {functions[0]} calls functions, and mixtures have texts only.")

    def _rows(self, pattern: str | None, notes: list[str]) -> list[Row]:
        left = self.task.skip_bad - len(self.table.skipped)
        try:
            return to_rows(self.table, pattern, skip_bad=left, on_note=notes.append)
        except DataError as error:
            raise DataError(f"Task {self.name}: {str(error).replace('--skip-bad', 'skip_bad')}") from None

    def __len__(self) -> int:
        return len(self.rows)

    def drawn(self, number: int) -> Iterator[dict[str, Any]]:
        """So many rows: each once before any is there again, its wording drawn anew."""
        drawn = random.Random(f"{self._seed} {self.name} rows")
        order: list[int] = []
        for _ in range(number):
            if not order:
                order = list(range(len(self)))
                drawn.shuffle(order)
            index, wording = order.pop(), drawn.randrange(len(self.worded))
            row = self.worded[wording][index]
            alone = len(row.messages) == 1
            yield {
                "prompt": row.messages[0]["content"] if alone else list(row.messages),
                "completion": row.completion,
                "task": self.name,
                "source": f"{self.table.name}:{row.number}",
                "template": wording + 1 if self.task.templates else 0,
            }

    def mean_tokens(self, count: Callable[[str], int]) -> float:
        """Of its rows in their first wording, up to 1,024 of them, drawn."""
        some = random.Random(f"{self._seed} {self.name} tokens").sample(self.rows, min(1024, len(self.rows)))
        return sum(count(_prompt_text_of(row) + (row.completion or "")) for row in some) / len(some)


def _trimmed(row: Row) -> Row:
    """Without the white space between a template's text and its completion: rows stand without their template."""
    last = {**row.messages[-1], "content": row.messages[-1]["content"].rstrip(IGNORED_SPACE)}
    return replace(row, messages=(*row.messages[:-1], last))


def _first(table: Table, most: int, seed: str) -> Table:
    """A table with so many of its rows, drawn, in their order."""
    kept = sorted(random.Random(seed).sample(range(len(table)), min(most, len(table))))
    return replace(table, rows=[table.rows[i] for i in kept], lines=[table.lines[i] for i in kept])


def _counts(
    mixture: Mixture, pools: Mapping[str, _Pool], general: _Pool | None, count: Callable[[str], int] | None
) -> dict[str, int]:
    """How many rows of each, that add up exactly; see ``_whole``."""

    def cost(pool: _Pool) -> float:
        """What a row of it counts: its tokens, or one."""
        return pool.mean_tokens(count) if mixture.by == "tokens" and count is not None else 1.0

    sizes = {name: len(pool) * cost(pool) for name, pool in pools.items()}
    weights = {name: pool.task.weight or sizes[name] ** (1 / mixture.temperature) for name, pool in pools.items()}
    left = 1.0 if general is None else 1 - mixture.general_share
    shares = {name: left * weight / sum(weights.values()) for name, weight in weights.items()}
    every = dict(pools)
    if general is not None:
        shares[GENERAL], every[GENERAL] = mixture.general_share, general
    return _whole(
        {name: share / cost(every[name]) for name, share in shares.items()},
        mixture.rows or sum(map(len, pools.values())),
    )


def _whole(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers in proportion to weights that add up to ``total``: rounded down, and what is left over goes where
    most was cut off, by name where that is the same.
    """
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    found = {name: int(value) for name, value in exact.items()}
    by_cut = sorted(exact, key=lambda name: (found[name] - exact[name], name))
    for name in by_cut[: total - sum(found.values())]:
        found[name] += 1
    return found


def _shares(
    rows: Sequence[Mapping[str, Any]], pools: Mapping[str, _Pool], count: Callable[[str], int] | None
) -> dict[str, Share]:
    of_task = Counter(row["task"] for row in rows)
    tokens: Counter[str] = Counter()
    for row in rows if count else ():
        tokens[row["task"]] += count(_prompt_text(row["prompt"]) + row["completion"]) if count else 0
    worded = Counter((row["task"], row["template"]) for row in rows)
    return {
        name: Share(
            of_task[name],
            len(pool),
            of_task[name] / len(rows),
            tokens[name] / tokens.total() if count else None,
            tuple(worded[name, i + 1] for i in range(len(pool.task.templates))) or (of_task[name],),
        )
        for name, pool in pools.items()
    }


def _prompt_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(message["content"] or "" for message in prompt)


def _prompt_text_of(row: Row) -> str:
    return _prompt_text(list(row.messages))


def _grams(text: str) -> Iterator[str]:
    words = re.findall(r"\w+", text.lower())
    for begin in range(max(len(words) - _WORDS + 1, 1)):
        yield " ".join(words[begin : begin + _WORDS])
