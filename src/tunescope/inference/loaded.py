"""The customizations that an engine can serve: compiled and in memory, or on disk where memory ran out."""

from __future__ import annotations

import math
import threading
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
# How many scaled copies are kept at once: a slider that is moved makes one for each place it stops at.
_SCALES = 16


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
        self._scaled: OrderedDict[tuple[Compiled, float], Compiled | None] = OrderedDict()
        self._lock = threading.RLock()  # never held while something is read from disk

    @property
    def names(self) -> list[str]:
        """All that can be asked for, in memory or not."""
        with self._lock:
            return sorted(self._by_name)

    @property
    def in_memory(self) -> list[str]:
        """Those that can be asked for without reading them again."""
        with self._lock:
            return [name for name, loaded in self._by_name.items() if not loaded.on_disk]

    @property
    def nbytes(self) -> int:
        """Memory of those in memory."""
        with self._lock:
            held = [*(loaded.effects for loaded in self._by_name.values()), *self._scaled.values()]
            return sum(effects.nbytes for effects in held if effects is not None)

    def prepare(self, name: str, source: Customized | str | Path) -> Loaded:
        """Read and compile; nothing is served yet."""
        if isinstance(source, str | Path):
            return self._made(name, bank.load(source, self._base), Path(source))
        return self._made(name, source, None)

    def put(self, loaded: Loaded) -> None:
        """Serve from now on."""
        assert loaded.name is not None
        with self._lock:
            self._dismiss(self._by_name.pop(loaded.name, None))
            self._by_name[loaded.name] = loaded
            self._keep_budget(loaded.name)

    def drop(self, name: str) -> None:
        """Serve no longer."""
        with self._lock:
            if name not in self._by_name:
                raise UnknownNameError("customization", name, self._by_name)
            self._dismiss(self._by_name.pop(name))

    def get(self, name: str | None, scale: float = 1.0) -> Loaded:
        """The one of that name, in memory; None is the base under its plain template.

        Args:
            name: what requests say.
            scale: how strongly it acts; see ``Request``.

        Raises:
            EngineError: none of that name, one that cannot be read again, or one that has no scale.
        """
        if not math.isfinite(scale):
            raise EngineError(f"scale must be a finite number, got {scale}.")
        if name is None:
            if scale != 1:
                raise EngineError("scale says how strongly a customization acts, and the base is none: leave it out.")
            return self._plain
        loaded = self._in_memory(name)
        return loaded if scale == 1 else self._at_scale(loaded, scale)

    def _in_memory(self, name: str) -> Loaded:
        with self._lock:
            if name not in self._by_name:
                raise EngineError(str(UnknownNameError("customization", name, self._by_name)))
            loaded = self._by_name[name]
            if not loaded.on_disk:
                self._by_name.move_to_end(name)
                return loaded
        assert loaded.path is not None
        read = self.prepare(name, loaded.path)
        with self._lock:
            if self._by_name.get(name) is loaded:
                self.put(read)
                return read
        return self._in_memory(name)  # another thread read it, replaced it or dropped it meanwhile

    def _at_scale(self, loaded: Loaded, scale: float) -> Loaded:
        if loaded.effects is None:
            raise EngineError(f"{loaded.name} is a prompt and has no scale: leave it out.")
        key = (loaded.effects, scale)
        with self._lock:
            if key not in self._scaled:
                try:
                    self._scaled[key] = loaded.effects.scaled(scale)
                except EngineError as error:
                    raise EngineError(f"{loaded.name}: {error}") from error
                if len(self._scaled) > _SCALES:
                    self._forget_scaled(next(iter(self._scaled)))
            self._scaled.move_to_end(key)
            return replace(loaded, effects=self._scaled[key])

    def _forget_scaled(self, key: tuple[Compiled, float]) -> None:
        if (scaled := self._scaled.pop(key)) is not None:
            self._evict(scaled)

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
            for key in [key for key in self._scaled if key[0] is loaded.effects]:
                self._forget_scaled(key)
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
    begin = encoder
    if template.nearest:  # texts of no known word are shown the same examples, and others are not
        begin = Encoder(base.tokenizer, template.model_copy(update={"shots": ()}), base.context_length)
    first, second = (begin.prompt([{"role": "user", "content": text}]).ids for text in ("0", "~"))
    return encoder, common_prefix(first, second)
