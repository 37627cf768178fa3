"""Rows from JSON: an object a line, an array of objects, or one object that holds such an array."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunescope.errors import DataError

Parsed = Iterator[tuple[int, dict[str, Any] | str]]  # the line and the row, or the line and what is wrong with it
# Where one object holds the rows: the names that data sets give their list.
_LISTS = ("data", "rows", "train", "examples")
_KINDS: dict[type, str] = {list: "array", str: "string", int: "number", float: "number", bool: "boolean"}
_BLANK = " \t\r\n"


def strict_json(text: str) -> Any:
    """A JSON value, as the standard has it: no name twice in an object, no NaN, no half of a surrogate pair.

    Raises:
        ValueError: with what is wrong, also for nesting that is too deep.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\u" in text:  # only an escape can write what is no text
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"is not valid JSON: {error}") from error
    return value


def json_lines(text: str, _path: Path, _notes: list[str]) -> Parsed:
    """One object a line; blank lines are skipped. Bytes that are no UTF-8 stand in ``text`` as lone surrogates."""
    for line, raw in enumerate(text.split("\n"), start=1):
        if raw.strip():
            yield line, _row(raw)


def json_document(text: str, path: Path, notes: list[str]) -> Parsed:
    """One array of objects, one object that holds such an array (under data, rows, train or examples), or lines."""
    begin = _blank_end(text, 0)
    if text.startswith("[", begin):
        _check_text(text, path)
        yield from _array(text, begin, path, whole=True)
    elif text.startswith("{", begin) and _is_one_object(text, begin):
        _check_text(text, path)
        yield from _nested(text, begin, path, notes)
    else:
        yield from json_lines(text, path, notes)


def _row(raw: str) -> dict[str, Any] | str:
    try:
        raw.encode()
    except UnicodeEncodeError:
        wrong = raw.encode("utf-8", "surrogateescape")
        try:
            wrong.decode()
        except UnicodeDecodeError as error:
            return f"is not valid UTF-8 (byte {error.start + 1} of the line)"
    try:
        return _object(strict_json(raw))
    except ValueError as error:
        return str(error)


def _object(value: Any) -> dict[str, Any] | str:
    if not isinstance(value, dict):
        return f"is a JSON {_KINDS.get(type(value), 'value')}, expected an object"
    return value or "is an empty object"


def _is_one_object(text: str, begin: int) -> bool:
    """Whether the text is one object, and not an object a line. A broken text is one if no later line begins one."""
    first_line = text[begin:].split("\n", 1)[0]
    try:
        _, end = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return "\n{" not in text[begin:].replace("\r", "") and first_line.strip() != text.strip()
    return not text[end:].strip()


def _nested(text: str, begin: int, path: Path, notes: list[str]) -> Parsed:
    """The rows that one object holds; the object itself where it is a single row."""
    try:
        value = strict_json(text)
    except ValueError as error:
        cause = error.__cause__
        line = f"line {cause.lineno}: " if isinstance(cause, json.JSONDecodeError) else ""
        raise DataError(f"{path}: {line}{error}.") from error
    holding = [name for name in _LISTS if isinstance(value.get(name), list) and _holds_objects(value[name])]
    if len(holding) > 1:
        raise DataError(f"{path} is one object with rows under {' and under '.join(holding)}. Write one of them alone.")
    if not holding:
        if any(isinstance(value.get(name), list) for name in _LISTS):
            raise DataError(
                f"{path} is one object; the rows are expected to be a list of objects under {', '.join(_LISTS)}."
            )
        yield text.count("\n", 0, begin) + 1, _object(value)
        return
    others = sorted(set(value) - set(holding))
    notes.append(f"read the rows under {holding[0]!r}" + (f"; not read: {', '.join(others)}" if others else ""))
    yield from _array(text, _member(text, begin, holding[0]), path, whole=False)


def _holds_objects(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, dict) for value in values)


def _member(text: str, begin: int, name: str) -> int:
    """Where the value of a valid object's member begins."""
    decoder, position = json.JSONDecoder(), begin + 1
    while True:
        key, position = decoder.raw_decode(text, _blank_end(text, position))
        position = _blank_end(text, _blank_end(text, position) + 1)  # behind the colon
        if key == name:
            return position
        _, position = decoder.raw_decode(text, position)
        position = _blank_end(text, position) + 1  # behind the comma


def _array(text: str, begin: int, path: Path, *, whole: bool) -> Parsed:
    """The elements of the array at ``begin``, with their lines; ``whole`` if nothing may stand behind it."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
    position, line = begin + 1, text.count("\n", 0, begin) + 1
    seen, first = begin, True
    while True:
        position = _blank_end(text, position)
        if not first and text.startswith(",", position):
            position = _blank_end(text, position + 1)
        elif text.startswith("]", position):
            if whole and (rest := text[position + 1 :].strip()):
                raise DataError(f"{path}: {rest[:20]!r} stands behind the end of the array.")
            return
        elif not first:
            line += text.count("\n", seen, position)
            raise DataError(f"{path}: line {line}: expected a comma or the end of the array after this element.")
        line += text.count("\n", seen, position)
        seen, first = position, False
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or error
            raise DataError(f"{path}: the element at line {line} is not valid JSON: {reason}.") from error
        yield line, _element(value, text[seen:position])


def _element(value: Any, written: str) -> dict[str, Any] | str:
    if "\\u" in written:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair (\\ud800 to \\udfff), which is no text"
    return _object(value)


def _check_text(text: str, path: Path) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line} is not valid UTF-8.") from error


def _blank_end(text: str, position: int) -> int:
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")
