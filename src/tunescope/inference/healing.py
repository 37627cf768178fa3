"""Token healing: an answer that must begin with the prompt's last characters.

The last tokens of a prompt can be others once the answer follows: a line break and the indentation behind it are one
token in code. Such tokens are left out of the prompt (see ``data.encoding``), and the answer's first tokens are chosen
among those that give the characters back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from tunescope.inference.detokenizing import INCOMPLETE

# Byte-level vocabularies write every byte as a character of its own (Radford et al. 2019): the printable ones of
# Latin-1 as they are, the others, in order, from U+0100 on.
_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PLAIN]
_BYTES = {chr(byte): byte for byte in _PLAIN} | {chr(0x100 + i): byte for i, byte in enumerate(_OTHERS)}


class TokenTexts:
    """What each token of a vocabulary says in running text; decoded when first asked for.

    Args:
        tokenizer: of the base.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: list[str] = []
        self._found: dict[str, torch.Tensor] = {}

    def owed(self, characters: str) -> Owed | None:
        """What is owed at first; None for nothing, and for what no token begins with."""
        return Owed(self, characters) if characters and len(self.starting_with(characters)) else None

    def text(self, token: int) -> str:
        """What a token says behind others: with the space before a word."""
        return self._all()[token] if token < len(self._all()) else ""

    def raw(self, token: int) -> bytes | None:
        """The bytes that a token stands for, where it is only part of a character too; None for a special token, and
        where the vocabulary does not tell."""
        if self._whole(token):
            return self.text(token).encode()
        name = self._name(token)
        if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
            return bytes([int(byte[1], 16)])
        if token not in self._tokenizer.all_special_ids and all(character in _BYTES for character in name):
            return bytes(_BYTES[character] for character in name)
        return None

    def shown(self, token: int) -> str:
        """What a token says; its name in the vocabulary where it is a special one, or part of a character."""
        return self.text(token) if self._whole(token) else self._name(token)

    def _whole(self, token: int) -> bool:
        return bool(self.text(token)) and INCOMPLETE not in self.text(token)

    def _name(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token))

    def starting_with(self, characters: str) -> torch.Tensor:
        """Ids of the tokens that begin with ``characters``, or that ``characters`` begin with."""
        if characters not in self._found:
            allowed = [
                token
                for token, text in enumerate(self._all())
                if text and (text.startswith(characters) or characters.startswith(text))
            ]
            self._found[characters] = torch.tensor(allowed, dtype=torch.long)
        return self._found[characters]

    def _all(self) -> list[str]:
        if not self._texts:
            # Behind another token, because some tokenizers leave out the space before a text's first word.
            anchor = self._tokenizer("a", add_special_tokens=False)["input_ids"][-1]
            count = len(self._tokenizer)
            alone = len(self._decode([[anchor]])[0])
            self._texts = [text[alone:] for text in self._decode([[anchor, token] for token in range(count)])]
        return self._texts

    def _decode(self, tokens: list[list[int]]) -> list[str]:
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@dataclass(frozen=True)
class Owed:
    """Characters that the next tokens must give."""

    texts: TokenTexts
    characters: str

    @property
    def tokens(self) -> torch.Tensor:
        """Ids of the tokens that may come next."""
        return self.texts.starting_with(self.characters)

    def covers(self, token: int) -> bool:
        """Whether a token says nothing beyond what is owed."""
        return len(self.texts.text(token)) <= len(self.characters)

    def after(self, token: int) -> Owed | None:
        """What is still owed after a token; None once nothing is."""
        rest = self.characters[len(self.texts.text(token)) :]
        return Owed(self.texts, rest) if rest and len(self.texts.starting_with(rest)) else None
