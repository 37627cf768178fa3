"""Heads in the engine: completions scored beside rows of any customization, equal to each text by itself."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.inference.mix import METHODS, methods_of
from tests.objectives.pairs import PAIRS
from tests.tiny import ARCHITECTURES, tiny_base

import tunescope as ts
from tunescope import bank, storage
from tunescope.data import packing
from tunescope.data.encoding import Encoder
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import BankError, DataError, EngineError
from tunescope.inference import Engine, Generated, Item, Request, Sampling, ScoreRequest, head_scores, score
from tunescope.inference import candidates as candidates_of_inference
from tunescope.inference.passes import Passes
from tunescope.methods import Customized, Full, LoRA, Method, customize
from tunescope.methods.effects import Effect
from tunescope.objectives import Head, Reward
from tunescope.training import TrainSettings, train

COMPLETIONS = ("yes", "no no no", "it depends")
SAMPLING = Sampling(max_new_tokens=5, logprobs=True)


def with_heads(method: Method, arch: str = "llama", seed: int = 1) -> Customized:
    """A customization with a reward and five attributes, all of its tensors moved so far that each matters, and not so
    far that rounding grows beyond 1e-5 on its way through the layers."""
    base = tiny_base(arch)
    rows = [Row(({"role": "user", "content": f"row {i}"},), f"answer {i}", i) for i in range(4)]
    heads: dict[str, Effect] = {
        "head.reward": Head(base.hidden_size),
        "head.attributes": Head(base.hidden_size, 5, bias=True),
    }
    made = customize(base, method, default_template(base.tokenizer), rows, seed=seed, added=heads)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.customization.named_parameters():
            size = 0.1 if name.startswith("head_") else 0.15
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
        for parameter in made.base.model.parameters() if made.moves_base else ():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    made.finish()
    return made


@functools.cache
def judge(name: str, arch: str = "llama") -> Customized:
    return with_heads(METHODS[name], arch)


@torch.no_grad()
def alone(made: Customized, prompt: str, completion: str, head: str) -> list[float]:
    """The slow obvious version: one text in one pass of the customized base."""
    encoder = Encoder(made.base.tokenizer, made.template, 512)
    before, (own,) = encoder.candidates([{"role": "user", "content": prompt}], [completion])
    ids = torch.tensor([before + own])
    with made.active() as base:
        hidden = base.hidden(ids, torch.ones_like(ids))[0, -1].float()
    given = made.customization.heads[head]
    weight = given.get_parameter("weight").view(-1, len(hidden))
    return (weight @ hidden + (given.get_parameter("bias") if head == "attributes" else 0)).tolist()


def check(answer: Generated, made: Customized, request: ScoreRequest) -> None:
    assert answer.error is None and answer.reason == "score" and answer.finished and not answer.tokens
    assert answer.scores is not None
    for found, completion in zip(answer.scores, request.completions, strict=True):
        assert isinstance(request.prompt, str)
        expected = alone(made, request.prompt, completion, request.head)
        assert len(expected) == (5 if request.head == "attributes" else 1)
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_scores_of_every_method_beside_rows_that_decode(arch: str) -> None:
    names = [name for name in methods_of(arch) if METHODS[name].trains == "effects"]
    engine = Engine(tiny_base(arch))
    for name in names:
        engine.load(name, judge(name, arch))
    requests: list[Request | ScoreRequest] = []
    for i, name in enumerate(names):
        head = ("reward", "attributes")[i % 2]
        requests += [
            ScoreRequest("x" * (3 + 7 * i), COMPLETIONS[: 1 + i % 3], name, head),
            Request("y" * (5 + 3 * i), name, SAMPLING),
            Request("z" * (5 + 3 * i), None, Sampling(choices=("a", "bc"))),
        ]
    for request, answer in zip(requests, engine.generate(requests), strict=True):
        if isinstance(request, ScoreRequest):
            check(answer, judge(request.customization, arch), request)
            continue
        single = engine.generate([request])[0]
        assert answer.tokens == single.tokens and answer.error is None and answer.scores is None
        if answer.logprobs:
            assert answer.logprobs == pytest.approx(single.logprobs, abs=1e-4)


TEXTS = st.text("abcdefg ", min_size=1).filter(str.strip)
SCORED = st.tuples(st.sampled_from(["lora", "ia3", "dora", "prompt-tuning"]), TEXTS, st.lists(TEXTS, min_size=1))


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(SCORED, min_size=1, max_size=6),
    written=st.lists(TEXTS, max_size=3),
    slots=st.integers(1, 4),
    chunk=st.integers(8, 80),
    arch=st.sampled_from(["llama", "mistral", "gpt2"]),
)
def test_any_mix(rows: list[tuple[str, str, list[str]]], written: list[str], slots: int, chunk: int, arch: str) -> None:
    """Also where completions need several passes of a chunk."""
    engine = Engine(tiny_base(arch), slots=slots)
    for name in {name for name, _, _ in rows}:
        engine.load(name, judge(name, arch))
    asked = [ScoreRequest(text, completions, name) for name, text, completions in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tunescope.inference.scheduler._CHUNK", chunk)
        patch.setattr("tunescope.inference.scheduler._CHUNK_ALONE", chunk)
        answers = engine.generate([*asked, *(Request(text, None, SAMPLING) for text in written)])
    for request, answer in zip(asked, answers, strict=False):
        check(answer, judge(request.customization, arch), request)
    assert all(answer.error is None and answer.tokens for answer in answers[len(asked) :])


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_full_fine_tuning_scores_on_its_own_base(arch: str) -> None:
    made = with_heads(Full(), arch)
    engine = Engine(made.base)
    engine.load("judge", made)
    request = ScoreRequest("how is it?", COMPLETIONS, "judge")
    answer, other = engine.generate([request, Request("beside", None, SAMPLING)])
    check(answer, made, request)
    assert other.error is None
    rewards = ts.reward_scores(made, ["how is it?"] * 3, COMPLETIONS)
    assert rewards == pytest.approx([value for (value,) in answer.scores or ()], abs=1e-5)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "ia3", "adapter", "prompt-tuning", "prompt-tuning+lora"])
def test_reward_scores_equal_each_text_by_itself(name: str, arch: str) -> None:
    prompts = ["a", "a longer prompt", "a", "a longer prompt", "c"]
    completions = ["yes", "no", "perhaps", "yes", "no no"]
    expected = [alone(judge(name, arch), p, c, "reward")[0] for p, c in zip(prompts, completions, strict=True)]
    assert ts.reward_scores(judge(name, arch), prompts, completions) == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Passes]:
    """The passes that scoring makes."""
    made: list[Passes] = []

    class Counted(Passes):
        def __init__(self, base: ts.Base, rows: int) -> None:
            super().__init__(base, rows)
            made.append(self)

    monkeypatch.setattr("tunescope.inference.scoring.Passes", Counted)
    return made


def encoded(made: Customized, prompt: str, texts: list[str]) -> tuple[list[int], list[list[int]]]:
    encoder = Encoder(made.base.tokenizer, made.template, 512)
    return encoder.candidates([{"role": "user", "content": prompt}], texts)


def test_a_prompt_is_computed_once_for_all_its_completions(counted: list[Passes]) -> None:
    made, texts = judge("lora"), [f"text {i}" for i in range(9)]
    prompt, completions = encoded(made, "p" * 200, texts)
    ts.reward_scores(made, ["p" * 200] * 9, texts)
    assert counted[0].count == 1
    assert counted[0].positions == len(prompt) + sum(map(len, completions))

    engine = Engine(made.base)
    engine.load("judge", made)
    assert engine.generate([ScoreRequest("p" * 200, texts, "judge")])[0].error is None
    assert engine.scheduler.passes.positions == len(prompt) + sum(map(len, completions))


def test_more_completions_than_fit_a_pass(counted: list[Passes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_of_inference, "PASS_TOKENS", 128)
    monkeypatch.setattr(packing, "PASS_TOKENS", 128)
    made, texts = judge("lora"), [f"text {i}" + "." * i for i in range(30)]
    prompt, completions = encoded(made, "p" * 60, texts)
    rewards = ts.reward_scores(made, ["p" * 60] * 30, texts)
    assert rewards == pytest.approx([alone(made, "p" * 60, text, "reward")[0] for text in texts], abs=1e-5)
    # In every pass but the first, the prompt's last token again.
    passes = counted[0].count
    assert passes > 2
    assert counted[0].positions == len(prompt) + sum(map(len, completions)) + passes - 1

    found = score(made, [Item(prompt, completions)])[0]
    apart = [score(made, [Item(prompt, [completion])])[0][0] for completion in completions]
    assert [each.logprob for each in found] == pytest.approx([each.logprob for each in apart], abs=1e-4)


def test_pairs_are_measured_with_the_prompt_computed_once(counted: list[Passes]) -> None:
    made = train(tiny_base(), LoRA(), Reward(), PAIRS, settings=TrainSettings(max_steps=2)).customized
    ts.evaluate_preferences(made, Reward(), PAIRS[:1])
    prompt, completions = Encoder(made.base.tokenizer, made.template, 512).candidates(
        PAIRS[0].messages, [PAIRS[0].chosen, PAIRS[0].rejected]
    )
    assert counted[0].positions == len(prompt) + sum(map(len, completions))


def test_what_cannot_be_scored_is_refused_alone() -> None:
    engine = Engine(tiny_base("llama"))
    engine.load("judge", judge("lora"))
    plain = customize(tiny_base("llama"), LoRA(), default_template(tiny_base("llama").tokenizer))
    engine.load("plain", plain)
    good = ScoreRequest("a", ["b"], "judge")
    bad = {
        "plain cannot score with a head 'reward': it has no head": ScoreRequest("a", ["b"], "plain"),
        "judge cannot score with a head 'value': its heads are reward, attributes": ScoreRequest(
            "a", ["b"], "judge", "value"
        ),
        "no completion": ScoreRequest("a", [], "judge"),
        "Did you mean judge": ScoreRequest("a", ["b"], "juge"),
        "context of 512": ScoreRequest("a", ["b" * 600], "judge"),
    }
    answers = engine.generate([good, *bad.values(), good])
    for answer in (answers[0], answers[-1]):
        check(answer, judge("lora"), good)
    for message, answer in zip(bad, answers[1:], strict=False):
        assert message in (answer.error or "")
    with pytest.raises(EngineError, match="it has no head"):
        head_scores(plain, [Item([1], [[2]])], "reward")
    with pytest.raises(DataError, match="--objective reward"):
        ts.reward_scores(plain, ["a"], ["b"])


def test_a_head_that_is_not_finite_is_refused_and_one_that_overflows_ends_its_own_row() -> None:
    engine = Engine(tiny_base("llama"))
    for value in (torch.nan, 3e38):
        made = with_heads(LoRA(rank=2))
        with torch.no_grad():
            made.customization.heads["reward"].get_parameter("weight").fill_(value)
        if value != value:
            with pytest.raises(EngineError, match=r"head\.reward hold values that are not finite"):
                engine.load("judge", made)
            continue
        engine.load("judge", made)
    engine.load("other", judge("lora"))
    good = ScoreRequest("a", ["b"], "other")
    lost, kept = engine.generate([ScoreRequest("a", ["b"], "judge"), good])
    assert lost.reason == "error" and "not finite" in (lost.error or "") and lost.scores is None
    check(kept, judge("lora"), good)


def test_a_step_of_the_optimizer_leaves_what_is_loaded_alone() -> None:
    made, request = with_heads(LoRA(rank=2)), ScoreRequest("a", COMPLETIONS, "judge")
    engine = Engine(made.base)
    engine.load("judge", made)
    before = engine.generate([request])[0].scores
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.add_(1)
    assert engine.generate([request])[0].scores == before
    engine.load("judge", made)
    check(engine.generate([request])[0], made, request)


def test_entries_keep_their_head_by_its_old_name_and_shape_and_verify_it(tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    train(tiny_base(), LoRA(), Reward(), PAIRS, settings=TrainSettings(max_steps=3, lr=1e-2), out=folder)
    tensors = load_file(folder / "customization.safetensors")
    assert tensors["head.reward.weight"].shape == (tiny_base().hidden_size,)
    kept = load_file(folder / "check.safetensors")
    assert kept["head.reward"].shape == (len(kept["logits"]), 1) and kept["head.reward"].abs().max() > 0
    assert bank.verify(folder, tiny_base()).max_error == 0

    (folder / storage.MARKER).unlink()  # without a marker, only the tensors have a checksum
    save_file({"logits": kept["logits"]}, folder / "check.safetensors")  # as earlier versions wrote it
    assert bank.verify(folder, tiny_base()).max_error == 0
    save_file({**kept, "head.reward": kept["head.reward"] + 1}, folder / "check.safetensors")
    with pytest.raises(BankError, match="other outputs"):
        bank.verify(folder, tiny_base())
