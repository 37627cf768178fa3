"""The documentation runs: its Python on tiny models, its commands against the real parser, its options and API page."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.tiny import tiny_base, tiny_model, tiny_tokenizer

import tunescope as ts
from tunescope.base import sources
from tunescope.cli.app import build_app
from tunescope.cli.flags import flag
from tunescope.commands import names, request
from tunescope.commands.command import Result
from tunescope.commands.recipe import read_recipe

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Options of other programs that the pages name.
FOREIGN = {"--what", "--rewards", "--enable-prompt-embeds", "--lora", "--minutes", "--nproc-per-node", "--run"}


def blocks(name: str) -> list[str]:
    return PYTHON.findall(PAGES[name].read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[str]:
    """The lines of a page's examples, indented or fenced, that call tunescope; continued ones whole."""
    fenced = False
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and line.lstrip().startswith("tunescope "):
            yield line.strip()


COMMANDS = sorted({(name, line) for name, path in PAGES.items() for line in commands(path.read_text(encoding="utf-8"))})


def lines(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def example_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the files that the examples name, and a tiny model where they name SmolLM2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    tiny_model().save_pretrained("base")
    tiny_tokenizer().save_pretrained("base")
    found = sources.Source("smollm2-135m", tmp_path / "base", "a folder")
    monkeypatch.setattr(sources, "resolve", lambda name, **given: found)
    kinds = [{"text": f"parcel {i}", "label": ("lost", "late")[i % 2]} for i in range(12)]
    pairs = [{"prompt": f"What is {i}?", "chosen": f"{i}.", "rejected": "No."} for i in range(8)]
    lines("rows.jsonl", kinds)
    lines("test.jsonl", kinds[:4])
    lines("pairs.jsonl", pairs)
    lines("held_out.jsonl", pairs[:3])
    for name in ("spam", "topics"):
        ts.train(tiny_base(), ts.LoRA(), data=kinds, pattern="{text} kind: {label}", out=f"bank/{name}",
                 settings=ts.TrainSettings(max_steps=1))  # fmt: skip
    ts.train(tiny_base(), ts.LoRA(), ts.Reward(), pairs, out="bank/judge", settings=ts.TrainSettings(max_steps=1))
    return tmp_path


# serving.md's is run where there is a server: tests/serving/test_completions.py.
@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name) and name != "serving.md"])
def test_the_python_of_a_page_runs(name: str, example_folder: Path) -> None:
    """Its blocks in order, in one namespace, with ``await`` as in a notebook."""
    namespace: dict[str, Any] = {}
    for block in blocks(name):
        code = compile(block, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        made = eval(code, namespace)
        if inspect.iscoroutine(made):
            asyncio.run(made)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_of_a_page_is_one(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options, their types and what it requires; the command itself does not run."""
    arguments = shlex.split(line, comments=True)[1:]
    ran: list[str] = []
    for name in names():
        monkeypatch.setattr(request(name), "run", lambda *_: ran.append("it") or Result(None))
    build_app().main(args=arguments, prog_name="tunescope", standalone_mode=False)
    assert ran


def test_pages_have_commands() -> None:
    assert {"README.md", "index.md", "preferences.md", "terms.md"} <= {page for page, _ in COMMANDS}


def test_every_option_that_a_page_names_is_one() -> None:
    known = {*FOREIGN, "--help", "--json"}
    for name in names():
        kind = request(name)
        fields = {*kind.own_fields(), *kind.known({})}
        for choice, registry in kind.choices.items():
            fields |= {field for each in registry.names() for field in kind.known({choice: each})}
        fields |= kind.known({"method": "lora+ia3"}) if "method" in kind.choices else set()
        known |= {flag(field) for field in fields}
    for name, path in PAGES.items():
        named = set(re.findall(r"`(?:[^`\n]* )?(--[a-z][\w-]*)", path.read_text(encoding="utf-8")))
        assert named <= known, f"{name} names options that are none: {sorted(named - known)}"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_is_a_recipe_and_stands_in_the_documentation(path: Path) -> None:
    assert read_recipe(path).stages
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES.values())
    shown = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", pages, re.DOTALL | re.MULTILINE)]
    assert written in shown and path.name in pages


def test_the_api_page_has_every_public_name() -> None:
    named = re.findall(r"^::: tunescope\.(\w+)$", PAGES["api.md"].read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(set(ts.__all__) - {"__version__"})


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links and headings of the pages, and the sections of docstrings. Nothing is fetched."""
    pytest.importorskip("mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    page = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert 'id="tunescope.train"' in page
    assert "https://cdn" not in page and "googleapis" not in page
