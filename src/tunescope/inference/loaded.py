"""The customizations that an engine can serve: compiled and in memory, or on disk where memory ran out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from tunescope import bank
from tunescope.base import Base
from tunescope.data.encoding import Encoder, PromptTokens
from tunescope.data.rows import Message
from tunescope.data.template import Template, default_template
from tunescope.data.tokenizing import common_prefix
from tunescope.errors import DataError, EngineError, UnknownNameError
from tunescope.inference.candidates import no_head
from tunescope.inference.compiled import Compiled
from tunescope.methods import Customized

_Tokens = TypeVar("_Tokens")
_NOTHING: Mapping[str, int] = {}


@dataclass(frozen=True)
class Loaded:
    """A customization that can be asked for.

    Attributes:
        name: what requests say; None is the base.
        template: what stands around a request's text.
        encoder: makes its prompts.
        prefix_tokens: how many tokens all its prompts begin with.
        effects: compiled; None where it has none (the base, prompting), and while it is only on disk.
        on_disk: whether its effects must be read again before it is used.
        path: where from; None for one that was made in memory, which stays there.
    """

    name: str | None
    template: Template
    encoder: Encoder
    prefix_tokens: int
    effects: Compiled | None
    on_disk: bool = False
    path: Path | None = None

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens its effects have."""
        return 0 if self.effects is None or self.effects.table is None else len(self.effects.table)

    def prompt(self, prompt: str | Sequence[Message], steer: Mapping[str, int] = _NOTHING) -> PromptTokens:
        """Tokens of a request's prompt.

        Args:
            prompt: a text or messages.
            steer: the attributes that are asked for; see ``Request``.

        Raises:
            EngineError: an empty prompt, one that its template refuses, or attributes that are not the template's.
        """
        return self._encoded(prompt, self.encoder.prompt, steer)

    def candidates(
        self, prompt: str | Sequence[Message], texts: Sequence[str], steer: Mapping[str, int] = _NOTHING
    ) -> tuple[list[int], list[list[int]]]:
        """Tokens that all answers to choose from begin with, and the rest of each; see ``Encoder.candidates``.

        Raises:
            EngineError: as ``prompt``.
        """
        return self._encoded(prompt, lambda messages: self.encoder.candidates(messages, texts), steer)

    def completions(
        self, prompt: str | Sequence[Message], texts: Sequence[str], head: str
    ) -> tuple[list[int], list[list[int]]]:
        """``candidates``, to be scored by a head.

        Raises:
            EngineError: as ``prompt``; no completion; no such head.
        """
        heads = {} if self.effects is None else self.effects.heads
        if head not in heads:
            raise EngineError(no_head(self.name or "The base", head, heads))
        if not texts:
            raise EngineError("There is no completion to score: give at least one text.")
        return self.candidates(prompt, texts)

    def _encoded(
        self,
        prompt: str | Sequence[Message],
        encode: Callable[[Sequence[Message]], _Tokens],
        steer: Mapping[str, int],
    ) -> _Tokens:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not messages or messages[-1].get("role") != "user" or not messages[-1].get("content", "").strip():
            raise EngineError("The prompt is empty, or does not end in a user's turn.")
        steering = self.template.steering
        if steer and steering is None:
            raise EngineError(
                f"{self.name or 'The base'} was not trained on attributes, so nothing steers it: leave steer out."
            )
        try:
            return encode(messages if steering is None or not steer else steering.steered(messages, steer))
        except DataError as error:
            raise EngineError(str(error)) from error


class LoadedByName:
    """Customizations by name.

    Args:
        base: all are for it.
        budget: bytes for their tensors. Only those that came from a folder can be given up to keep it.
        evict: callback with effects that are dropped.
    """

    def __init__(self, base: Base, budget: int, evict: Callable[[Compiled], None]) -> None:
        self._base, self._budget, self._evict = base, budget, evict
        plain = default_template(base.tokenizer)
        self._plain = Loaded(None, plain, *_encoding(base, plain), None)
        self._by_name: OrderedDict[str, Loaded] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """All that can be asked for, in memory or not."""
        return sorted(self._by_name)

    @property
    def nbytes(self) -> int:
        """Memory of those in memory."""
        return sum(loaded.effects.nbytes for loaded in self._by_name.values() if loaded.effects is not None)

    def prepare(self, name: str, source: Customized | str | Path) -> Loaded:
        """Read and compile; nothing is served yet."""
        if isinstance(source, str | Path):
            return self._made(name, bank.load(source, self._base), Path(source))
        return self._made(name, source, None)

    def put(self, loaded: Loaded) -> None:
        """Serve from now on."""
        assert loaded.name is not None
        self._dismiss(self._by_name.pop(loaded.name, None))
        self._by_name[loaded.name] = loaded
        self._keep_budget(loaded.name)

    def drop(self, name: str) -> None:
        """Serve no longer."""
        if name not in self._by_name:
            raise UnknownNameError("customization", name, self._by_name)
        self._dismiss(self._by_name.pop(name))

    def get(self, name: str | None) -> Loaded:
        """The one of that name, in memory; None is the base under its plain template.

        Raises:
            EngineError: none of that name, or one that cannot be read again.
        """
        if name is None:
            return self._plain
        if name not in self._by_name:
            raise EngineError(str(UnknownNameError("customization", name, self._by_name)))
        loaded = self._by_name[name]
        if loaded.on_disk:
            assert loaded.path is not None
            loaded = self._by_name[name] = self.prepare(name, loaded.path)
        self._by_name.move_to_end(name)
        self._keep_budget(name)
        return loaded

    def _keep_budget(self, used: str) -> None:
        over = self.nbytes - self._budget
        for name, loaded in list(self._by_name.items()):
            if over <= 0:
                return
            if loaded.effects is not None and loaded.path is not None and name != used:
                over -= loaded.effects.nbytes
                self._dismiss(loaded)
                # The place in the order stays: a name that was asked for is asked for again.
                self._by_name[name] = replace(loaded, effects=None, on_disk=True)

    def _dismiss(self, loaded: Loaded | None) -> None:
        if loaded is not None and loaded.effects is not None:
            self._evict(loaded.effects)

    def _made(self, name: str, customized: Customized, path: Path | None) -> Loaded:
        if customized.moves_base and customized.base is not self._base:
            raise EngineError(
                f"{name}: a {customized.method.name} customization has weights of its own and cannot share this base's "
                "rows. Serve it by itself: Engine(customized.base)."
            )
        owner = customized.base if customized.moves_base else customized.origin
        if differing := owner.fingerprint.differences(self._base.fingerprint):
            raise EngineError(
                f"{name} was made for {customized.origin.name}, which has another {' and '.join(differing)} than "
                f"{self._base.name}."
            )
        customization = customized.customization
        try:
            compiled = Compiled.of(customization, self._base) if customization.acts else None
        except EngineError as error:
            raise EngineError(f"{name}: {error}") from error
        template = customized.template
        return Loaded(name, template, *_encoding(self._base, template), compiled, path=path)


def _encoding(base: Base, template: Template) -> tuple[Encoder, int]:
    encoder = Encoder(base.tokenizer, template, base.context_length)
    if template.virtual_splits:  # a prompt without the marked places would be refused
        return encoder, 0
    first, second = (encoder.prompt([{"role": "user", "content": text}]).ids for text in ("0", "~"))
    return encoder, common_prefix(first, second)
