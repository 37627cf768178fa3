"""What may be deleted or replaced: what tunescope wrote itself, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny import tiny_base

from tunescope import bank, storage
from tunescope.comparison import CompareSettings, compare
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import TunescopeError
from tunescope.evaluation.preference_accuracy import plot_reliability
from tunescope.judging import Samples, make_pairs
from tunescope.judging.functions import Function
from tunescope.judging.preference_pairs import samples_path
from tunescope.locks import writing
from tunescope.methods import Customization, Customized, LoRA, ZeroShot
from tunescope.training import StepMetrics, TrainSettings, train
from tunescope.training.unfinished import work_folder

THING = storage.Kind("thing", unsealed=("notes/*",))
ROWS = [Row(({"role": "user", "content": f"word {i}"},), ("yes", "no")[i % 2], i + 1) for i in range(12)]
SETTINGS = TrainSettings(max_steps=2, batch_size=4, checkpoint_every=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def prompting(out: Path, **changes: bool) -> None:
    train(tiny_base(), ZeroShot(), data=ROWS, out=out, **changes)


def comparison(out: Path, **changes: bool) -> None:
    settings = CompareSettings(methods=("zero-shot",), generate_rows=1, budget=30)
    compare(tiny_base(), ROWS * 3, out=out, settings=settings, **changes)


def pairs(out: Path, **changes: bool) -> None:
    base = tiny_base()
    plain = Customized(base, Customization(ZeroShot(), default_template(base.tokenizer), {}), base)
    judge = Function("m:f", lambda prompt, text: len(text))
    make_pairs(plain, ROWS[:2], judge, Samples(n=3, max_new_tokens=4), out, **changes)


def exports(out: Path) -> list[Callable[[], object]]:
    lora = train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS).customized
    record = bank.Record(
        tunescope="0",
        method="zero-shot",
        method_settings={},
        objective=None,
        template=lora.template,
        base=bank.BaseRecord(name="tiny", fingerprint=tiny_base().fingerprint),
    )
    return [
        lambda: bank.export_peft(lora, out),
        lambda: bank.merge_into_base(lora, out),
        lambda: bank.export_model(out, out),
        lambda: bank.save(lora, out, record),
        lambda: bank.save(lora, out, record, overwrite=True),
    ]


def refused_writers(out: Path) -> list[Callable[[], object]]:
    """Every function that writes a folder a user names, told to replace what is there."""
    return [
        lambda: prompting(out),
        lambda: prompting(out, overwrite=True),
        lambda: train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, out=out, overwrite=True, restart=True),
        lambda: comparison(out),
        lambda: comparison(out, restart=True),
        *exports(out),
    ]


# Folders


def test_what_is_not_ours_stays_whatever_writes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank, a folder with a common name's state file, the working folder and a link to it, by every function."""
    prompting(tmp_path / "bank" / "a")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "state.json").write_text('{"settings": {}, "base": {}, "training rows": "", "test rows": ""}')
    (tmp_path / "work" / "sub").mkdir(parents=True)
    (tmp_path / "work" / "thesis.txt").write_text("precious")
    (tmp_path / "link").symlink_to("app")
    monkeypatch.chdir(tmp_path / "work")
    before = contents(tmp_path)
    for place in ("bank", "app", "link", "work", "bank/a/..", "work/sub/.."):
        for write in refused_writers(tmp_path / place):
            with pytest.raises(TunescopeError, match=r"Choose another|Name an entry in it|of its own"):
                write()
    assert contents(tmp_path) == before


def test_an_entry_is_replaced_when_told_and_by_python_as_by_the_command(tmp_path: Path) -> None:
    prompting(tmp_path / "a")
    with pytest.raises(TunescopeError, match=r"exists already.*--overwrite"):
        prompting(tmp_path / "a")
    prompting(tmp_path / "a", overwrite=True)
    with pytest.raises(TunescopeError, match="exists and is no comparison"):
        comparison(tmp_path / "a", restart=True)
    (tmp_path / "a" / "thesis.txt").write_text("precious")
    with pytest.raises(TunescopeError, match=r"holds what tunescope did not write there: thesis\.txt"):
        prompting(tmp_path / "a", overwrite=True)
    assert (tmp_path / "a" / "thesis.txt").read_text() == "precious"


