"""Helpers on a ray cluster: the same table as one process, also when one is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli.conftest import PATTERN, Place, cli, jsonl, place  # noqa: F401
from tests.comparison.test_runner import known

from tunescope.commands import cluster
from tunescope.commands.compare import CompareRequest
from tunescope.commands.report import Report
from tunescope.comparison import Watcher
from tunescope.errors import SettingError, TunescopeError

ray = pytest.importorskip("ray")


class Lead(Report):
    """A lead that goes on behind the first table once something has happened, and keeps what it is told."""

    def __init__(self, happened: Callable[[], object] = lambda: True) -> None:
        self.notes: list[str] = []
        self.tried: list[str] = []
        self._happened = happened

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def comparing(self) -> Iterator[Watcher]:
        lead = self

        class Told(Watcher):
            def begin(self, method: str, what: str) -> None:
                if "to step" in what:
                    deadline = time.monotonic() + 120
                    while len(lead.tried) > 1 and not lead._happened() and time.monotonic() < deadline:
                        time.sleep(0.05)
                    lead.tried.append(f"{method}: {what}")

        yield Told()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Helpers have as many threads as the lead; two cores are all there may be."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)


def request(place: Place, out: Path, **changes: Any) -> CompareRequest:  # noqa: F811
    values = {
        "base": str(place.base), "data": str(place.data), "template": PATTERN, "out": out, "probe": place.probe,
        "methods": ["lora", "ia3"], "budget_tokens": 40_000, "validation_rows": 8, "test_rows": 8, "generate_rows": 2,
        "max_new_tokens": 2, "max_length": 64, "dtype": "float32",
    }  # fmt: skip
    return CompareRequest.flat({**values, **changes})


def workers() -> list[int]:
    """The processes of helpers that ray runs here."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::_help"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_helpers_find_what_one_process_finds_also_where_one_is_killed(tmp_path: Path, place: Place) -> None:  # noqa: F811
    one = Lead()
    alone = request(place, tmp_path / "alone").run(one).comparison
    killed: list[int] = []

    def helped() -> bool:
        """The first helper is killed; whether another has taken a candidate to a rung."""
        if not killed:
            for each in workers():
                os.kill(each, signal.SIGKILL)
                killed.append(each)
        files, defaults = (tmp_path / "run" / "candidates").glob("*.json"), ("lora-0", "ia3-0")
        return bool(killed) and any(
            json.loads(file.read_text()).get("rungs") for file in files if file.stem not in defaults
        )

    lead = Lead(helped)
    found = request(place, tmp_path / "run", ray=1).run(lead).comparison
    assert killed
    assert known(found) == known(alone)
    assert 0 < len(lead.tried) < len(one.tried), "helpers took candidates"
    assert not workers()


def test_a_machine_without_the_base_is_heard_of(
    tmp_path: Path,
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(cluster, "Path", SimpleNamespace(cwd=lambda: tmp_path))  # where helpers begin: nothing is there
    lead = Lead(lambda: lead.notes)
    request(place, tmp_path / "run", ray=1, methods=["lora"], base="base").run(lead)
    ended = [note for note in lead.notes if "A helper ended early, and the comparison goes on without it: " in note]
    assert len(ended) == 1 and "'base'" in ended[0]


def test_what_ray_cannot_do(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for other in ("join", "finish"):
        with pytest.raises(SettingError, match=f"leave --{other} out"):
            request(place, tmp_path / "run", ray=2, **{other: True}).run()
    notes: list[str] = []
    with pytest.raises(TunescopeError, match="has 1 CPUs, and a helper takes 2"):
        cluster._check_room({"CPU": 1.0}, {"CPU": 2, "GPU": 0}, 1, notes.append)
    cluster._check_room({"CPU": 5.0}, {"CPU": 2, "GPU": 0}, 3, notes.append)
    assert notes == ["The ray cluster has CPUs for 2 of the 3 helpers at a time."]
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(TunescopeError, match=r"pip install 'tunescope\[ray\]'"):
        request(place, tmp_path / "run", ray=2).run()
    assert not (tmp_path / "run").exists()
