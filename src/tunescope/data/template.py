"""How a row becomes tokens, the same in training, in evaluation and in service.

The prompt and the completion are tokenized apart, because at inference the prompt is tokenized alone. The completion
always ends in the stop token, and the stop token is always trained: models that were never taught to stop do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunescope.data.chat_template import render_chat
from tunescope.data.pairs import Pair
from tunescope.data.rows import IGNORED_SPACE, Message, Row
from tunescope.errors import DataError, UnknownNameError
from tunescope.settings import Settings

_STYLES = ("auto", "chat", "plain")
# Where some of the virtual tokens stand in a template, as NeMo writes it.
_MARK = re.compile(r"(<\|VIRTUAL_PROMPT_\d+\|>)")


class Shot(Settings):
    """One worked example shown in the prompt."""

    prompt: str
    """The input text of the example."""
    completion: str
    """The answer shown for it."""


class Template(Settings):
    """Everything that stands around a row's own text. Part of a customization: served as trained."""

    style: Literal["chat", "plain"]
    """``chat`` renders with the tokenizer's chat template; ``plain`` concatenates texts."""
    pattern: str | None = None
    """How raw columns became the prompt and the completion, for example ``"{text} topic: {label}"``."""
    system: str | None = None
    """A system instruction put before every prompt."""
    shots: tuple[Shot, ...] = ()
    """Worked examples put before every prompt, in this order."""
    virtual_tokens: int = 0
    """How many virtual tokens the prompt has; they stand before the text unless places are marked."""
    virtual_splits: tuple[int, ...] = ()
    """How many of the virtual tokens stand at each marked place of the pattern, <|VIRTUAL_PROMPT_0|> and so on."""
    stop: tuple[int, ...] = ()
    """Token ids that end a completion; the first one is trained."""

    @property
    def virtual_ids(self) -> list[int]:
        """The ids of the virtual tokens, in order: -1 - i is the i-th."""
        return [-1 - i for i in range(self.virtual_tokens)]

    def check_marks(self) -> None:
        """Refuse a pattern whose marked places are not those that the virtual tokens are split over.

        Raises:
            DataError: marks that are missing, repeated, out of order, or that nothing would fill.
        """
        marks, wanted = _MARK.findall(self.pattern or ""), list(self.marks)
        if marks == wanted:
            return
        if not wanted:
            raise DataError(
                f"The template marks places for virtual tokens ({', '.join(marks)}), but nothing would stand there: "
                "take prompt-tuning or p-tuning and say with --splits how many stand at each, or leave the marks out."
            )
        raise DataError(
            f"splits names {len(wanted)} places, so the template must have {', '.join(wanted)}, each once and in this "
            f"order, before the field to learn; it has {', '.join(marks) or 'none'}."
        )

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks a prompt must have."""
        return tuple(f"<|VIRTUAL_PROMPT_{i}|>" for i in range(len(self.virtual_splits)))


@dataclass(frozen=True)
class Encoded:
    """One row as tokens.

    Attributes:
        prompt: token ids before the completion. A negative id -1 - i is the i-th virtual token.
        completion: token ids to learn, the stop token last.
        extra: tokens of the prompt that are there because of the template's system text, shots and virtual tokens.
        dropped: how many prompt tokens were cut to fit.
        number: the row's line in its file.
        earlier: [begin, end) spans of the prompt that are learned too: the assistant's earlier turns.
    """

    prompt: list[int]
    completion: list[int]
    extra: int = 0
    dropped: int = 0
    number: int = 0
    earlier: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class EncodedPair:
    """A pair as tokens.

    Attributes:
        prompt: token ids before the completions, the same for both. A negative id -1 - i is the i-th virtual token.
        chosen: token ids of the preferred completion, the stop token last.
        rejected: token ids of the other one, the stop token last.
        dropped: how many prompt tokens were cut to fit.
        number: the pair's line in its file.
        margin: how much better the chosen one is; None where nobody said.
        reference: log-probabilities of chosen and rejected under the reference, in nats, once they are known.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    dropped: int = 0
    number: int = 0
    margin: float | None = None
    reference: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def default_template(tokenizer: Any, *, pattern: str | None = None, style: str = "auto") -> Template:
    """Chat style for tokenizers that have a chat template, plain text for the others.

    Raises:
        UnknownNameError: a style that is neither ``chat``, ``plain`` nor ``auto``.
        DataError: ``chat`` asked of a tokenizer without a chat template.
    """
    if style not in _STYLES:
        raise UnknownNameError("style", style, _STYLES)
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if style == "chat" and not has_chat:
        raise DataError("This base has no chat template: use --style plain.")
    chosen = ("chat" if has_chat else "plain") if style == "auto" else style
    return Template(style=chosen, pattern=pattern, stop=_stop_tokens(tokenizer, chosen))


