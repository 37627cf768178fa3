"""How a row becomes tokens, the same in training, in evaluation and in service.

A text is rendered once and tokenized once, whole: prompt, completion and learned turns are parts of one list of ids,
those that the tokenizer gives the whole text. Where the completion's first characters join the prompt's last ones in
one token, the completion begins with that token.

The completion always ends in the stop token, and the stop token is always trained: models that were never taught to
stop do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from tunescope.data.nearest import with_question
from tunescope.data.pairs import Pair
from tunescope.data.rankings import EncodedRanking, Preference
from tunescope.data.reading import BadRow, check_bad
from tunescope.data.rendering import Prompt, Renderer, Whole
from tunescope.data.rows import Message, Row
from tunescope.data.shortening import Cut, shortened
from tunescope.data.template import Template
from tunescope.data.tokenizing import TextTokenizer, common_prefix
from tunescope.errors import DataError

_R = TypeVar("_R", bound=Row | Preference)
_E = TypeVar("_E")


@dataclass(frozen=True)
class PromptTokens:
    """What a completion is generated after.

    Attributes:
        ids: token ids. A negative id -1 - i is the i-th virtual token.
        owed: characters with which the answer must begin: the end of the prompt, whose token depends on the answer.
    """

    ids: list[int]
    owed: str = ""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Encoded:
    """One row as tokens; prompt and completion together are the tokens of the whole text.

    Attributes:
        prompt: token ids before the completion. A negative id -1 - i is the i-th virtual token.
        completion: token ids to learn, the stop token last.
        extra: tokens of the prompt that are there because of the template's system text, shots, line of attributes and
            virtual tokens.
        dropped: how many prompt tokens were cut to fit.
        number: the row's line in its file.
        earlier: [begin, end) spans of the prompt that are learned too: the assistant's earlier turns.
        messages: what stands before the completion, as it was cut.
    """

    prompt: list[int]
    completion: list[int]
    extra: int = 0
    dropped: int = 0
    number: int = 0
    earlier: tuple[tuple[int, int], ...] = ()
    messages: tuple[Message, ...] = field(default=(), compare=False, repr=False)

    def behind(self, virtual_tokens: int) -> Encoded:
        """The same row, its virtual tokens counted from this one of a longer matrix on."""

        def moved(ids: list[int]) -> list[int]:
            return [token - virtual_tokens if token < 0 else token for token in ids]

        return replace(self, prompt=moved(self.prompt), completion=moved(self.completion))

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class EncodedPair:
    """A pair as tokens: a ranking of two, whose distance may be known.

    Attributes:
        prompt: the token ids that both texts begin with, up to the end of the prompt. A negative id -1 - i is the i-th
            virtual token.
        chosen: token ids of the preferred completion, the stop token last.
        rejected: token ids of the other one, the stop token last.
        dropped: how many prompt tokens were cut to fit.
        number: the pair's line in its file.
        margin: how much better the chosen one is; None where it is not given.
        reference: log-probabilities of chosen and rejected under the reference, in nats, once they are known.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    dropped: int = 0
    number: int = 0
    margin: float | None = None
    reference: tuple[float, ...] | None = None

    @property
    def completions(self) -> list[list[int]]:
        """Token ids of both completions, the best first."""
        return [self.chosen, self.rejected]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of each completion."""
        return (1, 2)

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


EncodedPreference: TypeAlias = EncodedPair | EncodedRanking


@dataclass
class Encoder:
    """Turns rows into tokens under one template, counting what it had to cut.

    Args:
        tokenizer: of the base.
        template: what stands around a row's text.
        context: the most tokens a text may have in the base.
        max_length: the most tokens of a row's own prompt and completion. What the template adds (system text, shots,
            virtual tokens) comes on top, so that a row is cut alike under every template.
        cut: what a prompt that is too long loses of its own text.
        source: where the rows come from, for messages.
        skip_bad: how many rows may be left out because the template can't render them.

    Attributes:
        truncated: rows that were cut.
        dropped_rows: lines of rows that could not be cut to fit.
        bad: rows that the template can't render, and why.
        joined: rows whose completion's first characters join the prompt's last ones in one token.
        rewritten: rows whose completion the chat template trims or changes.
    """

    tokenizer: Any
    template: Template
    context: int
    max_length: int | None = None
    cut: Cut = "middle"
    source: str = "the rows"
    skip_bad: int = 0
    truncated: int = 0
    dropped_rows: list[int] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    joined: int = 0
    rewritten: int = 0

    def __post_init__(self) -> None:
        self._renderer = Renderer(self.tokenizer, self.template)
        self._texts = TextTokenizer(self.tokenizer, self.template)

    # Rows.

    def encode(self, row: Row) -> Encoded | None:
        """The row's tokens; None, and counted, where nothing of its prompt's text would be left beside the completion.

        A prompt that is too long loses a part of its own text's tokens; the template around it, its shots and the
        completion are never cut.

        Raises:
            DataError: the template can't render the row.
        """
        extra = self._extra(row)
        fitted = self._fitted(row.messages, extra, row.number, lambda own: self._row_tokens(replace(row, messages=own)))
        if fitted is None:
            return None
        found, dropped, messages = fitted
        return Encoded(found.prompt, found.completions[0], extra, dropped, row.number, found.turns, messages)

    def encode_pair(self, pair: Pair) -> EncodedPair | None:
        """The pair's tokens, cut so that the longer completion fits; None, and counted, where none of the prompt's text
        would be left beside it. Both completions keep the same prompt.

        Raises:
            DataError: the template can't render the pair.
        """
        tokens = self._fitting_prompt(pair, (pair.chosen, pair.rejected))
        if tokens is None:
            return None
        found, dropped = tokens
        chosen, rejected = found.completions
        return EncodedPair(found.prompt, chosen, rejected, dropped, pair.number, pair.margin)

    def _encode_preference(self, row: Preference) -> EncodedPreference | None:
        """The tokens of a pair or of ranked responses, as ``encode_pair`` gives them.

        Raises:
            DataError: the template can't render the row.
        """
        if isinstance(row, Pair):
            return self.encode_pair(row)
        tokens = self._fitting_prompt(row, row.responses)
        if tokens is None:
            return None
        found, dropped = tokens
        return EncodedRanking(found.prompt, found.completions, row.ranks, dropped, row.number)

    def _fitting_prompt(self, row: Preference, texts: Sequence[str]) -> tuple[_Tokens, int] | None:
        """A prompt, cut so that the longest of its completions fits, with all of them, and how many tokens were cut."""
        extra = self._extra(Row(row.messages, None, row.number))
        fitted = self._fitted(row.messages, extra, row.number, lambda own: self._tokens(own, texts))
        return fitted[:2] if fitted else None

    def encode_all(self, rows: Iterable[Row]) -> list[Encoded]:
        """Every row that fits, in order.

        Raises:
            DataError: rows that the template can't render, more than ``skip_bad``, each with its line and why.
        """
        return [found for _, found in self._all(rows, self.encode)]

    def fitting(self, rows: Iterable[Row]) -> list[tuple[int, Encoded]]:
        """``encode_all`` with the row's index beside each."""
        return self._all(rows, self.encode)

    def encode_pairs(self, rows: Iterable[Preference]) -> list[EncodedPreference]:
        """Every pair and every ranking that fits, in order.

        Raises:
            DataError: as ``encode_all``.
        """
        found: list[tuple[int, EncodedPreference]] = self._all(rows, self._encode_preference)
        return [each for _, each in found]

    def _all(self, rows: Iterable[_R], encode: Callable[[_R], _E | None]) -> list[tuple[int, _E]]:
        found: list[tuple[int, _E]] = []
        for i, row in enumerate(rows):
            try:
                encoded = encode(row)
            except DataError as error:
                self._renderer.check_template()  # what no row could mend is no fault of this one
                self.bad.append(BadRow(row.number, str(error)))
                continue
            if encoded is not None:
                found.append((i, encoded))
        check_bad(self.source, self.bad, self.skip_bad)
        return found

    def notes(self) -> list[str]:
        """What was cut, left out or changed, in words; empty when nothing was."""
        notes = []
        if self.truncated:
            prompts = "1 prompt was" if self.truncated == 1 else f"{self.truncated} prompts were"
            notes.append(f"{prompts} cut to fit {self._limit} tokens (the {self.cut} of the text).")
        if self.dropped_rows:
            rows = "1 row was" if len(self.dropped_rows) == 1 else f"{len(self.dropped_rows)} rows were"
            notes.append(
                f"{rows} dropped: the completion and what must stand before it do not fit {self._limit} tokens "
                f"({_lines(self.dropped_rows)})."
            )
        if self.bad:
            rows = "1 row was" if len(self.bad) == 1 else f"{len(self.bad)} rows were"
            notes.append(f"{rows} left out: {self.bad[0].reason} ({_lines([row.line for row in self.bad])}).")
        if self.joined:
            rows = "1 row has" if self.joined == 1 else f"{self.joined} rows have"
            notes.append(
                f"{rows} a token that holds the prompt's last characters and the completion's first ones: it is "
                "learned, and answers begin with it."
            )
        if self.rewritten:
            rows = "1 completion" if self.rewritten == 1 else f"{self.rewritten} completions"
            notes.append(f"The base's chat template trims or changes {rows}; --style plain keeps them as they are.")
        return notes

    # Prompts and candidates.

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> PromptTokens:
        """What an answer to ``messages`` is generated after; nothing is cut to fit.

        Raises:
            DataError: the template can't render the messages.
        """
        rendered = self._renderer.prompt(messages, tools)
        ids = self._texts.ids(rendered.text)
        tokens, characters = self._texts.open_end(rendered, ids)
        return PromptTokens(ids[: len(ids) - tokens], rendered.text[len(rendered.text) - characters :] + rendered.owed)

    def candidates(
        self, messages: Sequence[Message], texts: Sequence[str], tools: Sequence[dict[str, Any]] = ()
    ) -> tuple[list[int], list[list[int]]]:
        """Several answers to compare: the token ids that all of them begin with, up to the end of the prompt, and the
        rest of each, its stop token last.

        Raises:
            DataError: the template can't render the messages.
        """
        found = self._tokens(messages, texts, tools)
        return found.prompt, found.completions

    # Tokens.

    def _row_tokens(self, row: Row) -> _Tokens:
        if row.completion is None and not row.tool_calls:
            return _Tokens(self.prompt(row.messages, row.tools).ids, [[]])
        whole = self._renderer.whole(row)
        found = self._together(whole.prompt, [whole])
        ids = found.prompt + found.completions[0]
        turns = tuple(
            (
                common_prefix(self._texts.ids(whole.text[:begin]), ids),
                common_prefix(self._texts.ids(whole.text[:end]), ids),
            )
            for begin, end in whole.turns
        )
        return replace(found, turns=turns)

    def _tokens(self, messages: Sequence[Message], texts: Sequence[str], tools: Sequence[Any] = ()) -> _Tokens:
        wholes = self._renderer.wholes(messages, texts, tools)
        return self._together(wholes[0].prompt, wholes)

    def _together(self, prompt: Prompt, wholes: Sequence[Whole]) -> _Tokens:
        """The longest prefix that the prompt's own ids and those of all whole texts share, and the rests."""
        own = self._texts.ids(prompt.text)
        texts = self._texts.continued(prompt.text, own, [whole.text[len(prompt.text) :] for whole in wholes])
        shared = min((common_prefix(own, ids) for ids in texts), default=len(own))
        stop = self.template.stop[0]
        # At least the stop token is left to learn, also of an answer without any text.
        rests = [ids[shared:] if ids[-1:] == [stop] and len(ids) > shared else [*ids[shared:], stop] for ids in texts]
        return _Tokens(own[:shared], rests, (), shared < len(own), all(whole.kept for whole in wholes))

    # Cutting.

    @property
    def _limit(self) -> int:
        return min(self.context, self.max_length or self.context)

    def _fitted(
        self,
        messages: tuple[Message, ...],
        extra: int,
        number: int,
        tokens: Callable[[tuple[Message, ...]], _Tokens],
    ) -> tuple[_Tokens, int, tuple[Message, ...]] | None:
        """The ``tokens`` of messages, cut where they are too long: with how many tokens were dropped, and the messages
        as they were cut. None, and counted, where no cut makes them fit."""
        if self.template.nearest:
            messages = with_question(messages)
        whole = found = tokens(messages)
        limit = min(self.context, (self.max_length or self.context) + extra)
        if len(whole) > limit:
            cut = shortened(
                messages,
                lambda shorter: len(tokens(shorter)) - limit,
                self.tokenizer,
                cut=self.cut,
                marked=bool(self.template.virtual_splits),
            )
            if cut is None:
                self.dropped_rows.append(number)
                return None
            self.truncated += 1
            messages, found = cut, tokens(cut)
        self.joined += found.joined
        self.rewritten += not found.kept
        return found, len(whole.prompt) - len(found.prompt), messages

    def _extra(self, row: Row) -> int:
        """How many of the prompt's tokens are the template's system text, shots, attributes and virtual tokens."""
        if not self.template.shots and not self.template.system and self.template.steering is None:
            return self.template.virtual_tokens
        framed = self._texts.ids(self._renderer.prompt(row.messages, row.tools).text)
        bare = self._texts.ids(self._renderer.bare(row.messages, row.tools))
        return len(framed) - len(bare) + self.template.virtual_tokens


@dataclass(frozen=True)
class _Tokens:
    """A prompt's tokens and those of each completion, without limits; see ``Encoded``."""

    prompt: list[int]
    completions: list[list[int]]
    turns: tuple[tuple[int, int], ...] = ()
    joined: bool = False
    kept: bool = True

    def __len__(self) -> int:
        return len(self.prompt) + max(map(len, self.completions))


def _lines(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (" …" if len(numbers) > 10 else "")
    return f"line{'s' if len(numbers) > 1 else ''} {shown}"
