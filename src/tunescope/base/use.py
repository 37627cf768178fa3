"""Who uses a base now: one customization that acts on it, or any number of passes of the base itself.

In training, effects ride on the base's own modules: while they act, everything that runs these modules is customized.
So both at once would give wrong numbers in silence, and is refused.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tunescope.errors import BaseInUseError


@dataclass(frozen=True)
class _Acting:
    """``owner`` acts for ``customizations``, in ``thread``; messages call it ``name``."""

    owner: object
    customizations: tuple[object, ...]
    name: str
    thread: int


class Use:
    """The present use of one base.

    Args:
        base: its name, for messages.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._changed = threading.Condition()
        self._acting: _Acting | None = None
        self._passes: Counter[int] = Counter()  # thread -> how many passes of the base itself it is in

    @contextmanager
    def acting(self, owner: object, customizations: tuple[object, ...], name: str) -> Iterator[None]:
        """Within this context the base computes as customized, in this thread only.

        Passes that other threads are in end first; new ones are refused from now on.

        Args:
            owner: the hooks that act.
            customizations: whose effects these are.
            name: of their methods.

        Raises:
            BaseInUseError: a customization acts already, this one or another, or this thread is in a pass.
        """
        thread = threading.get_ident()
        with self._changed:
            if self._acting is not None:
                raise BaseInUseError(self._two(customizations, name, self._acting))
            if self._passes[thread]:
                raise BaseInUseError(
                    f"{name} cannot begin to act on {self._base} within a pass of the base itself: begin after it."
                )
            self._acting = _Acting(owner, customizations, name, thread)
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._passes)
            yield
        finally:
            with self._changed:
                self._acting = None

    def acts(self, owner: object) -> bool:
        """Whether these hooks act now."""
        return self._acting is not None and self._acting.owner is owner

    @contextmanager
    def untouched(self, what: str) -> Iterator[None]:
        """Within this context no customization acts.

        Args:
            what: is computed, for the message: "An engine's pass".

        Raises:
            BaseInUseError: a customization acts.
        """
        thread = threading.get_ident()
        with self._changed:
            if self._acting is not None:
                raise BaseInUseError(
                    f"{what} needs {self._base} as it is, and {self._acting.name} acts on it{self._where()}: what it "
                    "gave would be customized. Do it outside of active(), in training between two steps (on_step), or "
                    "load the base a second time for it."
                )
            self._passes[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._passes[thread] -= 1
                if not self._passes[thread]:
                    del self._passes[thread]
                    self._changed.notify_all()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Within this context a forward pass is as customized in the thread where a customization acts, and that of
        the base itself where none does.

        Raises:
            BaseInUseError: a customization acts in another thread.
        """
        acting = self._acting  # if it is this thread's, no other one can end it
        if acting is not None and acting.thread == threading.get_ident():
            yield
        else:
            with self.untouched("A forward pass"):
                yield

    def _two(self, customizations: tuple[object, ...], name: str, acting: _Acting) -> str:
        """The message for customizations that cannot act beside ``acting``."""
        if acting.thread != threading.get_ident():
            return (
                f"{name} cannot act on {self._base}, where {acting.name} acts{self._where()}. One at a time: wait for "
                "its end, or load the base a second time."
            )
        if any(each in acting.customizations for each in customizations):
            return f"This {name} customization acts on {self._base} already: leave out the inner active()."
        return (
            f"{name} cannot act on {self._base}, where {acting.name} acts. End that one's active() first; for both "
            "together, train them as one: compose(...) in Python, METHOD+METHOD on the command line."
        )

    def _where(self) -> str:
        assert self._acting is not None
        return "" if self._acting.thread == threading.get_ident() else " in another thread (a training step, say)"
