"""What stands around a row's own text, in training, in evaluation and in service alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from tunescope.data.attributes import Steering
from tunescope.data.chat_template import render_chat
from tunescope.data.rows import IGNORED_SPACE
from tunescope.errors import DataError, UnknownNameError
from tunescope.settings import MOST, Settings

_STYLES = ("auto", "chat", "plain")
# Where some of the virtual tokens stand in a template, as NeMo writes it.
MARK = re.compile(r"(<\|VIRTUAL_PROMPT_\d+\|>)")


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
    nearest: int = Field(0, ge=0)
    """How many of the shots are put before a prompt, chosen anew for each: those whose texts are nearest to its own. 0
    for all of them."""
    virtual_tokens: int = Field(0, ge=0, le=MOST)
    """How many virtual tokens the prompt has; they stand before the text unless places are marked."""
    virtual_splits: tuple[Annotated[int, Field(ge=0, le=MOST)], ...] = ()
    """How many of the virtual tokens stand at each marked place of the pattern, <|VIRTUAL_PROMPT_0|> and so on."""
    steering: Steering | None = None
    """The attributes that an answer is asked for; none where the customization was not trained on any."""
    label_prior: dict[str, float] = Field(default_factory=dict)
    """What each label's log-probability (nats) is behind texts that say nothing; taken off where labels are chosen from
    (contextual calibration). Empty where they are not calibrated."""
    stop: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    """Token ids that end a completion; the first one is trained."""
    heal: bool = False
    """Whether a prompt's last tokens are chosen anew together with the answer (token healing), because completions
    that were trained on begin with characters that join them: code's indentation after a line break."""

    @property
    def tail(self) -> str:
        """The pattern's white space right before the field to learn: the template's own, whether typed or not."""
        head = (self.pattern or "").rpartition("{")[0]
        return head[len(head.rstrip(IGNORED_SPACE)) :]

    def calibrated(self, logprobs: Mapping[str, float]) -> list[float]:
        """Log-probabilities of texts to choose from, in order, less what each has behind no text at all.

        Args:
            logprobs: by text. Texts that are not the calibrated labels, all of them and no other, stay as they are.
        """
        prior = self.label_prior if self.label_prior.keys() == logprobs.keys() else dict[str, float]()
        return [value - prior.get(text, 0.0) for text, value in logprobs.items()]

    @property
    def virtual_ids(self) -> list[int]:
        """The ids of the virtual tokens, in order: -1 - i is the i-th."""
        return [-1 - i for i in range(self.virtual_tokens)]

    def check_marks(self) -> None:
        """Refuse a pattern whose marked places are not those that the virtual tokens are split over.

        Raises:
            DataError: marks that are missing, repeated, out of order, or that nothing would fill.
        """
        marks, wanted = MARK.findall(self.pattern or ""), list(self.marks)
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
