from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tunescope import wheels
from tunescope.errors import TunescopeError
from tunescope.storage import sha256_file

MEMBERS = ("pack/data/one.txt", "pack/data/two.txt")


@pytest.fixture
def wheel(tmp_path: Path) -> wheels.Wheel:
    file = tmp_path / "index" / "pack-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        for member in (*MEMBERS, "pack/__init__.py"):
            archive.writestr(member, member)
    return wheels.Wheel("pack", "1.0", sha256_file(file), MEMBERS, megabytes=1)


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for pip: copies the wheel of ``index`` and remembers how it was called."""
    calls = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (made,) = (tmp_path / "index").iterdir()
        Path(command[command.index("--dest") + 1], made.name).write_bytes(made.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def failing(stderr: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr)


def left(cache: Path) -> list[str]:
    return sorted(str(entry.relative_to(cache)) for entry in cache.rglob("*") if entry.suffix != ".lock")


def test_one_download_gives_all_members_and_nothing_else(
    wheel: wheels.Wheel, pip: list[list[str]], empty_cache: Path
) -> None:
    paths = [wheels.fetch(wheel, member) for member in MEMBERS]
    assert [path.read_text() for path in paths] == list(MEMBERS)
    assert len(pip) == 1
    assert pip[0][-1] == "pack==1.0"
    assert "--no-deps" in pip[0]
    assert "--ignore-requires-python" not in pip[0]
    assert sorted(entry.name for entry in empty_cache.rglob("*") if entry.is_file()) == [
        f".pack-1.0-{wheel.sha256[:12]}.lock",
        "one.txt",
        "two.txt",
    ]


def test_another_file_than_the_known_one_is_refused(
    wheel: wheels.Wheel, pip: list[list[str]], empty_cache: Path
) -> None:
    with pytest.raises(
        TunescopeError, match=r"pack-1\.0-py3-none-any\.whl is not the file tunescope knows.*expected 00"
    ):
        wheels.fetch(replace(wheel, sha256="00" * 32), MEMBERS[0])
    assert left(empty_cache) == ["wheels"]


def test_a_wheel_without_the_member_is_refused(wheel: wheels.Wheel, pip: list[list[str]], empty_cache: Path) -> None:
    with pytest.raises(TunescopeError, match="cannot be unpacked"):
        wheels.fetch(replace(wheel, members=("pack/three.txt",)), "pack/three.txt")
    assert left(empty_cache) == ["wheels"]


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("WARNING: slow\nERROR: No matching distribution found for pack==1.0\n", "No matching distribution.*network"),
        ("/usr/bin/python: No module named pip\n", "-m ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "disk is full.*TUNESCOPE_CACHE"),
        ("", "pip said: nothing"),
    ],
)
def test_when_pip_fails_its_reason_and_the_remedy_are_told(
    wheel: wheels.Wheel, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", failing(stderr))
    with pytest.raises(TunescopeError, match=message):
        wheels.fetch(wheel, MEMBERS[0])
    assert left(empty_cache) == ["wheels"]


def test_an_interrupted_download_leaves_nothing(
    wheel: wheels.Wheel, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], **_: object) -> None:
        Path(command[command.index("--dest") + 1], "half.whl").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wheels.fetch(wheel, MEMBERS[0])
    assert left(empty_cache) == ["wheels"]
