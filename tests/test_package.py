"""What the package says of itself is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import grimp

import tunescope

ROOT = Path(__file__).parent.parent


def test_the_python_that_is_asked_for_has_what_is_used() -> None:
    """tarfile's filters came with 3.11.4, and an older Python fails only when a source archive is unpacked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    least = tuple(map(int, re.findall(r"\d+", project["requires-python"])))
    assert least >= (3, 11, 4)
    written = ".".join(map(str, least))
    assert f"Python {written} or newer" in (ROOT / "CONTRIBUTING.md").read_text()
    assert f"sys.version_info < {least}" in (ROOT / "Makefile").read_text()


def test_the_sandbox_is_asked_for_without_its_known_holes() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (jinja,) = (name for name in dependencies if name.startswith("jinja2"))
    assert tuple(map(int, re.findall(r"\d+", jinja.partition(">=")[2]))) >= (3, 1, 6)


def test_the_version_stands_at_the_bottom_and_is_that_of_the_project() -> None:
    """A module that imports the whole package reaches over every layer, where import-linter does not look."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tunescope.__version__ == project["version"]
    assert not grimp.build_graph("tunescope", cache_dir=None).find_modules_that_directly_import("tunescope")
