"""Customizations share the rows, and a scale says how strongly one acts."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from tests.inference.mix import customized
from tests.tiny import tiny_base

from tunescope.errors import EngineError, QueueFullError, TunescopeError
from tunescope.inference import Engine, Request, Sampling
from tunescope.inference.turns import _PATIENCE


def engine_of(*names: str, **options: int) -> Engine:
    engine = Engine(tiny_base("llama"), **options)
    for name in names:
        engine.load(name, customized(name, "llama"))
    return engine


def ask(prompt: str, name: str | None = None, tokens: int = 4, **more: float) -> Request:
    return Request(prompt, name, Sampling(max_new_tokens=tokens, min_new_tokens=tokens, logprobs=True), **more)


def test_a_flood_for_one_does_not_hold_up_another() -> None:
    engine = engine_of("lora", "ia3", slots=4)
    flood = [engine.submit(ask(f"flood {i}", "lora")) for i in range(60)]
    engine.step()
    late, base = engine.submit(ask("late", "ia3")), engine.submit(ask("and the base"))
    while not (late.done and base.done):
        engine.step()
    # They came in with the first rows that were free, when of the flood only what had come in before was done.
    assert sum(ticket.done for ticket in flood) <= 8
    while engine.step():
        pass
    assert all(ticket.done for ticket in flood)


def test_rows_are_shared_evenly_between_two_floods() -> None:
    engine = engine_of("lora", "ia3", slots=6)
    first = [engine.submit(ask(f"a {i}", "lora")) for i in range(30)]
    second = [engine.submit(ask(f"b {i}", "ia3")) for i in range(30)]
    seen = 0
    while engine.step():
        running = [job.customization for job in engine.scheduler.rows]
        if len(running) == 6 and engine.scheduler.waiting:
            assert running.count("lora") == running.count("ia3") == 3
            seen += 1
    assert seen > 10 and all(ticket.done for ticket in (*first, *second))


def test_the_oldest_is_overtaken_only_so_often() -> None:
    engine = engine_of("lora", "ia3", slots=1)
    running = engine.submit(ask("first", "lora", tokens=2))
    patient = engine.submit(ask("patient", "lora", tokens=2))
    overtaking = 0
    while not patient.done:
        while engine.scheduler.queued < 3:  # there is always another customization's that waits
            engine.submit(ask("another", "ia3", tokens=1))
            overtaking += 1
        engine.step()
    assert running.done and overtaking <= _PATIENCE + 4


@pytest.mark.parametrize("name", ["lora", "ia3", "adapter", "adapter-houlsby"])
def test_at_scale_zero_it_is_the_base_and_at_one_itself(name: str) -> None:
    engine = engine_of(name)
    asked = [ask("hello there", name, scale=scale) for scale in (0.0, 1.0, 0.5)]
    asked += [ask("hello there"), ask("hello there", name)]
    off, on, half, plain, whole = (engine.generate([each])[0] for each in asked)
    assert off.tokens == plain.tokens and off.logprobs == plain.logprobs
    assert on.tokens == whole.tokens
    assert torch.allclose(torch.tensor(on.logprobs), torch.tensor(whole.logprobs), atol=1e-5)
    assert half.logprobs not in (plain.logprobs, whole.logprobs)


@pytest.mark.parametrize("name", ["lora", "ia3", "adapter"])
def test_a_scale_multiplies_what_is_added(name: str) -> None:
    """Against the formulas, on the tensors of the compiled customization."""
    made = engine_of(name)._loaded.get(name).effects
    assert made is not None
    scaled = made.scaled(0.25)
    assert scaled is not None
    for site, effect in made.linear.items():
        for found, given in zip(scaled.linear[site], effect, strict=True):
            assert (found is None) == (given is None)
        if effect.B is not None:
            assert torch.equal(scaled.linear[site].B, effect.B * 0.25)  # type: ignore[arg-type]
        for vector in ("scale", "input_scale"):
            if (given := getattr(effect, vector)) is not None:
                assert torch.allclose(getattr(scaled.linear[site], vector), 0.75 + 0.25 * given)
    for site, levels in made.bottleneck.items():
        for level, given in zip(scaled.bottleneck[site], levels, strict=True):
            assert torch.equal(level.up, given.up * 0.25) and torch.equal(level.up_bias, given.up_bias * 0.25)


@pytest.mark.parametrize(
    ("name", "why"),
    [("prompt-tuning", "Virtual tokens"), ("p-tuning", "Virtual tokens"), ("dora", "stretched"), (None, "the base")],
)
def test_what_has_no_scale_says_so(name: str | None, why: str) -> None:
    engine = engine_of(*([name] if name else []))
    with pytest.raises(EngineError, match=why):
        engine.submit(ask("hello", name, scale=0.5))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(EngineError, match="finite"):
            engine.submit(ask("hello", name, scale=bad))


def test_scaled_copies_leave_with_what_they_were_made_of() -> None:
    engine = engine_of("lora")
    for number in range(40):
        engine.generate([ask("hello", "lora", tokens=1, scale=number / 7 + 0.01)])
    assert len(engine._loaded._scaled) <= 16
    engine.load("lora", customized("lora", "llama"))
    assert not engine._loaded._scaled


def test_customizations_come_and_go_during_steps() -> None:
    """Loading, replacing and asking from threads while others' steps go on: no answer is another's."""
    engine = engine_of("lora", "ia3")
    wanted = {name: engine.generate([ask("what is it", name)])[0].tokens for name in ("lora", "ia3", None)}
    failures: list[str] = []
    stop = threading.Event()

    def reload() -> None:
        while not stop.is_set():
            engine.load("lora", customized("lora", "llama"))
            engine.load("other", customized("ia3", "llama"))
            engine.unload("other")

    async def asks() -> None:
        async def one(name: str | None) -> None:
            answer = await engine.answer(ask("what is it", name))
            if answer.tokens != wanted[name]:
                failures.append(f"{name}: {answer.tokens}")

        for _ in range(6):
            await asyncio.gather(*(one(name) for name in ("lora", "ia3", None) for _ in range(4)))

    loading = threading.Thread(target=reload)
    loading.start()
    try:
        asyncio.run(asks())
    finally:
        stop.set()
        loading.join()
    assert not failures


def test_the_queue_refuses_what_could_be_served_later() -> None:
    engine = engine_of(slots=1, max_waiting=2)
    for _ in range(2):
        engine.submit(ask("hello"))
    with pytest.raises(QueueFullError, match="2 of 2"):
        engine.submit(ask("hello"))


def test_the_likeliest_tokens_at_each_place() -> None:
    engine = engine_of("lora")
    sampling = Sampling(max_new_tokens=5, logprobs=True, top_logprobs=3)
    answer, alone = engine.generate([Request("hello", "lora", sampling), ask("hello", "lora")])
    assert answer.top_logprobs is not None and alone.top_logprobs is None
    for token, nats, top in zip(answer.tokens, answer.logprobs or [], answer.top_logprobs, strict=True):
        assert top[0][0] == token and abs(top[0][1] - nats) < 1e-5
        assert len(top) == 3 and top[0][1] >= top[1][1] >= top[2][1]
    with pytest.raises(TunescopeError, match="top_logprobs goes with logprobs"):
        Sampling(top_logprobs=2)
