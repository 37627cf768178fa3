"""A comparison's recipes: files for ``tunescope run`` that train its choices again, to the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.cli.conftest import Ended, Place, jsonl

from tunescope import bank

Cli = Callable[..., Ended]
ROWS = [{"text": f"the {('sun', 'rain')[i % 2]}\nof day {i}", "label": ("warm", "wet")[i % 2]} for i in range(60)]
PAIRS = [{"prompt": f"word {i}", "chosen": "yes" + "!" * (i % 3), "rejected": "no" + "." * (i % 4)} for i in range(40)]


@pytest.fixture
def compared(cli: Cli, place: Place, tmp_path: Path) -> Callable[..., dict[str, object]]:
    """Compare on rows, into ``run``."""

    def run(methods: str, rows: list[dict[str, str]], *more: object) -> dict[str, object]:
        data = jsonl(tmp_path / "rows.jsonl", rows)
        found: dict[str, object] = cli(
            "compare", "--base", place.base, "--data", data, "--dtype", "float32", "--out", "run", "--methods", methods,
            "--budget-tokens", 4000, "--generate-rows", 2, "--max-new-tokens", 4, "--max-length", 200, *more, "--json",
        ).json  # fmt: skip
        return found

    return run


@pytest.mark.parametrize(
    ("methods", "pairs"),
    [("few-shot,system,lora", False), ("prompt-tuning,p-tuning,full", False), ("ia3,adapter", True)],
)
def test_a_recipe_trains_the_same(
    methods: str, pairs: bool, compared: Callable[..., dict[str, object]], cli: Cli
) -> None:
    if pairs:
        found = compared(methods, PAIRS, "--objective", "dpo", "--beta", 0.5)
    else:
        found = compared(methods, ROWS, "--template", "{text}\\nkind: {label}", "--style", "plain")
    rows = found["rows"]
    assert isinstance(rows, list) and len(rows) == len(methods.split(","))
    for row in rows:
        recipe = Path(f"run/recipes/{row['name']}.yaml")
        assert recipe.read_text().splitlines()[0] == f"# {row['name']} as run chose it: tunescope run {recipe}"
        assert yaml.safe_load(row["recipe"]) == yaml.safe_load(recipe.read_text())
        made = cli("run", recipe, "--json")
        assert made.code == 0, made.err
        first, again = (bank.read_record(Path(folder) / row["name"]) for folder in ("run/bank", "run-again"))
        assert again.tensors_sha256 == first.tensors_sha256
        assert again.template == first.template and again.method_settings == first.method_settings
        assert (again.data, again.objective_settings) == (first.data, first.objective_settings)


def test_the_report_shows_them_and_restart_deletes_them(
    compared: Callable[..., dict[str, object]], cli: Cli, place: Place
) -> None:
    compared("zero-shot", ROWS, "--template", "{text} kind: {label}")
    assert "method: zero-shot" in Path("run/report.html").read_text()
    learned = Path("run/learned.txt").read_text().split()
    assert len(learned) == len(set(learned)) < len(ROWS)
    compared("zero-shot", ROWS, "--template", "{text} kind: {label}", "--restart")
    assert Path("run/learned.txt").read_text().split() == learned


def test_what_has_no_recipe(compared: Callable[..., dict[str, object]]) -> None:
    """A prompt that was made of pairs: no command makes it of them."""
    rows = compared("few-shot,lora", PAIRS, "--objective", "dpo")["rows"]
    assert isinstance(rows, list) and [row["recipe"] is None for row in rows] == [True, False]
    assert [path.name for path in Path("run/recipes").iterdir()] == ["lora.yaml"]


def test_bad_rows_are_left_out_again(compared: Callable[..., dict[str, object]], cli: Cli, tmp_path: Path) -> None:
    bad: list[dict[str, str]] = [{"text": "", "label": "warm"}]
    compared("zero-shot", [*bad, *ROWS], "--template", "{text} kind: {label}", "--skip-bad", 1)
    assert cli("run", "run/recipes/zero-shot.yaml", "--json").code == 0


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("1\n99\n100\n", "rows.jsonl has no row on line 99 and 1 others: the numbers are of other data"),
        ("1\nx\n", "'x' is no line number"),
        ("0\n", "'0' is no line number"),
        ("", "names no line"),
        (None, "No such file"),
    ],
)
def test_lines_that_are_none(lines: str | None, says: str, cli: Cli, place: Place, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "rows.jsonl", ROWS)
    if lines is not None:
        Path("lines.txt").write_text(lines)
    asked = ("train", "lora", "--base", place.base, "--data", data, "--template", "{text} kind: {label}")
    ended = cli(*asked, "--lines", "lines.txt", "--out", "bank/x")
    assert ended.code == 2 and says in ended.err and not Path("bank").exists()
