"""The engine: any row, any customization, in any order, equal to each row alone."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.mix import METHODS, customized, methods_of, reference_logits
from tests.tiny import ARCHITECTURES, tiny_base, tiny_model, tiny_tokenizer

from tunescope import bank
from tunescope.bank import BaseRecord, Record
from tunescope.base import Base
from tunescope.base.fingerprint import hash_weights
from tunescope.data.encoding import Encoder
from tunescope.data.template import default_template
from tunescope.errors import EngineError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.compiled import Compiled
from tunescope.methods import Customization, Customized, Full, LoRA, ZeroShot, customize


def engine_of(arch: str = "llama", names: tuple[str, ...] | None = None, **options: int) -> Engine:
    engine = Engine(tiny_base(arch), **options)
    for name in methods_of(arch) if names is None else names:
        engine.load(name, customized(name, arch))
    return engine


def reference_of(name: str | None, arch: str = "llama") -> Customized:
    base = tiny_base(arch)
    plain = Customized(base, Customization(ZeroShot(), default_template(base.tokenizer), {}), base)
    return plain if name is None else customized(name, arch)


def check(answer: Generated, request: Request, arch: str = "llama") -> None:
    """Each token is the likeliest one of the row run alone, and its log-probability is the same."""
    assert answer.error is None
    made = reference_of(request.customization, arch)
    prompt = Encoder(made.base.tokenizer, made.template, 512).prompt([{"role": "user", "content": request.prompt}]).ids
    assert answer.prompt_tokens == len(prompt)
    logprobs = reference_logits(made, prompt, answer.tokens).log_softmax(-1)
    found = torch.tensor(answer.logprobs)
    assert torch.allclose(found, logprobs.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0], atol=1e-4)
    assert torch.allclose(found, logprobs.amax(-1), atol=1e-4)  # a tie within rounding may go either way


def ask(prompt: str, name: str | None, tokens: int = 6) -> Request:
    return Request(prompt, name, Sampling(max_new_tokens=tokens, logprobs=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_method_in_one_batch_on_every_architecture(arch: str) -> None:
    requests = [ask("x" * (3 + 5 * i), name) for i, name in enumerate((None, *methods_of(arch)))]
    answers = engine_of(arch).generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        check(answer, request, arch)


TEXTS = st.text("abcdefg ", min_size=1).filter(str.strip)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from([None, *METHODS]), TEXTS, st.integers(1, 9)), min_size=1, max_size=12),
    slots=st.integers(1, 5),
    arch=st.sampled_from(["llama", "mistral", "gpt2"]),
)
def test_any_mix_in_any_order(rows: list[tuple[str | None, str, int]], slots: int, arch: str) -> None:
    requests = [ask(text, name, tokens) for name, text, tokens in rows]
    for request, answer in zip(requests, engine_of(arch, slots=slots).generate(requests), strict=True):
        check(answer, request, arch)


def test_rows_join_and_leave_while_others_run() -> None:
    engine = engine_of(slots=3)
    requests = [ask("first " * 9, "lora", 12), ask("second", "ia3", 3), ask("third", None, 5), ask("later", "adapter")]
    tickets = []
    for request in requests:
        tickets.append(engine.submit(request))
        engine.step()
        engine.step()
    while engine.step():
        pass
    for request, ticket in zip(requests, tickets, strict=True):
        check(ticket.result(), request)


def test_long_prompts_are_computed_in_chunks_between_the_steps_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunescope.inference.scheduler._CHUNK", 16)
    engine = engine_of(slots=3)
    writing = engine.submit(ask("short", "lora", 30))
    while not writing.tokens:
        engine.step()
    long, other = engine.submit(ask("y" * 100, "ia3", 2)), engine.submit(ask("brief", None, 2))
    before = writing.tokens
    steps = 0
    while not long.tokens:
        engine.step()
        steps += 1
        assert writing.tokens == before + steps  # a chunk never makes a row that writes miss a step
    assert steps >= 100 // 16
    assert other.done  # nor does the long prompt hold up the short one
    while engine.step():
        pass
    for ticket, request in ((writing, ask("short", "lora", 30)), (long, ask("y" * 100, "ia3", 2))):
        check(ticket.result(), request)


def test_a_shared_beginning_is_computed_once() -> None:
    engine = engine_of(names=("few-shot",))
    requests = [ask(text, "few-shot", 1) for text in ("one", "two", "six")]
    answers = engine.generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        check(answer, request)
    own = [answer.prompt_tokens - answer.cached_tokens for answer in answers[1:]]
    beginning = answers[1].cached_tokens
    assert beginning > 50 > max(own)
    # All of the first prompt, and of the others what is their own.
    assert engine.scheduler.passes.positions == answers[0].prompt_tokens + sum(own)
    # A later request finds it kept.
    assert engine.generate([ask("more", "few-shot", 1)])[0].cached_tokens == beginning


def test_the_least_recently_used_beginning_goes_first() -> None:
    engine = engine_of(names=("few-shot", "system"))
    engine.generate([ask("a", "few-shot", 1), ask("a", "system", 1)])
    cache = engine.scheduler.prefixes
    assert len(cache) == 2
    cache.budget = cache.nbytes  # room for these two
    engine.generate([ask("b", "few-shot", 1)])
    engine.generate([ask("b" * 30, None, 1)])  # the base's own beginning is shorter than what is worth keeping
    assert engine.generate([ask("b", "few-shot", 1)])[0].cached_tokens
    assert engine.generate([ask("b", "system", 1)])[0].cached_tokens
    cache.budget = cache.nbytes - 1
    engine.generate([Request("c" * 5, "few-shot", Sampling(temperature=1, n=2, max_new_tokens=1))])
    assert cache.nbytes <= cache.budget


def test_samples_of_one_prompt_share_its_computation() -> None:
    engine = engine_of()
    request = Request("z" * 60, "lora", Sampling(temperature=1.0, n=4, max_new_tokens=3, seed=5))
    answer = engine.generate([request])[0]
    assert len(answer.others) == 3
    assert len({tuple(each.tokens) for each in (answer, *answer.others)}) > 1
    assert [each.cached_tokens for each in answer.others] == [answer.prompt_tokens - 1] * 3
    assert engine.generate([request])[0].tokens == answer.tokens


def test_what_a_row_draws_does_not_depend_on_its_neighbors() -> None:
    request = Request("draw", "ia3", Sampling(temperature=1.2, top_p=0.9, seed=3, max_new_tokens=10))
    alone = engine_of().generate([request])[0]
    others = [Request("w" * i, name, Sampling(temperature=2.0, seed=i)) for i, name in enumerate(METHODS, start=1)]
    beside = engine_of(slots=6).generate([*others[:4], request, *others[4:]])[4]
    assert beside.tokens == alone.tokens


def test_choices_are_answered_by_the_likelihood_of_the_whole() -> None:
    texts = ("yes", "no", "perhaps not")
    for name in (None, "lora", "prompt-tuning"):
        request = Request("is it?", name, Sampling(choices=texts, logprobs=True))
        answer = engine_of().generate([ask("other", "ia3"), request])[1]
        made = reference_of(name)
        encoder = Encoder(made.base.tokenizer, made.template, 512)
        prompt = encoder.prompt([{"role": "user", "content": "is it?"}]).ids
        totals = {}
        for text in texts:
            tokens = encoder.candidates([{"role": "user", "content": "is it?"}], [text])[1][0]
            logprobs = reference_logits(made, prompt, tokens).log_softmax(-1)
            totals[text] = float(logprobs.gather(1, torch.tensor(tokens)[:, None]).sum())
        assert answer.choice_logprobs == pytest.approx(totals, abs=1e-4)
        assert answer.text == max(totals, key=totals.__getitem__)
        assert sum(answer.logprobs or ()) == pytest.approx(max(totals.values()), abs=1e-4)


def test_bad_requests_are_refused_alone() -> None:
    requests = [
        ask("good", "lora"),
        ask("nobody", "lorra"),
        ask("x" * 600, None),
        ask("x" * 500, None, 100),
        ask(" ", None),
        ask("fine", None),
    ]
    answers = engine_of().generate(requests)
    check(answers[0], requests[0])
    check(answers[5], requests[5])
    assert "Did you mean lora" in (answers[1].error or "")
    assert "context of 512" in (answers[2].error or "")
    assert "with 100 new ones" in (answers[3].error or "")
    assert "empty" in (answers[4].error or "")


def test_a_full_queue_refuses_and_a_long_list_waits_outside() -> None:
    engine = engine_of(names=(), slots=2, max_waiting=3)
    for _ in range(3):
        engine.submit(ask("a", None))
    with pytest.raises(EngineError, match="queue is full: 3 of 3"):
        engine.submit(ask("a", None))
    while engine.step():
        pass
    assert all(answer.error is None for answer in engine.generate([ask("a", None, 1)] * 40))


def test_a_list_waits_outside_by_its_samples() -> None:
    engine = engine_of(names=(), slots=2, max_waiting=3)
    two, four = (Request("a", None, Sampling(max_new_tokens=2, temperature=1.0, n=n)) for n in (2, 4))
    engine.submit(ask("from elsewhere", None, 4))
    answers = engine.generate([two] * 10 + [four] + [two] * 5)
    assert "asks for 4 samples, and at most 3 can wait" in (answers.pop(10).error or "")
    assert all(answer.error is None and len(answer.others) == 1 for answer in answers)


def test_stop_tokens_are_of_the_base() -> None:
    sampling = Sampling(stop_tokens=(5, -1))
    assert "stop_tokens has -1" in (engine_of(names=()).generate([Request("a", None, sampling)])[0].error or "")


def test_cancelled_requests_leave_and_the_others_go_on() -> None:
    engine = engine_of(slots=2)
    requests = [ask(text, "lora", 8) for text in ("one", "two", "three", "four")]
    tickets = [engine.submit(request) for request in requests]
    for _ in range(3):
        engine.step()
    tickets[0].cancel()
    tickets[3].cancel()
    while engine.step():
        pass
    assert tickets[0].result().reason == tickets[3].result().reason == "cancelled"
    for number in (1, 2):
        check(tickets[number].result(), requests[number])


def test_customizations_are_replaced_while_rows_run() -> None:
    engine = engine_of(names=("lora",))
    engine.load("it", customized("lora"))
    before = engine.submit(ask("same", "it", 10))
    engine.step()
    engine.load("it", customized("ia3"))
    after = engine.submit(ask("same", "it", 10))
    while engine.step():
        pass
    check(before.result(), ask("same", "lora", 10))
    check(after.result(), ask("same", "ia3", 10))
    engine.unload("it")
    assert "Unknown customization 'it'" in (engine.generate([ask("same", "it")])[0].error or "")


def test_a_hundred_customizations_stay_within_their_budget(tmp_path: Path) -> None:
    base = tiny_base("llama")
    names = ("lora", "ia3", "adapter")
    for name in names:
        made = customized(name)
        record = Record(
            tunescope="0",
            method=made.method.name,
            method_settings=made.method.model_dump(mode="json"),
            objective="sft",
            template=made.template,
            base=BaseRecord(name="tiny", fingerprint=base.fingerprint),
        )
        bank.save(made, tmp_path / name, record)
    largest = max(Compiled.of(customized(name).customization, base).nbytes for name in names)
    engine = Engine(base, customizations_mb=3 * largest / 1e6)
    for i in range(100):
        engine.load(f"c{i}", tmp_path / names[i % 3])
        assert engine.customizations_mb <= 3 * largest / 1e6
    assert len(engine.names) == 100
    for i in (0, 50, 99):  # given up long ago, or still there
        request = ask("hello", f"c{i}")
        check(engine.generate([request])[0], ask("hello", names[i % 3]))
    # In memory only, a customization cannot be read again and stays.
    engine.load("kept", customized("dora"))
    engine.load("c0", tmp_path / "lora")
    check(engine.generate([ask("hello", "kept")])[0], ask("hello", "dora"))


def test_memory_of_a_customization_is_that_of_its_numbers() -> None:
    made = customized("lora")
    assert Compiled.of(made.customization, made.base).nbytes == 4 * made.trainable_parameters


def test_weights_of_their_own_and_other_bases_are_refused() -> None:
    base = tiny_base("llama")
    moved = customize(base, Full(), default_template(base.tokenizer))
    other = Base(tiny_model(seed=1), tiny_tokenizer(), name="other")
    engine = Engine(base)
    with pytest.raises(EngineError, match="spam: a full customization has weights of its own"):
        engine.load("spam", moved)
    with pytest.raises(EngineError, match="spam was made for other, which has another weights"):
        engine.load("spam", customize(other, LoRA(), default_template(other.tokenizer)))
    assert Engine(moved.base).generate([ask("works alone", None)])[0].error is None


def test_tensors_that_are_not_finite_are_refused() -> None:
    base = tiny_base("llama")
    made = customize(base, LoRA(), default_template(base.tokenizer))
    with torch.no_grad():
        next(made.customization.parameters()).fill_(torch.nan)
    with pytest.raises(EngineError, match="not finite"):
        Engine(base).load("broken", made)


def test_the_base_is_left_as_it_was() -> None:
    before = hash_weights(tiny_base("llama").model)
    engine_of().generate([ask("a", name) for name in METHODS])
    assert hash_weights(tiny_base("llama").model) == before
    assert not tiny_base("llama").model.model.layers[0].self_attn.q_proj._forward_hooks


def test_streams_give_the_whole_text() -> None:
    engine = engine_of()
    request = ask("stream", "lora", 20)
    assert "".join(engine.stream(request)) == engine_of().generate([request])[0].text
    pieces = engine.stream(request)
    next(pieces)
    pieces.close()
    assert not engine.step()


def test_threads_take_turns() -> None:
    engine = engine_of()
    requests = [ask(f"thread {i}", name) for i, name in enumerate(METHODS)]
    answers: dict[int, Generated] = {}
    threads = [
        threading.Thread(target=lambda i=i, r=r: answers.update({i: engine.generate([r])[0]}))  # type: ignore[misc]
        for i, r in enumerate(requests)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, request in enumerate(requests):
        check(answers[i], request)


def test_an_event_loop_serves_many_at_once() -> None:
    engine = engine_of(slots=4)
    requests = [ask(f"task {i}", name) for i, name in enumerate(METHODS)]

    async def everything() -> list[Generated]:
        async def pieces(request: Request) -> str:
            return "".join([piece async for piece in engine.astream(request)])

        streamed, *answers = await asyncio.gather(pieces(requests[0]), *map(engine.answer, requests))
        assert streamed == answers[0].text
        late = asyncio.create_task(engine.answer(ask("never mind", None, 200)))
        await asyncio.sleep(0.05)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        return answers

    for request, answer in zip(requests, asyncio.run(everything()), strict=True):
        check(answer, request)
    assert engine.scheduler.running <= 1
