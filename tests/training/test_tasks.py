"""Several tasks over one base: who shares what, what a table holds, and how one is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import tiny_base

from tunescope import bank
from tunescope.data.batching import collate
from tunescope.data.rows import Row
from tunescope.errors import BankError, DataError, TrainingError, TunescopeError, UnknownNameError
from tunescope.inference import Engine, Item, Request, Sampling, score
from tunescope.methods import IA3, Adapter, Full, LoRA, Method, PromptTuning, PTuning, ZeroShot
from tunescope.training import StepMetrics, Trained, TrainSettings, train, train_tasks
from tunescope.training.unfinished import work_folder

SETTINGS = TrainSettings(max_steps=6, batch_size=4)


def rows(task: int) -> list[Row]:
    """Rows of a task: each asks for another number of words, and is answered by labels of its own."""
    answers = (("yes", "no"), ("left", "right"), ("a b c", "d"))[task]
    return [
        Row(({"role": "user", "content": f"{task} " + "word " * (1 + (i + task) % 4)},), answers[i % 2], i + 1)
        for i in range(12 + task)
    ]


TASKS = {"spam": rows(0), "side": rows(1), "letters": rows(2)}
APART: list[Method] = [PromptTuning(virtual_tokens=5), LoRA(rank=2), IA3(), Adapter(bottleneck=4)]


def tensors(trained: Trained) -> dict[str, torch.Tensor]:
    return trained.customized.customization.tensors()


@pytest.mark.parametrize("method", APART, ids=lambda method: method.name)
def test_tasks_trained_together_equal_each_alone(method: Method) -> None:
    base = tiny_base()
    together = train_tasks(base, method, TASKS, settings=SETTINGS)
    for name, own in TASKS.items():
        alone = train(base, method, data=own, settings=SETTINGS)
        assert together[name].result.losses == pytest.approx(alone.result.losses, abs=1e-5)
        for key, tensor in tensors(alone).items():
            torch.testing.assert_close(tensors(together[name])[key], tensor, atol=1e-5, rtol=1e-4)
        assert together[name].record.labels == alone.record.labels


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_shared_encoder_predicts_each_task_by_its_own_input(encoder: Any) -> None:
    base, method = tiny_base(), PTuning(virtual_tokens=5, encoder=encoder)
    effect = method.effects_of_tasks(base, torch.Generator().manual_seed(0), list(TASKS))["embedding.prefix"]
    table = effect.table()  # type: ignore[attr-defined]
    for number in range(len(TASKS)):
        alone = effect.encoder(effect.inputs[number : number + 1])  # type: ignore[attr-defined, operator]
        torch.testing.assert_close(table[5 * number : 5 * number + 5], alone[0])
    # Rows of one task move its own input and the encoder, and no other task's input at all.
    table[5:10].pow(2).sum().backward()
    grad = effect.inputs.grad  # type: ignore[attr-defined]
    assert grad[1].abs().max() > 0 and grad[0].abs().max() == 0 == grad[2].abs().max()
    assert all(parameter.grad is not None for parameter in effect.encoder.parameters())  # type: ignore[union-attr, operator]


def test_p_tuning_learns_all_tasks_by_one_encoder(tmp_path: Path) -> None:
    base = tiny_base()
    settings = TrainSettings(max_steps=150, batch_size=12, lr=1e-2)
    found = train_tasks(base, PTuning(virtual_tokens=6), TASKS, settings=settings, out=tmp_path / "table")
    assert found["spam"].result is found["letters"].result, "one learner sees the rows of all"
    assert set(tensors(found["spam"])) == {"embedding.prefix.embeddings"}, "the encoder is dropped"
    for name, each in found.items():
        assert tensors(each)["embedding.prefix.embeddings"].shape == (6, base.embedding.weight.shape[1])
        assert each.customized.method == PTuning(virtual_tokens=6, task=name)
        files = load_file(tmp_path / "table" / name / "customization.safetensors")
        assert torch.equal(files["embedding.prefix.embeddings"], tensors(each)["embedding.prefix.embeddings"])
    # Each is better at its own rows than the virtual tokens of another task are.
    for name, own in TASKS.items():
        losses = {other: loss(each, own) for other, each in found.items()}
        assert min(losses, key=lambda other: losses[other]) == name, losses


def loss(trained: Trained, own: list[Row]) -> float:
    """Mean over a task's rows, of nats an answer, by a trained customization."""
    from tunescope.data.encoding import Encoder

    encoder = Encoder(trained.customized.base.tokenizer, trained.customized.template, 512)
    encoded = [encoder.encode(row) for row in own]
    found = score(trained.customized, [Item(each.prompt, [each.completion]) for each in encoded if each is not None])
    return -sum(each[0].logprob for each in found) / len(found)


