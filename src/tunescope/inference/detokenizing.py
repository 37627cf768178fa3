"""Tokens to text as they come: whole characters only, and nothing that may yet turn out to be a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunescope.data.rows import without_joint

# Replacement character of a partial UTF-8 sequence.
INCOMPLETE = "\ufffd"


class Detokenizer:
    """The text of one row.

    Args:
        tokenizer: of the base.
        stop: texts that end it.
        owed: the prompt's last characters, which the tokens repeat first and which are no part of the answer.

    Attributes:
        text: what is certain so far, without the single space that separates it from the prompt. It never ends in
            half a character, nor in the first characters of a stop text.
        stopped: whether a stop text came; ``text`` ends before it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], owed: str = "") -> None:
        self._tokenizer, self._stop, self._owed = tokenizer, tuple(stop), owed
        # Behind another token, because some tokenizers leave out the space before a text's first word.
        self._tokens = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._done, self._context = 1, 0  # tokens that are in _whole; the first token that is decoded with new ones
        self._whole = ""
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """The next token."""
        self._tokens.append(token)
        # Decoded with some tokens before: whether a space stands between two words depends on both.
        before = self._decode(self._tokens[self._context : self._done])
        after = self._decode(self._tokens[self._context :])
        if len(after) > len(before) and not after.endswith(INCOMPLETE):
            self._take(after[len(before) :])
            self._context, self._done = self._done, len(self._tokens)

    def close(self) -> None:
        """No token follows: what was held back is text after all."""
        if self.stopped:
            return
        before = self._decode(self._tokens[self._context : self._done])
        self._take(self._decode(self._tokens[self._context :])[len(before) :])
        if not self.stopped:
            self.text = self._shown(len(self._whole))

    def _take(self, more: str) -> None:
        if self._owed and more:
            paid = _shared(more, self._owed)
            self._owed = self._owed[paid:] if paid == len(more) else ""
            more = more[paid:]
        searched = max(len(self._whole) - max(map(len, self._stop), default=0), 0)
        self._whole += more
        places = [place for stop in self._stop if (place := self._whole.find(stop, searched)) >= 0]
        if places:
            self.text, self.stopped = self._shown(min(places)), True
            return
        held = max((_overlap(self._whole, stop) for stop in self._stop), default=0)
        self.text = self._shown(len(self._whole) - held)

    def _shown(self, end: int) -> str:
        return without_joint(self._whole[:end])

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _shared(first: str, second: str) -> int:
    """Length of the prefix that two texts share."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest prefix of ``stop`` that ``text`` ends in."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
