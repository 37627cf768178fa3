"""Worked examples that are like a text, by the words they share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tunescope.data.rows import Message

if TYPE_CHECKING:
    from tunescope.data.template import Shot

QUESTION = "question"
"""Key of a user's message whose text was cut: what it said before, by which its examples are chosen."""
_WORDS = r"\w+|[^\w\s]"  # a question mark tells one text from another, too


def question(messages: Sequence[Message]) -> str:
    """What a conversation asks last, uncut."""
    asked = [message.get(QUESTION) or message["content"] or "" for message in messages if message["role"] == "user"]
    return asked[-1] if asked else ""


def with_question(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, of which the user's last keeps what it asks whatever is cut of it."""
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    return tuple({**each, QUESTION: question(messages)} if i == last else each for i, each in enumerate(messages))


class Nearest:
    """Finds examples by the cosine of TF-IDF vectors.

    Showing what is like the question is worth more than showing what was drawn (Liu et al. 2022, arXiv:2101.06804, who
    compared sentence embeddings; words need no second model).

    Args:
        pool: to find among; of equally near ones the first comes first.
    """

    def __init__(self, pool: Sequence[Shot]) -> None:
        self._pool = pool

    def of(self, text: str, count: int) -> list[Shot]:
        """The nearest ones, the nearest of all last: right before the question.

        An example of the very same text is left out, so that no row is shown its own answer.

        Args:
            text: of the question.
            count: how many; fewer where the pool has no more.
        """
        near = self._similarity(text)
        other = (i for i, shot in enumerate(self._pool) if shot.prompt.strip() != text.strip())
        order = sorted(other, key=lambda i: (-near[i], i))
        return [self._pool[i] for i in reversed(order[:count])]

    def _similarity(self, text: str) -> list[float]:
        if self._fitted is None:
            return [0.0] * len(self._pool)
        vectorizer, vectors = self._fitted
        found: list[float] = (vectors @ vectorizer.transform([text]).T).toarray()[:, 0].tolist()
        return found

    @cached_property
    def _fitted(self) -> tuple[Any, Any] | None:
        """The vectorizer and the pool's vectors; None for a pool without a word."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        texts = [shot.prompt for shot in self._pool]
        if not any(text.strip() for text in texts):
            return None
        vectorizer = TfidfVectorizer(token_pattern=_WORDS, sublinear_tf=True)
        return vectorizer, vectorizer.fit_transform(texts)
