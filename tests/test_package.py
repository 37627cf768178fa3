"""What the package says of itself is so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

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


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    assert all(getattr(tunescope, name) is not None for name in tunescope.__all__)
    assert set(dir(tunescope)) == set(tunescope.__all__)
    source = ast.parse(Path(tunescope.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in source.body if isinstance(node, ast.If))
    typed = {
        alias.asname: f"{node.module}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"tunescope.{module}" for name, module in tunescope._PUBLIC.items()}


@pytest.mark.parametrize("program", ["import tunescope", "from tunescope.cli.app import build_app; build_app()"])
def test_importing_is_cheap(program: str) -> None:
    """Help is there at once: what takes seconds to import waits until it is used."""
    heavy = "import sys; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", f"{program}; {heavy}"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_is_imported_is_required() -> None:
    """An import that another package happens to bring fails in somebody's empty environment. Where there
    is no pip, archives say so. What an extra brings is used where its lack is said first.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    always, serve, harness, quantize, cluster = (
        {_normal(re.split(r"[\[<>=~! ]", name)[0]) for name in listed}
        for listed in (project["dependencies"], *(extras[each] for each in ("serve", "lm-eval", "quantize", "ray")))
    )
    beside = {"grammar.py": serve, "harness.py": harness, "quantized.py": quantize, "cluster.py": cluster}
    sources, missing = packages_distributions(), set()
    for path in (ROOT / "src").rglob("*.py"):
        required = always | (serve if "serving" in path.parts else beside.get(path.name, set()))
        for module in _imported(ast.parse(path.read_text(encoding="utf-8"))) - {"tunescope", "pip"}:
            if module not in sys.stdlib_module_names and not required & set(map(_normal, sources[module])):
                missing.add(f"{path.relative_to(ROOT)}: {module}")
    assert not missing


def _imported(tree: ast.Module) -> set[str]:
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_version_stands_at_the_bottom_and_is_that_of_the_project() -> None:
    """A module that imports the whole package reaches over every layer, where import-linter does not look."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert tunescope.__version__ == project["version"]
    assert not grimp.build_graph("tunescope", cache_dir=None).find_modules_that_directly_import("tunescope")
