"""Answers of a call that is not finished yet, so that a call that was killed goes on where it was.

They lie in ``.NAME.partial.jsonl`` beside the file that is made: first a line with what decides the answers, then a
line for each part of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from tunescope.errors import DataError, TunescopeError
from tunescope.storage.files import atomic_write, disk_errors, read_state, resolved
from tunescope.storage.outputs import check_output

_T = TypeVar("_T")


def partial_path(out: Path) -> Path:
    """Where the answers of an unfinished call lie."""
    return out.with_name(f".{out.name}.partial.jsonl")


def check_out(out: Path, overwrite: bool) -> None:
    """Stop before any work where its result would have no place.

    Raises:
        TunescopeError: a file that is there and not to be replaced, or that was not written here.
    """
    final = resolved(out)
    goes_on = partial_path(final).is_file()  # a call that was killed while it wrote its file
    if final.is_file() and not overwrite and not goes_on:
        raise TunescopeError(f"{out} exists already. Choose another --out, or replace it with --overwrite.")
    check_output(out)


class Unfinished(Generic[_T]):
    """Answers by the index of their row.

    Args:
        out: the file that is made of them.
        recipe: what decides the answers, as JSON values.
        parse: makes an answer of its JSON value.
        restart: drop what an unfinished call answered.

    Attributes:
        answers: those that are there.

    Raises:
        DataError: the unfinished call had another recipe.
        TunescopeError: its file is damaged.
    """

    def __init__(self, out: Path, recipe: Mapping[str, Any], parse: Callable[[Any], _T], *, restart: bool) -> None:
        self.path, self.answers = partial_path(out), dict[int, _T]()
        if restart or not self.path.is_file():
            atomic_write(self.path, json.dumps(recipe) + "\n")
            return

        def read(text: str) -> tuple[dict[str, Any], dict[int, _T]]:
            first, *lines = map(json.loads, text.split("\n")[:-1])
            return dict(first), {int(index): parse(found) for line in lines for index, found in line.items()}

        before, self.answers = read_state(self.path, read, "Start over with --restart.")
        if differing := [name for name in recipe if before.get(name) != recipe[name]]:
            raise DataError(
                f"An unfinished call for {out} had other settings ({', '.join(differing)}). Give the same settings to "
                "go on with it, or --restart to start over."
            )
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)  # a line that it was killed in

    @contextmanager
    def writing(self) -> Iterator[Callable[[Mapping[int, Any]], None]]:
        """Gives what adds a part: JSON values by index, in the file at once.

        Raises:
            TunescopeError: the disk is full.
        """
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:

            def add(part: Mapping[int, Any]) -> None:
                file.write(json.dumps(part) + "\n")
                file.flush()

            yield add

    def remove(self) -> None:
        """Delete it, once the output is written."""
        self.path.unlink()
