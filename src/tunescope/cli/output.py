"""Where a command's output goes: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

# Where there is no terminal there is no width to keep to, but tables need some.
_PLAIN_WIDTH = 120
# Control characters, halves of characters, and the marks that turn the direction of writing around.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with escapes for what a terminal would act on; line breaks and tabs stay."""
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


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


class Output:
    """The output of a command.

    Args:
        as_json: results are JSON and nothing else stands on standard output.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = SafeConsole()
        if not self.console.is_terminal:
            self.console.width = _PLAIN_WIDTH
        self.progress = SafeConsole(stderr=True)
        handler = _LogLines(self.progress)
        logger = logging.getLogger("tunescope")  # downloads and conversions announce themselves here
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

    def note(self, text: str) -> None:
        """Something worth knowing that is not the result."""
        self.progress.print(text, style="yellow")

    def write(self, text: str, end: str = "\n") -> None:
        """A model's text on standard output, not wrapped: with escapes for what a terminal acts on, and exact after
        ``--json``."""
        typer.echo(visible(text) + end, nl=False)

    def result(self, values: Any, show: Callable[[Console], None]) -> None:
        """The result: one JSON object a call, or as ``show`` prints it for people."""
        if self.as_json:
            text = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False)
            typer.echo(_ACTING.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
        else:
            show(self.console)


def _finite(value: Any) -> Any:
    """The value with null for numbers that JSON has not: a diverged model's loss is infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(found) for key, found in value.items()}
    return [_finite(found) for found in value] if isinstance(value, list | tuple) else value


class _LogLines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), style="dim")


def print_facts(console: Console, facts: dict[str, Any]) -> None:
    """Names and values in two columns; values that are None are left out."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, Text(f"{value:.4g}" if isinstance(value, float) else visible(str(value))))
    console.print(table)
