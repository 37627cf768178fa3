"""From messages to one text: what a template writes around a row, and where in it the row's parts lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunescope.data.attributes import KEY
from tunescope.data.chat_template import render_chat
from tunescope.data.nearest import QUESTION, Nearest, question
from tunescope.data.rows import IGNORED_SPACE, Message, Row, spoken
from tunescope.data.template import Shot, Template
from tunescope.errors import DataError

# Keys of a message that are for training and not for the chat template.
_OWN_KEYS = ("weight", KEY, QUESTION)
# Stands for a completion; templates may strip spaces, so it has none.
_MARKER = "tunescopecompletion"


@dataclass(frozen=True)
class Prompt:
    """The text before a completion.

    Attributes:
        text: rendered, without white space at its end that the completion's first token may hold.
        owed: the white space left out, with which the answer must begin.
    """

    text: str
    owed: str = ""


@dataclass(frozen=True)
class Whole:
    """A conversation or text with its completion, rendered once.

    Attributes:
        prompt: what the text begins with.
        text: up to the end of the completion, with its stop token where the chat template writes one.
        turns: [begin, end) characters of the assistant's earlier turns that are learned, their stop token included.
        kept: whether the completion stands in the text word for word; chat templates may trim or rewrite it.
    """

    prompt: Prompt
    text: str
    turns: tuple[tuple[int, int], ...] = ()
    kept: bool = True


class Renderer:
    """Writes rows as text under one template.

    Args:
        tokenizer: of the base.
        template: what stands around a row's text.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._chat = template.style == "chat"
        self._stop = tokenizer.decode([template.stop[0]]) if template.stop else ""
        self._nearest = Nearest(template.shots)
        self._works: bool | None = None  # whether the chat template takes what the template itself adds

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> Prompt:
        """The text before the completion.

        Raises:
            DataError: the chat template refuses these messages, or there is none for what only one can render.
        """
        framed = self._framed(messages)
        if self._chat:
            return Prompt(self._render(framed, tools, generation_prompt=True) + self._label(messages))
        self._refuse_functions(framed, tools)
        text = self._plain(framed)
        bare = text.rstrip(IGNORED_SPACE)
        if label := self._label(messages):
            return Prompt(f"{bare}\n{label}")
        return Prompt(bare, text[len(bare) :] + self._template.tail)

    def whole(self, row: Row) -> Whole:
        """The text of a row with its completion.

        Raises:
            DataError: as ``prompt``.
        """
        completion = spoken(row.completion or "")
        prompt, label = self.prompt(row.messages, row.tools), self._label(row.messages)
        if not self._chat:
            if row.tool_calls:
                raise DataError("tool_calls can't be rendered in plain style: take --style chat")
            if label:
                return Whole(prompt, prompt.text + completion)
            text = prompt.text + prompt.owed.removesuffix(self._template.tail)
            return Whole(prompt, self._joined(text, completion))
        answer: Message = {"role": "assistant", "content": label + completion}
        if row.tool_calls:
            answer["tool_calls"] = list(row.tool_calls)
        framed = self._framed(row.messages)
        text = self._render([*framed, answer], row.tools, generation_prompt=False)
        if row.tool_calls:
            self._check_calls(answer, text)
        if text.startswith(prompt.text) and len(text) > len(prompt.text):
            text = text[: self._turn_end(text, len(prompt.text), completion)]
        else:  # a template that writes a finished turn otherwise than one to be written
            text = prompt.text + completion + self._stop
        kept = completion in text[len(prompt.text) :]
        return Whole(prompt, text, self._learned_turns(row, framed, text), kept)

    def wholes(
        self, messages: Sequence[Message], completions: Sequence[str], tools: Sequence[dict[str, Any]] = ()
    ) -> list[Whole]:
        """The texts of several completions of one prompt. A chat template is run once for all that it can't change.

        Raises:
            DataError: as ``prompt``.
        """
        marked = self.whole(Row(tuple(messages), _MARKER, 0, tools=tuple(tools)))
        found = []
        for completion in map(spoken, completions):
            if marked.kept and completion.strip() == completion and "<" not in completion:
                found.append(replace(marked, text=marked.text.replace(_MARKER, completion)))
            else:
                found.append(self.whole(Row(tuple(messages), completion, 0, tools=tuple(tools))))
        return found

    def check_template(self) -> None:
        """Render a short conversation, to see whether the chat template takes what this template adds to every row.

        Raises:
            DataError: it refuses a system text or shots, whatever the row.
        """
        if self._works is None:
            self.prompt([{"role": "user", "content": "a"}])
            self._works = True

    def bare(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The prompt's text without the template's system text and shots, and without the line of attributes."""
        plain = self._template.model_copy(update={"system": None, "shots": (), "steering": None})
        own = Renderer(self._tokenizer, plain)
        return own.prompt(messages, tools).text

    # Chat style.

    def _render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, generation_prompt: bool) -> str:
        shown = [{key: value for key, value in message.items() if key not in _OWN_KEYS} for message in messages]
        try:
            text = render_chat(self._tokenizer, shown, generation_prompt=generation_prompt, tools=tools)
        except DataError as error:
            system = any(message["role"] == "system" for message in shown)
            remedy = "move the system text into the user's turn, or take --style plain" if system else "--style plain"
            raise DataError(f"{error} ({remedy})") from error
        if tools and text == render_chat(self._tokenizer, shown, generation_prompt=generation_prompt):
            raise DataError(
                "The base's chat template has no place for tools: leave the column out or take another base"
            )
        for message in shown:
            if message.get("tool_calls"):
                self._check_calls(message, text)
        return text

    @staticmethod
    def _check_calls(message: Message, text: str) -> None:
        """Refuse a text in which a function that is called does not stand: the chat template left it out."""
        for call in message["tool_calls"]:
            name = str(call.get("function", call).get("name"))
            if name not in text:
                raise DataError(
                    f"The base's chat template leaves out tool_calls (the call of {name}): leave such rows out, or "
                    "take another base"
                )

    def _turn_end(self, text: str, begin: int, said: str) -> int:
        """Where the turn ends that begins at ``begin``, says ``said`` and is the last one of ``text``, its stop token
        included. White space that a chat template without such a token writes behind a turn is no part of it."""
        position = text.find(said, begin)
        spoken = begin if position < 0 else position + len(said)
        stop = text.rfind(self._stop, spoken) if self._stop else -1
        return max(len(text.rstrip()), spoken) if stop < 0 else stop + len(self._stop)

    def _learned_turns(self, row: Row, framed: Sequence[Message], whole: str) -> tuple[tuple[int, int], ...]:
        """Where the assistant's earlier turns lie; shots and turns of weight 0 are left out.

        Some chat templates rewrite a conversation as it grows (Qwen3 drops earlier reasoning). A turn whose prompt
        does not stand in the whole as the model would have read it is not learned.
        """
        first = len(framed) - sum(message["role"] != "system" for message in row.messages)
        spans: list[tuple[int, int]] = []
        for i, message in enumerate(framed):
            if i < first or message["role"] != "assistant" or message.get("weight", 1) == 0:
                continue
            before = self._render(framed[:i], row.tools, generation_prompt=True)
            if whole.startswith(before) and (end := self._learned_end(row, framed[: i + 2], before, whole)):
                spans.append((len(before), end))
        return tuple(spans)

    def _learned_end(self, row: Row, framed: Sequence[Message], before: str, whole: str) -> int:
        """Where an earlier turn of the assistant ends, the last but one of ``framed``; 0 where it can't be told."""
        *earlier, following = framed
        said = earlier[-1]["content"]
        turn = self._render(earlier, row.tools, generation_prompt=False)
        end = self._turn_end(turn, len(before), said)
        if whole.startswith(turn[:end]):
            return end
        # It is written otherwise once another turn follows: without its reasoning, or without a token at its end.
        continued = self._render(framed, row.tools, generation_prompt=False)
        limit = max(continued.rfind(following["content"].strip()), len(before))
        stop = whole.find(self._stop, len(before), limit) if self._stop else -1
        if stop >= 0:
            return stop + len(self._stop)
        position = whole.find(said, len(before), limit)
        return position + len(said) if position >= 0 else 0

    # Plain style.

    def _plain(self, messages: Sequence[Message]) -> str:
        texts = ""
        for message in messages:
            content = message["content"] or ""
            if message["role"] == "assistant":  # a shot reads as the row does
                texts = self._joined(texts, spoken(content)) + "\n\n"
            else:
                texts += content.rstrip(IGNORED_SPACE) + "\n\n" if message["role"] == "system" else content
        return texts

    def _joined(self, prompt: str, completion: str) -> str:
        """Prompt and completion with the pattern's white space between them, or one space where neither has any."""
        tail = self._template.tail
        if tail:
            return prompt + tail + completion
        return prompt + ("" if prompt[-1:].isspace() or completion[:1].isspace() else " ") + completion

    @staticmethod
    def _refuse_functions(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        if tools:
            raise DataError("tools can't be rendered in plain style: leave the column out, or take --style chat")
        for message in messages:
            if message.get("tool_calls") or message["role"] == "tool":
                raise DataError("tool_calls and tools' answers can't be rendered in plain style: take --style chat")

    # Both.

    def _label(self, messages: Sequence[Message], place: str = "answer") -> str:
        """The line of attributes that stands at a place, its line break included; empty where none stands there."""
        steering = self._template.steering
        line = steering.line(messages[-1]) if steering is not None and steering.place == place else ""
        return line and line + "\n"

    def _framed(self, messages: Sequence[Message]) -> list[Message]:
        """The system text and the shots, then the messages. A row's own system message stands beside the template's."""
        own = [m["content"] for m in messages if m["role"] == "system"]
        asked = self._label(messages, "system").rstrip()
        system = "\n\n".join(text for text in (self._template.system, *own, asked) if text)
        framed: list[Message] = [{"role": "system", "content": system}] if system else []
        for shot in self._shots(messages):
            framed.append({"role": "user", "content": self._trimmed(shot.prompt)})
            framed.append({"role": "assistant", "content": shot.completion})
        framed += [m for m in messages if m["role"] != "system"]
        last = framed[-1] if framed else {"role": "", "content": ""}
        if last["role"] == "user":
            framed[-1] = {**last, "content": self._trimmed(last["content"])}
        return framed

    def _shots(self, messages: Sequence[Message]) -> Sequence[Shot]:
        """The worked examples before a conversation: the template's, or those nearest to what it last asks."""
        if not self._template.nearest:
            return self._template.shots
        return self._nearest.of(self._trimmed(question(messages)), self._template.nearest)

    def _trimmed(self, prompt: str) -> str:
        """Without the pattern's white space before the completion, whether or not it was typed with the prompt."""
        return prompt.removesuffix(self._template.tail)