def test_an_entry_from_before_markers_is_known_by_its_record(tmp_path: Path) -> None:
    train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, out=tmp_path / "a")
    (tmp_path / "a" / storage.MARKER).unlink()
    prompting(tmp_path / "a", overwrite=True)
    (tmp_path / "a" / storage.MARKER).unlink()
    (tmp_path / "a" / "notes.txt").write_text("precious")
    with pytest.raises(TunescopeError, match=r"did not write there: notes\.txt"):
        prompting(tmp_path / "a", overwrite=True)
    (tmp_path / "a" / "notes.txt").unlink()
    (tmp_path / "a" / bank.RECORD).write_text('{"name": "of another program"}')
    with pytest.raises(TunescopeError, match="is no bank entry"):
        prompting(tmp_path / "a", overwrite=True)


@pytest.mark.parametrize("file", ["tokenizer-notes.txt", "model_old/model.safetensors", "tokenizer/a.txt"])
def test_an_entry_from_before_markers_has_files_of_known_names_only(file: str, tmp_path: Path) -> None:
    prompting(tmp_path / "a")
    (tmp_path / "a" / storage.MARKER).unlink()
    (tmp_path / "a" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "a" / file).write_text("precious")
    with pytest.raises(TunescopeError, match=f"did not write there: {file}"):
        prompting(tmp_path / "a", overwrite=True)


@pytest.mark.parametrize("name", [".poetry.lock", ".a.tmp-0123456789ab"])
def test_a_folder_with_a_scratch_file_s_name_is_not_ours(name: str, tmp_path: Path) -> None:
    (tmp_path / "a" / name).mkdir(parents=True)
    (tmp_path / "a" / name / "thesis.txt").write_text("precious")
    before = contents(tmp_path)
    for write in refused_writers(tmp_path / "a"):
        with pytest.raises(TunescopeError, match="Choose another"):
            write()
    assert contents(tmp_path) == before


def test_a_comparison_begins_anew_after_a_kill_while_an_entry_was_saved(tmp_path: Path) -> None:
    """Its unfinished folder is ours, but not while somebody writes it."""
    comparison(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), storage.atomic_folder(tmp_path / "run" / "bank" / "lora") as partial:
        (partial / "model.safetensors").touch()
        shutil.copytree(partial, left := partial.with_name(".lora.tmp-0123456789ab"))
        raise KeyboardInterrupt
    with writing(tmp_path / "run" / "bank" / "lora"), pytest.raises(TunescopeError, match="did not write there"):
        comparison(tmp_path / "run", restart=True)
    comparison(tmp_path / "run", restart=True)
    assert not left.exists()


NOT_OURS = ["notes.txt", "rows/mine.txt", "rows/mine/a.json", "bank/zero-shot/notes.txt", "bank/mine/a.txt"]


@pytest.mark.parametrize("file", NOT_OURS)
def test_a_comparison_that_holds_more_is_not_begun_anew(file: str, tmp_path: Path) -> None:
    comparison(tmp_path / "run")
    comparison(tmp_path / "run", restart=True)
    (tmp_path / "run" / file).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / file).write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(TunescopeError, match=f"did not write there: {file}"):
        comparison(tmp_path / "run", restart=True)
    assert contents(tmp_path) == before


def test_an_entry_of_ones_own_in_a_comparison_is_kept(tmp_path: Path) -> None:
    comparison(tmp_path / "run")
    prompting(tmp_path / "run" / "bank" / "mine")
    with pytest.raises(TunescopeError, match="mine is no entry of the comparison"):
        comparison(tmp_path / "run", restart=True)
    assert (tmp_path / "run" / "bank" / "mine" / bank.RECORD).is_file()


