"""Where a command's output goes: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from tunescope.commands.command import Result
from tunescope.commands.report import Report
from tunescope.commands.show import ACTING, finite, visible

if TYPE_CHECKING:
    from tunescope.comparison import Watcher

# Where there is no terminal there is no width to keep to, but tables need some.
_PLAIN_WIDTH = 120


class SafeConsole(Console):
    """A console that prints texts as they are: no markup, no emoji names, and escapes for what a terminal acts on."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Strings are made visible before they are measured: a table crops what is wider than it was."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Every piece of text that is printed, whatever it is part of, comes through here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Output(Report):
    """The output of a command: what it reports while it works, and its result.

    Args:
        as_json: results are JSON and nothing else stands on standard output.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.pieces = not as_json
        self.console = SafeConsole()
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH
        self.progress = SafeConsole(stderr=True)
        handler = _LogLines(self.progress)
        logger = logging.getLogger("tunescope")  # downloads and conversions announce themselves here
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

    def note(self, text: str) -> None:
        """A line of its own among the progress."""
        self.progress.print(text, style="yellow")

    def write(self, text: str) -> None:
        """On standard output, not wrapped, with escapes for what a terminal acts on."""
        click.echo(visible(text), nl=False)

    def part(self, result: Result) -> None:
        """A result: one JSON value on a line, or as it is printed for people."""
        if self.as_json:
            text = json.dumps(finite(result.values), ensure_ascii=False, allow_nan=False)
            click.echo(ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
        else:
            result.show(self.console)

    def working(self, what: str) -> AbstractContextManager[Callable[[str], Any]]:
        """A spinner on a terminal, a line a stage elsewhere."""
        return _working(self.progress, what)

    def counting(self, what: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], Any]]:
        """A bar on a terminal, a line every so often elsewhere."""
        from tunescope.cli.progress import CountProgress

        return CountProgress(self.progress, what, total, unit)

    def training(self, name: str) -> AbstractContextManager[Callable[[Any], Any]]:
        """The same, with loss, speed and time left."""
        from tunescope.cli.progress import TrainingProgress

        return TrainingProgress(self.progress, name)

    def comparing(self) -> AbstractContextManager[Watcher | None]:
        """A heading a method, and its training's bar."""
        from tunescope.cli.progress import ComparisonProgress

        return closing(ComparisonProgress(self.progress))

    def stage(self, name: str, number: int, count: int) -> None:
        """A heading."""
        self.progress.print(f"[{number}/{count}] {name}", style="bold")


@contextmanager
def _working(console: Console, what: str) -> Iterator[Callable[[str], Any]]:
    if not console.is_terminal:
        yield lambda stage: console.print(f"{what}: {stage}")
        return
    with console.status(what) as status:
        yield lambda stage: status.update(f"{what}: {stage}")


class _LogLines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), style="dim")
