"""Texts as token ids under one template, and which of a prompt's last tokens an answer may change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tunescope.data.rendering import Prompt
from tunescope.data.template import MARK, Template
from tunescope.errors import DataError

# First characters of completions: a prompt keeps those of its last tokens that none of these changes.
_FIRST = ("a", "A", "1", "(")
# Also tried where the template heals: indentation, line breaks.
_FIRST_SPACES = ("  a", "\ta", "\na", "\n\n")
# How many characters at a prompt's end usually tell its last tokens.
_END = 16


class TextTokenizer:
    """Tokenizes texts whole, with the special tokens they begin with and the template's virtual tokens.

    Args:
        tokenizer: of the base.
        template: whose style says which special tokens stand first, and which has virtual tokens.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._added = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
        self._lead = lead_ids(tokenizer)
        self._picture = tokenizer.special_tokens_map.get("image_token")
        self._ends: dict[tuple[str, str], tuple[int, int] | None] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of a text from its start on, with virtual tokens before it or where the template marks.

        Raises:
            DataError: marks that are not the template's, or a placeholder of a picture.
        """
        splits = self._template.virtual_splits
        if not splits:
            return self._template.virtual_ids + self._words(text, special=True)
        if (marks := tuple(MARK.findall(text))) != self._template.marks:
            raise DataError(
                f"A prompt must have {', '.join(self._template.marks)}, each once and in this order, because this "
                f"template splits its virtual tokens over them; this one has {', '.join(marks) or 'none'}."
            )
        found: list[int] = []
        for i, piece in enumerate(MARK.split(text)):
            if i % 2:
                mark = self._template.marks.index(piece)
                begin = sum(splits[:mark])
                found += [-1 - begin - k for k in range(splits[mark])]
            else:
                found += self._words(piece, special=i == 0)
        return found

    def continued(self, text: str, ids: list[int], more: Sequence[str]) -> list[list[int]]:
        """The ids of ``text`` followed by each of several texts; ``ids`` are those of ``text`` alone.

        What stands before a special token is tokenized alike whatever comes behind it, so it is not tokenized again for
        each. The special token is: it may take white space behind it, and the first word of a text is tokenized
        otherwise than one behind a special token.
        """
        for position in range(len(ids) - 1, max(len(ids) - _END, 0) - 1, -1):
            if ids[position] in self._added:
                token = self._tokenizer.convert_ids_to_tokens(ids[position])
                tail = text[max(text.rfind(token), 0) :]
                if tail.startswith(token) and self._words(tail, special=False) == ids[position:]:
                    head = ids[:position]
                    return [head + self._words(tail + each, special=False) for each in more]
                break
        return [self.ids(text + each) for each in more]

    def open_end(self, prompt: Prompt, ids: list[int]) -> tuple[int, int]:
        """How many of a prompt's last tokens the answer's first characters may change, and how many characters these
        tokens hold; ``ids`` are the prompt's own."""
        end = prompt.text[-_END:]
        key = (end, prompt.owed)
        if key not in self._ends:
            self._ends[key] = self._measured_end(end, prompt.owed, lambda text: self._words(text, special=False))
        found = self._ends[key]
        if found is None or ids[len(ids) - found[0] - 1 :] != self._words(end, special=False)[-found[0] - 1 :]:
            found = self._measured_end(prompt.text, prompt.owed, self.ids)  # the end alone is tokenized otherwise
        return found or (0, 0)

    def _measured_end(self, text: str, owed: str, tokens: Callable[[str], list[int]]) -> tuple[int, int] | None:
        """``open_end`` of a text; None where more of it would be needed to tell."""
        own = tokens(text)
        glue = owed or ("" if self._template.style == "chat" or text.endswith("\n") else " ")
        wholes = [text + glue + first for first in _FIRST]
        if self._template.heal:
            wholes += [text + owed + first for first in _FIRST_SPACES]
        closed = min(common_prefix(own, tokens(whole)) for whole in wholes)
        if closed == len(own):
            return 0, 0
        for characters in range(1, len(text)):
            if tokens(text[:-characters]) == own[:closed]:
                return len(own) - closed, characters
        return None

    def _words(self, text: str, *, special: bool) -> list[int]:
        # Chat templates write the beginning-of-text token themselves.
        # What some tokenizers append (an end-of-text token, a separator) would end the text before its completion.
        lead = self._lead if special and self._template.style == "plain" else []
        if self._picture is not None and self._picture in text:  # Gemma 3 1B has no embedding for it
            raise DataError(f"the text holds {self._picture}, which stands for a picture: only texts are read here")
        return lead + self._tokenizer(text, add_special_tokens=False)["input_ids"]


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """How many tokens, or characters, the common prefix of two texts has."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def lead_ids(tokenizer: Any) -> list[int]:
    """The special tokens that a tokenizer writes before every text; many write none."""
    framed, bare = (
        tokenizer("a", add_special_tokens=True)["input_ids"],
        tokenizer("a", add_special_tokens=False)["input_ids"],
    )
    begin = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:begin]
