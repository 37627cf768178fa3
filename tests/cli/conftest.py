"""The command line in this process, in a folder of the test's own, with a tiny base that is made once."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_model, tiny_tokenizer

from tunescope.cli import main

PATTERN = "{text} topic: {label}"
ROWS = [
    {"text": f"the {('sun', 'rain')[i % 2]} of day {i}", "label": ("warm", "wet")[i % 2]} for i in range(40)
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on standard output; anything else there is an error."""
        assert self.code == 0, self.err
        return json.loads(self.out)


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def command(*arguments: object) -> Ended:
    """Run ``tunescope ARGUMENTS``; an exception that is not an exit is the test's failure."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code
    return Ended(code or 0, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Place:
    """A folder with what the commands need; read only."""

    folder: Path

    @property
    def base(self) -> Path:
        """A tiny base in transformers' format."""
        return self.folder / "base"

    @property
    def other(self) -> Path:
        """Another base: the same but for its weights."""
        return self.folder / "other"

    @property
    def plain(self) -> Path:
        """A base without a chat template."""
        return self.folder / "plain"

    @property
    def data(self) -> Path:
        """Forty rows of two labels."""
        return self.folder / "rows.jsonl"

    @property
    def probe(self) -> Path:
        """A probe of forgetting."""
        return self.folder / "probe.jsonl"

    @property
    def bank(self) -> Path:
        """A bank with the entries ``zero-shot``, ``lora`` and ``full``."""
        return self.folder / "bank"


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Bases, rows and a probe, made once."""
    made = Place(tmp_path_factory.mktemp("cli"))
    for folder, seed, chat in ((made.base, 0, True), (made.other, 1, True), (made.plain, 0, False)):
        tiny_model(seed=seed).save_pretrained(folder)
        tiny_tokenizer(chat=chat).save_pretrained(folder)
    jsonl(made.data, ROWS)
    jsonl(made.probe, [{"text": "Once upon a time there was a king. " * 3}] * 2)
    return made


@pytest.fixture(scope="session")
def trained(place: Place) -> dict[str, Ended]:
    """What ``train METHOD --json`` said, for the entries of ``place.bank``."""
    said = {}
    for method, steps in (("zero-shot", ()), ("lora", ("--max-steps", 6)), ("full", ("--max-steps", 3))):
        said[method] = command(
            "train", method, "--base", place.base, "--data", place.data, "--template", PATTERN, *steps,
            "--dtype", "float32", "--out", place.bank / method, "--json",
        )  # fmt: skip
    return said


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """``command`` in a folder of the test's own, where nothing has been downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    return command
