"""How a command speaks while it works. The command line draws bars; from Python notes are logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunescope.comparison import Watcher

_log = logging.getLogger(__name__)


class Report:
    """What a command reports. This one logs notes as warnings and shows no progress.

    Attributes:
        pieces: whether a model's text is wanted piece by piece, as it comes.
    """

    pieces = False

    def note(self, text: str) -> None:
        """Called with something worth knowing that is not the result."""
        _log.warning(text)

    def write(self, text: str) -> None:
        """Called with pieces of a model's text as they come."""

    def part(self, result: Any) -> None:
        """Called with each part of a result that is there before the others (a ``Result``)."""

    def working(self, what: str) -> AbstractContextManager[Callable[[str], Any]]:
        """Encloses work of unknown length; what it gives is called with each next stage of it, in words."""
        return nullcontext(lambda stage: None)

    def counting(self, what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], Any]]:
        """Encloses work on ``total`` things; what it gives is called with how many are done."""
        return nullcontext(lambda done: None)

    def training(self, name: str) -> AbstractContextManager[Callable[[Any], Any]]:
        """Encloses a training run; what it gives is called with each step's metrics."""
        return nullcontext(lambda metrics: None)

    def comparing(self) -> AbstractContextManager[Watcher | None]:
        """Encloses a comparison; what it gives hears how it goes."""
        return nullcontext(None)

    def stage(self, name: str, number: int, count: int) -> None:
        """Called before a stage of a recipe begins."""