def test_a_step_of_the_shared_encoder_is_the_mean_over_the_rows_of_all_tasks() -> None:
    """Against the same loss, put together by hand from each task's own template."""
    base, method = tiny_base(), PTuning(virtual_tokens=3, encoder="mlp")
    settings = TrainSettings(max_steps=1, batch_size=40)
    found = train_tasks(base, method, TASKS, settings=settings)["spam"].result.losses[0]
    effect = method.effects_of_tasks(base, torch.Generator().manual_seed(settings.seed), list(TASKS))
    table = effect["embedding.prefix"].table().detach()  # type: ignore[operator]
    total, tokens = 0.0, 0
    for number, own in enumerate(TASKS.values()):
        alone = train(base, PromptTuning(virtual_tokens=3), data=own, settings=TrainSettings(max_steps=1))
        alone.customized.customization.load_tensors({"embedding.prefix.embeddings": table[3 * number : 3 * number + 3]})
        from tunescope.data.encoding import Encoder

        encoder = Encoder(base.tokenizer, alone.customized.template, base.context_length)
        examples = [example for row in own if (example := encoder.encode(row)) is not None]
        scores = score(alone.customized, [Item(each.prompt, [each.completion]) for each in examples])
        total -= sum(each[0].logprob for each in scores)
        tokens += sum(len(each.completion) for each in examples)
        assert collate(examples).packed.targets.numel() == sum(len(each.completion) for each in examples)
    assert found == pytest.approx(total / tokens, abs=1e-4)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", [PTuning(virtual_tokens=3), PromptTuning(virtual_tokens=3)], ids=lambda m: m.name)
def test_a_killed_run_goes_on_to_the_same_bits(method: Method, tmp_path: Path) -> None:
    base, settings = tiny_base(), TrainSettings(max_steps=6, batch_size=4, checkpoint_every=2)
    whole = train_tasks(base, method, TASKS, settings=settings)
    out = tmp_path / "bank" / "table"

    def kill(metrics: StepMetrics) -> None:
        if metrics.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train_tasks(base, method, TASKS, settings=settings, out=out, on_step=kill)
    assert work_folder(out).is_dir() and not out.exists()
    with pytest.raises(TrainingError, match=r"unfinished run of .* other settings \(names\)"):
        train_tasks(base, method, {"spam": rows(0), "side": rows(1)}, settings=settings, out=out)
    with pytest.raises(TrainingError, match=r"other settings \(.*virtual_tokens"):
        changed = method.model_copy(update={"virtual_tokens": 4})
        train_tasks(base, changed, TASKS, settings=settings, out=out)
    steps: list[int] = []
    again = train_tasks(base, method, TASKS, settings=settings, out=out, on_step=lambda m: steps.append(m.step))
    assert steps == [5, 6] and not work_folder(out).exists()
    for name in TASKS:
        assert again[name].result.losses == whole[name].result.losses
        for key, tensor in tensors(whole[name]).items():
            assert torch.equal(tensors(again[name])[key], tensor)


def test_on_step_ends_all_tasks_early() -> None:
    found = train_tasks(
        tiny_base(), PromptTuning(virtual_tokens=3), TASKS, settings=SETTINGS, on_step=lambda metrics: metrics.step == 2
    )
    assert all(each.result.steps <= 3 for each in found.values())


