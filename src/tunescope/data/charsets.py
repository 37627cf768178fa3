"""Text from bytes: UTF-8, and what spreadsheets write instead (UTF-16 with its mark, Windows-1252)."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from tunescope.errors import DataError

# The longer marks come first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what single bytes become
_CONTROLS = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1a")


def decode(content: bytes, path: Path, notes: list[str]) -> str:
    """The text of a file; an encoding that is not UTF-8 is named in ``notes``.

    Windows-1252 is taken where most of what is not ASCII is no UTF-8. Single bytes that are no UTF-8 in a file that
    otherwise is become lone surrogates, so that the rows which hold them can be named.

    Raises:
        DataError: a mark of UTF-16 or UTF-32 before bytes that are not.
    """
    for mark, name in _MARKS:
        if content.startswith(mark):
            try:
                text = content.decode(name)
            except UnicodeDecodeError as error:
                raise DataError(f"{path} begins with the mark of {name} but is not valid {name}.") from error
            notes.append(f"read as {name}")
            return text
    text = content.decode("utf-8-sig", errors="surrogateescape")
    wrong = len(_NOT_UTF8.findall(text))
    others = sum(character > "\x7f" for character in text) if wrong else 0
    if 2 * wrong <= others or _CONTROLS & set(content):
        return text
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return text
    notes.append("not valid UTF-8, so read as Windows-1252")
    return text
