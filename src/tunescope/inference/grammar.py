"""Answers that keep to a JSON schema: which tokens may come next, by llguidance."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from tunescope.errors import EngineError


class Grammars:
    """Grammars over one vocabulary, which is prepared when the first of them is asked for.

    Args:
        tokenizer: of the base.
        size: how many tokens the model chooses among.
    """

    def __init__(self, tokenizer: Any, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._lock = threading.Lock()
        self._vocabulary: Any = None

    def of_schema(self, schema: str) -> Grammar:
        """The grammar of a JSON schema, at its beginning.

        Args:
            schema: as JSON text.

        Raises:
            EngineError: llguidance is not installed, or it can't hold answers to this schema.
        """
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise EngineError("json_schema needs llguidance: pip install 'tunescope[serve]'.") from error
        try:
            matcher = LLMatcher(self._prepared(), LLMatcher.grammar_from_json_schema(schema))
            problem = matcher.get_error()
        except ValueError as error:
            problem = str(error)
        if problem:
            raise EngineError(f"json_schema: {problem.splitlines()[0]}.")
        return Grammar(matcher, self._size, self._tokenizer.eos_token_id)

    def _prepared(self) -> Any:
        from llguidance.hf import from_tokenizer

        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = from_tokenizer(self._tokenizer, n_vocab=self._size)
            return self._vocabulary


class Grammar:
    """What one row may write next."""

    def __init__(self, matcher: Any, size: int, end: int | None) -> None:
        self._matcher, self._size, self._end = matcher, size, end

    def copy(self) -> Grammar:
        """One for another row, as far along as this one."""
        return Grammar(self._matcher.deep_copy(), self._size, self._end)

    @property
    def complete(self) -> bool:
        """Whether nothing more can follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self, stop: Collection[int]) -> torch.Tensor:
        """[vocabulary] booleans: the tokens that may come next, and where the answer may end, those that end it."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        mask = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._size]).bool()
        enders = [token for token in {*stop, self._end} if token is not None]
        mask[enders] = False
        if self._matcher.is_accepting():
            mask[list(stop)] = True
        return mask

    def took(self, token: int) -> None:
        """The answer goes on with ``token``."""
        self._matcher.consume_token(token)
