"""How results are printed for people."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# Control characters, halves of characters, and the marks that turn the direction of writing around.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with escapes for what a terminal would act on; line breaks and tabs stay."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def finite(value: Any) -> Any:
    """The value with null for numbers that JSON has not: a diverged model's loss is infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(found) for key, found in value.items()}
    return [finite(found) for found in value] if isinstance(value, list | tuple) else value


def print_facts(console: Console, facts: Mapping[str, Any]) -> None:
    """Names and values in two columns; values that are None are left out."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(name, Text(f"{value:.4g}" if isinstance(value, float) else visible(str(value))))
    console.print(table)
