"""Mixtures: exact shares, templates, order by the seed, tasks held out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.commands.mix import MixRequest
from tunescope.data.mixture import Mixture, mix
from tunescope.errors import DataError, TunescopeError

TEXT = "the quick brown fox jumps over the lazy dog and runs far away from here number"


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Files of 10, 40 and 20 rows."""
    for name, count in (("a", 10), ("b", 40), ("c", 20)):
        rows = [{"text": f"{name} {TEXT} {i}", "label": f"{name}{i % 3}"} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mixture(sets: Path, **changes: Any) -> Mixture:
    def task(name: str, **more: Any) -> dict[str, Any]:
        return {
            "data": str(sets / f"{name}.jsonl"),
            "templates": ["{text} is: {label}", "Say of {text}: {label}"],
            **more,
        }

    return Mixture.parse({"tasks": {"a": task("a"), "b": task("b")}, **changes})


def counts(made: Mixture) -> dict[str, int]:
    return dict(Counter(row["task"] for row in mix(made).rows))


def test_shares_are_exact_to_the_row(sets: Path) -> None:
    assert counts(mixture(sets)) == {"a": 10, "b": 40}
    assert counts(mixture(sets, rows=25)) == {"a": 5, "b": 20}
    assert counts(mixture(sets, rows=30, temperature=2)) == {"a": 10, "b": 20}  # √10 : √40
    weighted = mixture(sets).model_dump()
    weighted["tasks"]["a"]["weight"] = weighted["tasks"]["b"]["weight"] = 1.0
    assert counts(Mixture.parse(weighted | {"rows": 15})) == {"b": 7, "a": 8}  # what is left over goes by name
    general = {"data": str(sets / "c.jsonl"), "templates": ["{text} {label}"]}
    assert counts(mixture(sets, rows=50, general=general, general_share=0.2)) == {"a": 8, "b": 32, "general": 10}


def test_every_row_comes_once_before_any_comes_again_and_says_where_from(sets: Path) -> None:
    made = mix(mixture(sets, rows=200))
    of_a = Counter(row["source"] for row in made.rows if row["task"] == "a")
    assert set(of_a.values()) == {4} and len(of_a) == 10 and "a.jsonl:1" in of_a
    assert made.shares["a"].templates[0] + made.shares["a"].templates[1] == 40 and min(made.shares["a"].templates) > 5
    row = next(row for row in made.rows if row["task"] == "b" and row["template"] == 2)
    assert row["prompt"].startswith("Say of b the quick") and row["completion"].startswith("b")


def test_the_seed_decides_everything(sets: Path) -> None:
    assert mix(mixture(sets)).rows == mix(mixture(sets)).rows
    assert mix(mixture(sets, seed=1)).rows != mix(mixture(sets)).rows


def test_shares_of_tokens(sets: Path) -> None:
    general = {"data": str(sets / "c.jsonl"), "templates": ["{text} {label}"]}
    made = mix(
        mixture(sets, rows=100, by="tokens", general=general), lambda text: len(text) * (1 + 2 * (text[0] == "a"))
    )
    assert sum(share.token_share or 0 for share in made.shares.values()) == pytest.approx(1)
    assert made.shares["general"].token_share == pytest.approx(0.1, abs=0.02)
    with pytest.raises(DataError, match="--base"):
        mix(mixture(sets, by="tokens"))


def test_unseen_tasks_are_left_out_and_leaks_are_counted(sets: Path) -> None:
    made = mix(mixture(sets, unseen=["b"]))
    assert set(made.shares) == {"a"} and made.leaks == {"b": 40}  # 13 words of the text stand in every row
    apart = mixture(sets, unseen=["b"]).model_dump()
    apart["tasks"]["b"]["templates"] = ["{label} {text}"]
    (sets / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"t{i} " * 20, "label": f"l{i}"}) + "\n" for i in range(5))
    )
    assert mix(Mixture.parse(apart)).leaks == {"b": 0}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 200), st.floats(1, 8))
@settings(max_examples=50, deadline=None)
def test_counts_always_add_up(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int, heat: float
) -> None:
    folder = tmp_path_factory.mktemp("sets")
    tasks = {}
    for i, size in enumerate(sizes):
        path = folder / f"{i}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{i} {k}", "completion": "x"}) + "\n" for k in range(size)))
        tasks[f"t{i}"] = {"data": str(path)}
    found = mix(Mixture.parse({"tasks": tasks, "rows": rows, "temperature": heat}))
    assert len(found.rows) == rows == sum(share.rows for share in found.shares.values())
    total = sum(size ** (1 / heat) for size in sizes)
    for i, size in enumerate(sizes):
        assert abs(found.shares[f"t{i}"].rows - rows * size ** (1 / heat) / total) < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen": ["x"]}, "Unknown task 'x'"),
        ({"unseen": ["a", "b"]}, "no task is left"),
        ({"tasks": {}}, "no task is left"),
        ({"tasks": {"general": {"data": "x"}}}, "is the name of the rows"),
        ({"tasks": {"a": {"data": "x", "weight": -1}}}, "greater than 0"),
        ({"heat": 3}, "Unknown setting"),
        ({"general_share": 0.3}, "general_share is the share of general"),
        ({"tasks": {"a": {"data": "x", "weight": 1}, "b": {"data": "y"}}}, "a has a weight and others have none"),
        ({"general": {"data": "x", "weight": 1}}, "and no weight"),
    ],
)
def test_bad_mixtures_are_refused(sets: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TunescopeError, match=message):
        mixture(sets, **changes)


def test_a_template_of_other_columns_names_the_task(sets: Path) -> None:
    made = mixture(sets).model_dump()
    made["tasks"]["a"]["templates"] = ["{txt} {label}"]
    with pytest.raises(DataError, match=r"Task a, template '\{txt\} \{label\}'.*txt"):
        mix(Mixture.parse(made))


def test_the_command_writes_rows_that_are_read_again(sets: Path, tmp_path: Path) -> None:
    file, out = sets / "mix.yaml", tmp_path / "mixed.jsonl"
    file.write_text(f"tasks:\n  a: {{data: {sets}/a.jsonl, templates: ['{{text}} {{label}}']}}\nrows: 12\n")
    result = MixRequest(mixture=file, out=out).run()
    assert result.values["rows"] == 12 and len(out.read_text().splitlines()) == 12
    with pytest.raises(TunescopeError, match="--overwrite"):
        MixRequest(mixture=file, out=out).run()
    for text, message in (
        ("tasks:\n  a: {data: x, weight: -3}\n", "mix.yaml, a: weight: Input should be greater than 0"),
        ("tasks:\n  a: {data: x}\nunseen: [b]\n", "mix.yaml: Unknown task 'b'"),
        ("tasks:\n  a: x\n", "mix.yaml, a: expected keys with values"),
    ):
        file.write_text(text)
        with pytest.raises(TunescopeError, match=message):
            MixRequest(mixture=file, out=tmp_path / "b.jsonl").run()
    file.write_text("tasks:\n  a: {data: x}\n  a: {data: y}\n")
    with pytest.raises(TunescopeError, match="line 3: is not valid YAML"):
        MixRequest(mixture=file, out=tmp_path / "b.jsonl").run()