@pytest.mark.parametrize("restart", [False, True])
def test_unfinished_work_behind_a_link_is_not_taken_for_ours(restart: bool, tmp_path: Path) -> None:
    (tmp_path / "important" / "a").mkdir(parents=True)
    (tmp_path / "important" / "a" / "thesis.txt").write_text("precious")
    (tmp_path / "important" / "p.jsonl").mkdir()
    (tmp_path / "important" / "p.jsonl" / "thesis.txt").write_text("precious")
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / ".training").symlink_to(tmp_path / "important")
    (tmp_path / "bank" / ".pairs").symlink_to(tmp_path / "important")
    with pytest.raises(TunescopeError, match="is no unfinished run"):
        train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, out=tmp_path / "bank" / "a", restart=restart)
    with pytest.raises(TunescopeError, match="is no unfinished call of pairs"):
        pairs(tmp_path / "bank" / "p.jsonl", restart=restart)
    assert len(contents(tmp_path / "important")) == 2


def test_a_removal_that_was_killed_can_be_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = storage.claim_folder(tmp_path / "a", THING)
    (folder / "notes").mkdir()
    for name in "ab":
        (folder / "notes" / name).touch()
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        storage.remove_folder(tmp_path / "a", THING)
    monkeypatch.undo()
    storage.remove_folder(tmp_path / "a", THING)
    storage.remove_folder(tmp_path / "a", THING)
    assert not (tmp_path / "a").exists()


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(TunescopeError, match="lead in a circle"):
        storage.check_replaceable(tmp_path / "a", THING)


# Files


def test_a_plot_replaces_itself_and_nothing_else(tmp_path: Path) -> None:
    card = {"reliability": [], "calibration_error": 0.0, "rows": 3}
    plot = tmp_path / "plot.html"
    for _ in range(2):
        plot_reliability(card, plot)
    for text in ("<p>thesis</p>", plot.read_text() + "<p>my note</p>"):
        plot.write_text(text)
        with pytest.raises(TunescopeError, match="was not written by tunescope"):
            plot_reliability(card, plot)
        assert plot.read_text() == text


def test_pairs_replace_their_own_files_when_told(tmp_path: Path) -> None:
    out = tmp_path / "p.jsonl"
    pairs(out)
    with pytest.raises(TunescopeError, match=r"exists already.*--overwrite"):
        pairs(out)
    pairs(out, overwrite=True)
    for path in (out, samples_path(out)):
        ours = path.read_text()
        path.write_text(ours + json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
        with pytest.raises(TunescopeError, match="was not written by tunescope"):
            pairs(out, overwrite=True)
        path.write_text(ours)


def test_a_file_that_was_killed_while_it_was_written_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    storage.write_output(file, "one")
    write = storage.atomic_write

    def killed(path: Path, content: str | bytes) -> None:
        if path == file:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr("tunescope.storage.outputs.atomic_write", killed)
    for text in ("two", "three"):
        with pytest.raises(KeyboardInterrupt):
            storage.write_output(file, text)
    monkeypatch.undo()
    storage.write_output(file, "four")
    assert file.read_text() == "four"


def test_a_home_that_nobody_expanded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("~/a", "~"):
        for write in [*refused_writers(Path(place)), lambda: storage.write_output(Path("~/a"), "")]:
            with pytest.raises(TunescopeError, match=r"begins with ~.*expanduser"):
                write()
    assert not list(tmp_path.iterdir())


# A run that stopped


def test_unfinished_runs_of_ours_go_on_and_are_forgotten(tmp_path: Path) -> None:
    def stop(metrics: StepMetrics) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "bank" / "sub" / ".." / "a"
    (tmp_path / "bank" / "sub").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, out=out, on_step=stop)
    assert work_folder(out) == tmp_path / "bank" / ".training" / "a" and work_folder(out).is_dir()
    train(tiny_base(), LoRA(), data=ROWS, settings=SETTINGS, out=out, restart=True)
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == ["a", "sub"]
