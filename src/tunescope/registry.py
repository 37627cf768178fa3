"""Things known by name: the project's own, and those that installed packages add through an entry point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from tunescope.errors import UnknownNameError


@dataclass(frozen=True)
class Registry:
    """Classes by name, loaded when asked for, so that listing them imports nothing.

    Attributes:
        kind: what they are, for messages: ``"method"``.
        group: the entry-point group in which other packages add theirs: ``"tunescope.methods"``.
        own: name -> ``module:attribute`` of the project's own, in the order to show.
    """

    kind: str
    group: str
    own: Mapping[str, str]

    def names(self) -> list[str]:
        """Every name, the project's own first."""
        return [*self.own, *sorted(point.name for point in self._others())]

    def load(self, name: str) -> Any:
        """The class behind a name.

        Raises:
            UnknownNameError: with the nearest names.
        """
        if name in self.own:
            module, _, attribute = self.own[name].partition(":")
            return getattr(import_module(module), attribute)
        for point in self._others():
            if point.name == name:
                return point.load()
        raise UnknownNameError(self.kind, name, self.names())

    def _others(self) -> list[EntryPoint]:
        return [point for point in entry_points(group=self.group) if point.name not in self.own]
