"""The comparison from rows to report: what is kept when it is killed, what it refuses."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_base

from tunescope.comparison import CompareSettings, Comparison, Watcher, compare, read_comparison, runner
from tunescope.data.rows import Row
from tunescope.errors import Interrupted, TunescopeError, UnknownNameError
from tunescope.evaluation import Probes
from tunescope.training import StepMetrics

ROWS = [
    Row(({"role": "user", "content": f"the {('sun', 'rain')[i % 2]} number {i}"},), ("warm", "wet")[i % 2], i + 1)
    for i in range(60)
]
PROBES = Probes(["A text that is general. " * 8], {}, True)


def run(
    out: Path, *, methods: str = "zero-shot,few-shot,lora,full", watcher: Watcher | None = None, **changes: object
) -> Comparison:
    settings = CompareSettings(
        **{"budget": 60, "methods": tuple(methods.split(",")), "generate_rows": 2, "epochs": 2.0, **changes}
    )
    torch.set_num_threads(1)
    return compare(tiny_base(), ROWS, out=out, settings=settings, probes=PROBES, name="weather", watcher=watcher)


def test_rows_report_and_bank(tmp_path: Path) -> None:
    found = run(tmp_path / "run")
    assert [row.method for row in found.rows] == ["zero-shot", "few-shot", "lora", "full"]
    assert (found.data.train_rows, found.data.test_rows) == (48, 12)
    assert found.data.labels == ["warm", "wet"]
    lora = found.row("lora")
    assert lora.steps == 12
    assert lora.forgetting_off == 0.0
    assert lora.forgetting_on is not None
    assert found.row("full").forgetting_off == found.row("full").forgetting_on
    assert found.row("full").trainable_parameters == tiny_base().parameters
    assert len(lora.per_row) == 12
    assert read_comparison(tmp_path / "run") == found
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert {path.name for path in (tmp_path / "run" / "bank").iterdir() if path.name[0] != "."} == {
        row.name for row in found.rows
    }


@pytest.mark.parametrize("place", ["training", "task"])
def test_killed_comparison_goes_on(place: str, tmp_path: Path) -> None:
    """A child is killed while LoRA trains, or while it is measured; the next call repeats nothing that was done."""

    class Killer(Watcher):
        name = ""

        def begin(self, method: str, number: int, count: int) -> None:
            self.name = method

        def stage(self, stage: str, steps: int | None = None) -> None:
            if self.name == "lora" and stage == place == "task":
                os.kill(os.getpid(), signal.SIGKILL)

        def step(self, metrics: StepMetrics) -> None:
            if self.name == "lora" and place == "training" and metrics.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)

    class Recorder(Watcher):
        def __init__(self) -> None:
            self.stages: list[tuple[str, str]] = []

        def begin(self, method: str, number: int, count: int) -> None:
            self.method = method

        def stage(self, stage: str, steps: int | None = None) -> None:
            self.stages.append((self.method, stage))

    whole = run(tmp_path / "whole")
    if (child := os.fork()) == 0:
        run(tmp_path / "killed", watcher=Killer())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "comparison.json").exists()
    recorder = Recorder()
    again = run(tmp_path / "killed", watcher=recorder)
    assert [row.per_row for row in again.rows] == [row.per_row for row in whole.rows]
    assert [row.score for row in again.rows] == [row.score for row in whole.rows]
    lora = [[loss for _, loss, _ in found.row("lora").curve] for found in (again, whole)]
    assert lora[0] == lora[1]
    done_before = {method for method, _ in recorder.stages}
    assert done_before == {"lora", "full"}
    assert (("lora", "training") in recorder.stages) == (place == "training")


def test_control_c_while_measuring_says_how_to_go_on(tmp_path: Path) -> None:
    class Stopper(Watcher):
        def begin(self, method: str, number: int, count: int) -> None:
            self.at = method

        def stage(self, stage: str, steps: int | None = None) -> None:
            if self.at == "lora" and stage == "task":
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"Stopped in lora, after \d of \d methods\. Make the same call"):
        run(tmp_path / "run", watcher=Stopper())
    assert all(row.score is not None for row in run(tmp_path / "run").rows)


def test_finished_comparison_is_read_not_repeated(tmp_path: Path) -> None:
    first = run(tmp_path / "run", methods="zero-shot")
    wider = run(tmp_path / "run", methods="zero-shot,few-shot")
    assert wider.rows[0] == first.rows[0]
    assert len(wider.rows) == 2


def test_other_data_or_settings_in_the_folder_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "run", methods="zero-shot")
    with pytest.raises(TunescopeError, match=r"another settings.*--restart"):
        run(tmp_path / "run", methods="zero-shot", batch_size=4)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(TunescopeError, match="exists and is no comparison"):
        run(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


CONDITIONS = {
    "style": ({"style": "plain"}, r"style \(chat; now plain\)"),
    "probes": ({"probes": Probes(["Another general text. " * 8], {}, True)}, "probes"),
    "no probes": ({"probes": None}, "probes"),
    "training rows": ({"data": ROWS[1:]}, "training rows"),
    "dtype": ({"base": tiny_base(dtype=torch.bfloat16)}, r"dtype \(float32; now bfloat16\)"),
    "seed": ({"settings": CompareSettings(methods=("zero-shot",), generate_rows=2, seed=1)}, r"settings \(seed\)"),
}


@pytest.mark.parametrize("what", [*CONDITIONS, "version", "device"])
def test_rows_of_other_conditions_do_not_share_a_table(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"settings": CompareSettings(methods=("zero-shot",), generate_rows=2), "probes": PROBES}
    given |= {"base": tiny_base(), "data": ROWS, "test": ROWS[:9], "out": tmp_path / "run"}
    compare(**given)
    before = (tmp_path / "run" / "comparison.json").read_bytes()
    change, named = CONDITIONS.get(what, ({}, rf"{what} \(.*; now .*\)"))
    if what == "version":
        monkeypatch.setattr(runner.metadata, "version", lambda name: "0.0")
    if what == "device":
        monkeypatch.setattr(runner, "device_name", lambda device: "Another CPU")
    with pytest.raises(TunescopeError, match=rf"holds a comparison with another {named}\. .*--restart"):
        compare(**given | change)
    assert (tmp_path / "run" / "comparison.json").read_bytes() == before
    assert compare(**given | change, restart=True).rows[0].score is not None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", "{"),
        ("state.json", "[1, 2]"),
        ("state.json", None),
        ("seconds", ""),
        ("seconds", "nan"),
        ("evaluation_seconds", "1.0\nx"),
        ("rows/zero-shot.json", '{"method": "zero-shot"'),
        ("rows/lora.steps", "many"),
    ],
)
def test_damaged_state_is_named_with_the_remedy(name: str, content: str | None, tmp_path: Path) -> None:
    run(tmp_path / "run", methods="zero-shot")
    path = tmp_path / "run" / name
    path.unlink(missing_ok=True) if content is None else path.write_text(content)
    with pytest.raises(TunescopeError, match=rf"{name} is damaged \(.*--restart"):
        run(tmp_path / "run", methods="zero-shot,lora")


def test_unknown_method_stops_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean lora"):
        run(tmp_path / "run", methods="zero-shot,lorra")
    assert not (tmp_path / "run").exists()


def test_a_method_that_fails_is_a_row_that_says_why(tmp_path: Path) -> None:
    found = compare(
        tiny_base(),
        [Row(({"role": "user", "content": "y" * 1300},), r.completion, r.number) for r in ROWS],
        out=tmp_path / "run",
        settings=CompareSettings(methods=("zero-shot", "few-shot"), generate_rows=1, budget=30),
    )
    assert found.row("few-shot").score is None
    assert "single prompts" in (found.row("few-shot").note or "")
    assert found.advice.recommended == "zero-shot"


def test_no_time_left_is_said(tmp_path: Path) -> None:
    found = run(tmp_path / "run", methods="zero-shot,lora", budget=0.01)
    assert "no time" in (found.row("lora").note or "")
    assert json.loads((tmp_path / "run" / "comparison.json").read_text())["rows"][1]["score"] is None
    again = run(tmp_path / "run", methods="zero-shot,lora", budget=60)  # a larger budget reaches it
    assert again.row("lora").score is not None
