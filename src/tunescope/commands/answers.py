"""Answers of the engine as results of a command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunescope.commands.command import Result
from tunescope.commands.show import visible
from tunescope.inference import Generated
from tunescope.inference.prediction import probabilities_of

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Answer(Result):
    """The answer to a prompt, all its samples.

    Attributes:
        texts: of the samples, or why there is none.
        number: of the row in a file of prompts, from 1.
    """

    texts: list[str]
    number: int | None = None

    @classmethod
    def of(
        cls,
        answer: Generated,
        customization: str | None,
        before: Mapping[str, Any] | None = None,
        number: int | None = None,
    ) -> Answer:
        """The result of an answer.

        Args:
            answer: what the engine gave.
            customization: whose it is.
            before: values that stand before the answer's.
            number: of the row.
        """
        failed = answer.error is not None
        texts = [f"Error: {answer.error}"] if failed else [each.text for each in (answer, *answer.others)]
        values = {**(before or {}), **values_of(answer), "customization": customization}
        return cls(values, texts=texts, number=number)

    def show(self, console: Console) -> None:
        """A line a text, not wrapped."""
        before = "" if self.number is None else f"[{self.number}] "
        for text in self.texts:
            print(visible(before + text), file=console.file)


def values_of(answer: Generated) -> dict[str, Any]:
    """An answer as JSON has it: its text, tokens and why it ended, or the error."""
    if answer.error is not None:
        return {"error": answer.error}
    values: dict[str, Any] = {
        "text": answer.text,
        "tokens": len(answer.tokens),
        "finished": answer.finished,
        "reason": answer.reason,
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": answer.cached_tokens,
    }
    if answer.logprobs is not None:
        values["logprobs"] = answer.logprobs
    if answer.top_logprobs is not None:
        values["top_logprobs"] = [
            [{"token": token, "logprob": nats} for token, nats in each] for each in answer.top_logprobs
        ]
    if answer.choice_logprobs is not None:
        values["choice_logprobs"] = answer.choice_logprobs
        values["probabilities"] = probabilities_of(answer.choice_logprobs)
    if answer.others:
        values["samples"] = [values_of(replace(each, others=())) for each in (answer, *answer.others)]
    return values
