"""JSON files that came with somebody else's model: read within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# A tokenizer's file with a quarter of a million tokens has 35 MB; real files nest to a depth of 10.
_BYTES, _DEPTH = 512 << 20, 100


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: no valid JSON, no object, or one that is too large or too deep, in words.
    """
    if file.stat().st_size > _BYTES:
        raise ValueError(f"it has more than {_BYTES >> 20} MB")
    try:
        content = json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError(f"it nests deeper than {_DEPTH} levels") from None
    if not isinstance(content, dict):
        raise ValueError("it does not hold a JSON object")
    level: list[Any] = [content]
    for _ in range(_DEPTH):
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
                 if isinstance(inner, dict | list)]  # fmt: skip
        if not level:
            return content
    raise ValueError(f"it nests deeper than {_DEPTH} levels")