def _stop_tokens(tokenizer: Any, style: str) -> tuple[int, ...]:
    """The end-of-turn token that the chat template writes, then the end-of-text token."""
    stops = []
    if style == "chat":
        # A marker finds the turn's end whatever stands around it; templates may strip spaces, so it has none.
        marker = "tunescopeturnend"
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
        try:
            after = render_chat(tokenizer, turn, generation_prompt=False).rpartition(marker)[2]
        except DataError as error:
            raise DataError(f"The base's chat template is broken ({error}): use --style plain.") from error
        special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        stops += [i for i in tokenizer(after, add_special_tokens=False)["input_ids"] if i in special][:1]
    if tokenizer.eos_token_id is not None:
        stops.append(tokenizer.eos_token_id)
    if not stops:
        raise DataError("This tokenizer has no end-of-text token, so a completion could never be taught to stop.")
    return tuple(dict.fromkeys(stops))


@dataclass
class Encoder:
    """Turns rows into tokens under one template, counting what it had to cut.

    Args:
        tokenizer: of the base.
        template: what stands around a row's text.
        context: the most tokens a text may have in the base.
        max_length: the most tokens of a row's own prompt and completion. What the template adds (system text, shots,
            virtual tokens) comes on top, so that a row is cut alike under every template.
        cut: what a prompt that is too long loses of its own text: the middle (its beginning says what the text is
            about, its end asks the question), or the start.
    """

    tokenizer: Any
    template: Template
    context: int
    max_length: int | None = None
    cut: Literal["middle", "start"] = "middle"
    truncated: int = 0
    dropped_rows: list[int] = field(default_factory=list)

    def encode(self, row: Row) -> Encoded | None:
        """The row's tokens; None, and counted, where nothing of its prompt's text would be left beside the completion.

        A prompt that is too long loses a part of its own text's tokens; the template around it, its shots and the
        completion are never cut.
        """
        completion = self.completion(row) if row.completion is not None else []
        prompt, earlier = self._turns(row.messages)
        extra = self._extra(row.messages, prompt)
        fitting = self._fitted(row.messages, prompt, extra, len(completion))
        if fitting is None:
            self.dropped_rows.append(row.number)
            return None
        dropped = len(prompt) - len(fitting)
        return Encoded(fitting, completion, extra, dropped, row.number, () if dropped else earlier)

    def encode_pair(self, pair: Pair) -> EncodedPair | None:
        """The pair's tokens, cut so that the longer completion fits; None, and counted, where none of the prompt's text
        would be left beside it. Both completions keep the same prompt.
        """
        chosen, rejected = (self.completion_text(pair.messages, text) for text in (pair.chosen, pair.rejected))
        prompt = self.prompt_ids(pair.messages)
        longest = max(len(chosen), len(rejected))
        fitting = self._fitted(pair.messages, prompt, self._extra(pair.messages, prompt), longest)
        if fitting is None:
            self.dropped_rows.append(pair.number)
            return None
        return EncodedPair(fitting, chosen, rejected, len(prompt) - len(fitting), pair.number, pair.margin)

    def encode_all(self, rows: Iterable[Row]) -> list[Encoded]:
        """Every row that fits, in order."""
        return [encoded for row in rows if (encoded := self.encode(row)) is not None]

    def notes(self) -> list[str]:
        """What was cut, in words; empty when nothing was."""
        said = []
        if self.truncated:
            prompts = "1 prompt was" if self.truncated == 1 else f"{self.truncated} prompts were"
            said.append(f"{prompts} cut to fit {self._limit} tokens (the {self.cut} of the text).")
        if self.dropped_rows:
            lines = ", ".join(map(str, self.dropped_rows[:10])) + (" …" if len(self.dropped_rows) > 10 else "")
            rows = "1 row was" if len(self.dropped_rows) == 1 else f"{len(self.dropped_rows)} rows were"
            said.append(
                f"{rows} dropped: the completion and what must stand before it do not fit {self._limit} tokens "
                f"(line{'s' if len(self.dropped_rows) > 1 else ''} {lines})."
            )
        return said

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the whole prompt, up to where the completion begins; nothing cut."""
        return self._lead + self._tokens(self._marked(self.render(messages)), beginning=True)

    def completion(self, row: Row) -> list[int]:
        """Token ids of the row's completion and the stop token."""
        return self.completion_text(row.messages, row.completion or "")

    def completion_text(self, messages: Sequence[Message], text: str) -> list[int]:
        """Token ids of ``text`` as the answer to ``messages``, and the stop token."""
        return [
            *self._tokens(self._space(messages) + text.strip(IGNORED_SPACE), beginning=False),
            self.template.stop[0],
        ]

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as text."""
        return self._render(self._framed(messages))

    def _extra(self, messages: Sequence[Message], prompt: Sequence[int]) -> int:
        """How many of the prompt's tokens are the template's system text, shots and virtual tokens."""
        added = len(prompt) - len(self._bare(messages)) if self.template.shots or self.template.system else 0
        return self.template.virtual_tokens + added

    def _fitted(self, messages: Sequence[Message], prompt: list[int], extra: int, completion: int) -> list[int] | None:
        """The prompt, cut and counted where it is too long beside ``completion`` tokens; None if it cannot be cut."""
        room = min(self.context, (self.max_length or self.context) + extra) - completion
        if len(prompt) <= room:
            return prompt
        shortened = self._shorten(messages, room)
        self.truncated += shortened is not None
        return shortened

    def _turns(self, messages: Sequence[Message]) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """The prompt's tokens, and where the assistant's earlier turns (with their stop tokens) lie in them.

        Some chat templates rewrite a conversation as it grows (Qwen3 drops earlier reasoning). A turn that does not
        stand in the whole conversation as the model would have written it is not learned.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns or self.template.style == "plain":
            return self.prompt_ids(messages), ()
        whole, stop = self._marked(self.render(messages)), self.tokenizer.decode([self.template.stop[0]])
        ids = self._lead
        spans: list[tuple[int, int]] = []
        done = 0
        for i in turns:
            before = self.render(messages[:i])
            end = whole.find(stop, len(before)) + len(stop)
            if not whole.startswith(before) or end < len(stop) or len(before) < done:
                continue
            ids += self._tokens(whole[done : len(before)], beginning=not done)
            turn = self._tokens(whole[len(before) : end], beginning=False)
            spans.append((len(ids), len(ids) + len(turn)))
            ids, done = ids + turn, end
        return ids + self._tokens(whole[done:], beginning=not done), tuple(spans)

    @property
    def _lead(self) -> list[int]:
        """The virtual tokens before the text."""
        return [] if self.template.virtual_splits else self.template.virtual_ids

    @property
    def _limit(self) -> int:
        return min(self.context, self.max_length or self.context)

    def _bare(self, messages: Sequence[Message]) -> list[int]:
        return self._lead + self._tokens(self._render(list(messages)), beginning=True)

    def _framed(self, messages: Sequence[Message]) -> list[Message]:
        """The system text and the shots, then the messages. A row's own system message stands beside the template's."""
        own = [m for m in messages if m["role"] == "system"]
        system = "\n\n".join(text for text in (self.template.system, *(m["content"] for m in own)) if text)
        framed = [{"role": "system", "content": system}] if system else []
        for shot in self.template.shots:
            framed.append({"role": "user", "content": shot.prompt})
            framed.append({"role": "assistant", "content": shot.completion})
        return framed + [m for m in messages if m["role"] != "system"]

    def _render(self, messages: list[Message]) -> str:
        if self.template.style == "chat":
            return render_chat(self.tokenizer, messages, generation_prompt=True)
        texts = []
        for message in messages[:-1]:
            # A shot reads as the row does: its answer stands where the completion would.
            glue = self._space([message]) if message["role"] == "user" else "\n\n"
            text = message["content"].rstrip(IGNORED_SPACE)
            texts.append((text.lstrip(IGNORED_SPACE) if message["role"] == "assistant" else text) + glue)
        return "".join(texts) + messages[-1]["content"].rstrip(IGNORED_SPACE)

    def _space(self, messages: Sequence[Message]) -> str:
        """In plain style a space after the prompt belongs to the completion, as byte-pair tokenizers want it."""
        if self.template.style == "chat":
            return ""
        return "" if messages[-1]["content"].rstrip(IGNORED_SPACE).endswith("\n") else " "

    def _marked(self, text: str) -> str:
        """The text, checked to have the marked places that the template's virtual tokens are split over."""
        if self.template.virtual_splits and (marks := tuple(_MARK.findall(text))) != self.template.marks:
            raise DataError(
                f"A prompt must have {', '.join(self.template.marks)}, each once and in this order, because this "
                f"template splits its virtual tokens over them; one has {', '.join(marks) or 'none'}."
            )
        return text

    def _tokens(self, text: str, *, beginning: bool) -> list[int]:
        """Token ids, with virtual tokens where the template marks their places."""
        if not self.template.virtual_splits:
            return self._words(text, beginning=beginning)
        ids: list[int] = []
        for i, piece in enumerate(_MARK.split(text)):
            if i % 2:
                place = self.template.marks.index(piece)
                begin = sum(self.template.virtual_splits[:place])
                ids += [-1 - begin - k for k in range(self.template.virtual_splits[place])]
            else:
                ids += self._words(piece, beginning=beginning and i == 0)
        return ids

    def _words(self, text: str, *, beginning: bool) -> list[int]:
        # Chat templates write the beginning-of-text token themselves.
        special = beginning and self.template.style == "plain"
        ids = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # tokenizers that append an end-of-text token would end the text before its completion
        return ids

    def _shorten(self, messages: Sequence[Message], room: int) -> list[int] | None:
        """The prompt with a part of its last message's text left out, at most ``room`` tokens; None if impossible.

        Of a text with marked places the longest piece between two of them is cut.
        """
        pieces = _MARK.split(messages[-1]["content"]) if self.template.virtual_splits else [messages[-1]["content"]]
        at = max(range(0, len(pieces), 2), key=lambda i: len(pieces[i]))
        ids = self.tokenizer(pieces[at], add_special_tokens=False)["input_ids"]
        keep = len(ids) - (len(self.prompt_ids(messages)) - room)
        while keep > 0:
            # Two thirds from the beginning, one third from the end: the question usually stands at the end.
            last = keep // 3 if self.cut == "middle" else keep
            first = keep - last
            # A letter of several tokens may be cut through: what is left of it is no text.
            begin = self.tokenizer.decode(ids[:first]).rstrip("\ufffd")
            end = self.tokenizer.decode(ids[len(ids) - last :]).lstrip("\ufffd") if last else ""
            cut = begin + end
            text = "".join([*pieces[:at], cut, *pieces[at + 1 :]])
            prompt = self.prompt_ids([*messages[:-1], {**messages[-1], "content": text}])
            if len(prompt) <= room:
                return prompt
            keep -= len(prompt) - room  # decoding and encoding again can give a few tokens more
        return None
