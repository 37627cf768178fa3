"""JSON files that came with somebody else's model: read within bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# The index of the largest models has 10 MB, and a tokenizer's settings 2; real files nest to a depth of 10.
_BYTES, _DEPTH = 100 << 20, 100


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: no valid JSON, no object, or one that is too large or too deep; in words that go on after the
            file's name.
    """
    if file.stat().st_size > _BYTES:
        raise ValueError(f"has more than {_BYTES >> 20} MB")
    try:
        content = json.loads(file.read_bytes())
    except RecursionError:
        raise ValueError(f"nests deeper than {_DEPTH} levels") from None
    except ValueError as error:  # also text that is no UTF-8, and numbers of thousands of digits
        raise ValueError(f"is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("does not hold a JSON object")
    level: list[Any] = [content]
    for _ in range(_DEPTH):
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)
                 if isinstance(inner, dict | list)]  # fmt: skip
        if not level:
            break
    else:
        raise ValueError(f"nests deeper than {_DEPTH} levels")
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate), which is no text") from None
    return content