@pytest.fixture
def table(tmp_path: Path) -> Path:
    train_tasks(tiny_base(), PromptTuning(virtual_tokens=3), TASKS, settings=SETTINGS, out=tmp_path / "bank" / "table")
    return tmp_path / "bank" / "table"


def test_a_task_is_named_behind_the_table(table: Path) -> None:
    base = tiny_base()
    assert bank.read_record(f"{table}:side").labels == ("left", "right")
    assert bank.verify(f"{table}:side", base).sealed
    with pytest.raises(UnknownNameError, match=r"Unknown task of the table .*'sides'.*mean side.*letters, side, spam"):
        bank.load(f"{table}:sides", base)
    with pytest.raises(BankError, match=r"holds 3 entries and is none itself: name one"):
        bank.load(table, base)
    assert bank.names_in(table.parent) == ["table:letters", "table:side", "table:spam"]
    engine = Engine(base)
    for name in ("side", "spam"):
        engine.load(name, f"{table}:{name}")
    asked = [Request(TASKS["spam"][0].messages, name, Sampling(max_new_tokens=4)) for name in ("side", "spam")]
    together = engine.generate(asked)
    alone = [engine.generate([each])[0] for each in asked]
    assert [each.tokens for each in together] == [each.tokens for each in alone]


def files(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_later_task_leaves_the_others_byte_for_byte(table: Path) -> None:
    base = tiny_base()
    later = table.parent / "later"
    train(base, PTuning(virtual_tokens=4, task="later"), data=rows(1), settings=SETTINGS, out=later)
    grown = table.parent / "grown"
    assert bank.join([table, later], grown) == ["letters", "side", "spam", "later"]
    for name in TASKS:
        assert files(grown / name) == files(table / name)
    assert bank.verify(f"{grown}:later", base).sealed
    # And apart again.
    made = bank.split(grown, table.parent / "apart")
    assert [path.name for path in made] == ["later", "letters", "side", "spam"]
    for path in made:
        assert bank.verify(path, base).sealed
        before = files(grown / path.name)
        assert {name: content for name, content in files(path).items() if name in before} == {
            name: content for name, content in before.items() if name in files(path)
        }


def test_tables_and_entries_do_not_replace_each_other(table: Path) -> None:
    base, later = tiny_base(), table.parent / "later"
    train(base, LoRA(rank=2), data=rows(1), settings=SETTINGS, out=later)
    with pytest.raises(TunescopeError, match="exists already"):
        train(base, LoRA(rank=2), data=rows(1), settings=SETTINGS, out=table)
    with pytest.raises(TunescopeError, match="is no bank entry"):
        train(base, LoRA(rank=2), data=rows(1), settings=SETTINGS, out=table, overwrite=True)
    with pytest.raises(TunescopeError, match="exists already"):
        bank.join([later], table)
    with pytest.raises(TunescopeError, match="is no table of tasks"):
        bank.join([table], later, overwrite=True)
    with pytest.raises(BankError, match="is no table of tasks"):
        bank.split(later, table.parent)
    with pytest.raises(BankError, match="have one name, side"):
        bank.join([table, table / "side"], table.parent / "new")
    bank.join([later], table.parent / "one")
    with pytest.raises(TunescopeError, match="later exists already"):
        bank.split(table.parent / "one", table.parent)
    for out in (later / "inside", table / "spam" / "inside"):
        with pytest.raises(TunescopeError, match="lies in the entry"):
            bank.join([later, table], out)
    with pytest.raises(TunescopeError, match="lies in the entry"):
        bank.split(table, table / "spam")
    with pytest.raises(TunescopeError, match="stands between a table and its task"):
        train(base, LoRA(rank=2), data=rows(1), settings=SETTINGS, out=f"{table}:new")
    with pytest.raises(BankError, match="no entry to join"):
        bank.join([], table.parent / "none")
    assert not (table.parent / "none").exists()
    bank.join([later], table, overwrite=True)
    assert bank.names_in(table.parent) == ["later", "one:later", "table:later"]


def test_a_damaged_entry_is_not_copied(table: Path) -> None:
    path = table / "spam" / "metrics.jsonl"
    path.write_text(path.read_text() + "{}\n")
    for copy in (lambda: bank.join([table], table.parent / "new"), lambda: bank.split(table, table.parent / "new")):
        with pytest.raises(BankError, match=r"metrics\.jsonl.*damaged or changed"):
            copy()
    assert not (table.parent / "new").exists()


def test_a_table_without_its_hidden_marker_is_read_and_not_replaced(table: Path) -> None:
    (table / ".tunescope.json").unlink()
    assert bank.read_record(f"{table}:side").labels == ("left", "right")
    assert bank.names_in(table.parent) == ["table:letters", "table:side", "table:spam"]
    with pytest.raises(TunescopeError, match="is a bank with 3 entries"):
        bank.join([table], table, overwrite=True)
    assert bank.names_in(table.parent / "nowhere") == []


def test_one_task_that_fails_ends_all_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that is not finite: nothing is trained on in vain."""
    from tunescope.training.learner import Learner

    taken, loss = [], Learner.loss

    def poisoned(self: Learner, part: Any, hidden: torch.Tensor) -> torch.Tensor:
        taken.append(self.step)
        found = loss(self, part, hidden)
        return found * float("nan") if len(self._given) == len(TASKS["side"]) else found

    monkeypatch.setattr(Learner, "loss", poisoned)
    with pytest.raises(TrainingError, match=r"side: The gradient is not finite at step 1"):
        train_tasks(tiny_base(), PromptTuning(virtual_tokens=3), TASKS, settings=SETTINGS)
    assert max(taken) == 0


def test_entries_of_different_bases_do_not_join(tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        train(tiny_base(name), PromptTuning(virtual_tokens=2), data=rows(0), settings=SETTINGS, out=tmp_path / name)
    with pytest.raises(BankError, match="made for different bases"):
        bank.join([tmp_path / "llama", tmp_path / "gpt2"], tmp_path / "table")
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    ("method", "tasks", "said"),
    [
        (ZeroShot(), TASKS, "zero-shot trains nothing"),
        (Full(), TASKS, "full moves the base's own weights"),
        (LoRA(), {"one": rows(0)}, "for several tasks, and 1 is given"),
        (LoRA(), {"a:b": rows(0), "c": rows(1)}, "cannot be called 'a:b'"),
        (LoRA(), {".a": rows(0), "c": rows(1)}, "cannot be called '.a'"),
        (LoRA(), {"a": [], "c": rows(1)}, "No training row is left"),
        (LoRA(), {"a": rows(0), "A": rows(1)}, "a and A differ in case only"),
        (LoRA(), {"a" * 65: rows(0), "c": rows(1)}, "cannot be called"),
        (LoRA(), {"a\n": rows(0), "c": rows(1)}, "cannot be called"),
    ],
)
def test_what_cannot_be_a_table(method: Method, tasks: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(TunescopeError, match=said):
        train_tasks(tiny_base(), method, tasks, settings=SETTINGS, out=tmp_path / "table")
    assert not (tmp_path / "table").exists() and not (tmp_path / ".training").exists()


def test_rows_of_all_tasks_in_one_file(tmp_path: Path) -> None:
    from tunescope.data.reading import read

    lines = [
        {"prompt": f"p{i}", "completion": "yes", "task": name}
        for i, name in enumerate(["spam", "side", "spam", "side", "side"])
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tables = read(path).by_value("task")
    assert {name: [row["prompt"] for row in own.rows] for name, own in tables.items()} == {
        "spam": ["p0", "p2"],
        "side": ["p1", "p3", "p4"],
    }
    assert tables["side"].lines == [2, 4, 5] and tables["side"].columns == ("prompt", "completion")
    with pytest.raises(DataError, match="has no column 'kind'"):
        read(path).by_value("kind")
    path.write_text(path.read_text() + json.dumps({"prompt": "p", "completion": "c", "task": ""}) + "\n")
    with pytest.raises(DataError, match="line 6: task is ''"):
        read(path).by_value("task")
