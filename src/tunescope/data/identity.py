"""Which row is which, whatever its line, file or order: what per-row scores of two measurements are paired by."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from tunescope.data.rankings import Preference
from tunescope.data.rows import Row


def row_keys(rows: Sequence[Row | Preference]) -> list[str]:
    """A key for each row: the SHA-256 of its content, and its number among rows of the same content (``-0``, ``-1``).

    Unique within ``rows``, and the same in any other sequence that holds the row.
    """
    seen: Counter[str] = Counter()
    keys = []
    for row in rows:
        digest = hashlib.sha256(json.dumps(row.content, sort_keys=True).encode()).hexdigest()
        keys.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return keys
