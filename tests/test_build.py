"""A wheel and a source archive that work where nothing else of the project is: both install and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make build`` makes."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, folder=ROOT)
    return folder


def run(*command: object, folder: Path) -> str:
    """Run it where the project's source is not on the path; a failure shows what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_archives_hold_what_they_should(dist: Path) -> None:
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    inside = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "tunescope").rglob("*.py")}
    assert modules <= set(inside)
    assert "tunescope/py.typed" in inside
    assert not [name for name in inside if not name.startswith("tunescope")]
    with tarfile.open(source) as archive:
        kept = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "constraints.txt", "mkdocs.yml", "docs/index.md", "tests/tiny.py"} <= kept


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_an_archive_installs_and_runs_in_an_empty_environment(kind: str, dist: Path, tmp_path: Path) -> None:
    """Only what it requires is borrowed from here, behind the environment's own packages, as it is large."""
    (archive,) = dist.glob(kind)
    venv.create(tmp_path / "empty", symlinks=True)
    python = tmp_path / "empty" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "empty")}))
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--ignore-installed"]
    run(*pip, "--no-build-isolation", archive, folder=tmp_path)
    assert str(packages) in run(python, "-c", "import tunescope; print(tunescope.__file__)", folder=tmp_path)
    found = json.loads(run(python.parent / "tunescope", "doctor", "--json", folder=tmp_path))
    assert found["tunescope"] == "0.1.0"
