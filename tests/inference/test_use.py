"""A base computes as one thing at a time: as one customization for a step, or as itself for any number of passes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.mix import METHODS, customized
from tests.objectives.pairs import encoded_pairs
from tests.tiny import tiny_base
from torch import nn

from tunescope.base import Base
from tunescope.data.rows import Row
from tunescope.data.template import default_template
from tunescope.errors import BaseInUseError, EngineError, UnknownNameError
from tunescope.inference import Engine, Item, Request, Sampling, generate, score
from tunescope.methods import Customized, Full, LoRA, Method, PromptTuning, compose, customize
from tunescope.methods.acting import Hooks
from tunescope.objectives.reference import with_reference
from tunescope.training import TrainSettings, train

SAMPLING = Sampling(max_new_tokens=6)
REQUEST = Request("a b c", None, SAMPLING)
ROWS = [Row(({"role": "user", "content": f"row {i}"},), "yes", i) for i in range(6)]
IDS = torch.arange(8)[None]
WITH_EFFECTS = [name for name in METHODS if customized(name).customization.effects]


def base_of(arch: str = "llama") -> Base:
    return tiny_base(arch)  # by position, as ``customized`` asks for it: the same object


@torch.no_grad()
def logits(base: Base) -> torch.Tensor:
    return base.forward(IDS, torch.ones_like(IDS))


def answer(base: Base, customization: Customized | None = None) -> list[int]:
    engine = Engine(base)
    if customization is not None:
        engine.load("it", customization)
    (found,) = engine.generate([REQUEST if customization is None else Request("a b c", "it", SAMPLING)])
    assert found.error is None
    return found.tokens


async def _answered(base: Base) -> None:
    await Engine(base).answer(REQUEST)


def enter(made: Customized) -> None:
    with made.active():
        pass


# What no customization may be acting for.
OF_THE_BASE: dict[str, Callable[[str], Any]] = {
    "engine": lambda arch: answer(base_of(arch)),
    "engine-with-a-customization": lambda arch: answer(base_of(arch), customized("lora", arch)),
    "stream": lambda arch: list(Engine(base_of(arch)).stream(REQUEST)),
    "generate": lambda arch: generate(customized("system", arch), ["a b c"], SAMPLING),
    "score": lambda arch: score(customized("ia3", arch), [Item([1, 2], [[3], [4]])]),
    "reference": lambda arch: with_reference(base_of(arch), encoded_pairs(1)),
}
TOGETHER: dict[str, tuple[str, str]] = {
    "itself": ("lora", "This lora customization acts on tiny-llama already: leave out the inner"),
    "another": ("ia3", "ia3 cannot act on tiny-llama, where lora acts.* compose"),
    "one-without-effects": ("system", "system cannot act on tiny-llama, where lora acts"),
}


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("of_the_base", OF_THE_BASE)
def test_nothing_of_the_base_while_a_customization_acts(of_the_base: str, arch: str, empty_cache: Path) -> None:
    base, made = base_of(arch), customized("lora", arch)
    plain = logits(base)
    with made.active():
        acting = logits(base)
        with pytest.raises(BaseInUseError, match=f"needs tiny-{arch} as it is, and lora acts on it: .*on_step"):
            OF_THE_BASE[of_the_base](arch)
        assert torch.equal(logits(base), acting) and not torch.equal(acting, plain)
    assert torch.equal(logits(base), plain)
    OF_THE_BASE[of_the_base](arch)


@pytest.mark.parametrize("second", TOGETHER)
def test_no_two_customizations_at_once(second: str) -> None:
    base, made = base_of(), customized("lora")
    name, message = TOGETHER[second]
    with made.active():
        acting = logits(base)
        with pytest.raises(BaseInUseError, match=message):
            enter(customized(name))
        assert torch.equal(logits(base), acting)
    enter(customized(name))


def test_composed_they_act_together() -> None:
    both = customize(base_of(), compose(PromptTuning(), LoRA()), default_template(base_of().tokenizer))
    enter(both)


def test_a_customization_cannot_begin_within_a_pass() -> None:
    base = base_of()
    with base.use.untouched("A pass"), pytest.raises(BaseInUseError, match="lora cannot begin"):
        enter(customized("lora"))
    enter(customized("lora"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_an_exception_releases_the_base(error: type[BaseException]) -> None:
    base = base_of()
    plain = logits(base)
    with pytest.raises(error), customized("adapter").active():
        raise error
    assert torch.equal(logits(base), plain)
    enter(customized("lora"))


def test_an_effect_that_finds_no_site_releases_the_base() -> None:
    base = base_of()
    plain, made = logits(base), customize(base, LoRA(), default_template(base.tokenizer))
    effects = made.customization.effects
    effects["9.q.low_rank"] = next(iter(effects.values()))
    with pytest.raises(UnknownNameError, match=r"9\.q"):
        enter(made)
    assert torch.equal(logits(base), plain)
    enter(customized("lora"))


def test_a_refused_engine_serves_again() -> None:
    base = base_of()
    engine = Engine(base)
    expected = engine.generate([REQUEST])[0].tokens
    ticket = engine.submit(REQUEST)
    engine.step()
    with customized("lora").active():
        with pytest.raises(BaseInUseError, match="An engine's pass"):
            engine.step()
        assert ticket.done  # nobody waits for ever
        with pytest.raises(EngineError, match="An engine's pass needs tiny-llama as it is"):
            ticket.result()
        with pytest.raises(EngineError, match="An engine's pass needs tiny-llama as it is"):
            asyncio.run(_answered(base))
    assert engine.generate([REQUEST])[0].tokens == expected


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "ia3", "adapter"])
def test_a_copy_of_the_model_is_the_base_itself(name: str, arch: str) -> None:
    """A copy has the hooks too: of one that acts, and of one whose hooks only wait for its next step."""
    base, made = base_of(arch), customized(name, arch)
    plain, template = logits(base), default_template(base.tokenizer)
    with Hooks(base, [made.customization]):
        waiting = customize(base, Full(), template).base
        with made.active():
            acting = customize(base, Full(), template).base
            assert torch.equal(logits(waiting), plain) and torch.equal(logits(acting), plain)
    assert torch.equal(logits(waiting), plain) and torch.equal(logits(acting), plain)


@pytest.mark.parametrize("name", ["lora", "ia3", "adapter", "prompt-tuning", "dora+ia3"])
def test_hooks_that_stay_act_within_steps_only_and_once(name: str) -> None:
    base, made = base_of(), customized(name)
    ids = torch.tensor([[*made.template.virtual_ids, *range(8)]])

    def customized_logits() -> torch.Tensor:
        with torch.no_grad(), made.active():
            return base.forward(ids, torch.ones_like(ids))

    plain, expected = logits(base), customized_logits()
    waiting = [made.customization, customized("lora-all-linear").customization]
    with Hooks(base, waiting), Hooks(base, waiting[:1]):
        for _ in range(2):
            assert torch.equal(logits(base), plain)
            assert torch.equal(customized_logits(), expected)
    assert torch.equal(logits(base), plain)
    assert torch.equal(customized_logits(), expected)


# Threads.


@contextmanager
def beside(run: Callable[[], Any]) -> Iterator[list[BaseException]]:
    """``run`` in another thread, which has ended when the block has; yields what it raised."""
    raised: list[BaseException] = []

    def kept() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=kept)
    thread.start()
    try:
        yield raised
    finally:
        thread.join(60)
        assert not thread.is_alive()


def raised_beside(run: Callable[[], Any]) -> list[BaseException]:
    with beside(run) as raised:
        pass
    return raised


@pytest.mark.parametrize(
    "run",
    [
        answer,
        logits,
        lambda base: base.hidden(IDS, None),
        lambda base: enter(customized("lora")),
        lambda base: enter(customized("ia3")),
    ],
    ids=["engine", "forward", "hidden", "the-same-customization", "another-customization"],
)
def test_another_thread_is_refused_while_a_customization_acts(run: Callable[[Base], Any]) -> None:
    base = base_of()
    with customized("lora").active():
        (error,) = raised_beside(lambda: run(base))
        assert isinstance(error, BaseInUseError) and "in another thread" in str(error)
    assert not raised_beside(lambda: run(base))


def test_an_engine_beside_a_run_is_refused_and_the_run_goes_on() -> None:
    """The engine's thread asks within a step, and again between two: refused, and then served."""
    base, settings = base_of(), TrainSettings(max_steps=3, batch_size=2)
    alone = train(base, LoRA(rank=2), data=ROWS, settings=settings).result.losses
    expected, refused, served = answer(base), [], []

    def ask(_module: nn.Module, _args: Any) -> None:
        refused.extend(raised_beside(lambda: answer(base)))

    def between(_metrics: Any) -> None:
        assert not raised_beside(lambda: served.append(answer(base)))

    handle = base.sites["1.q"].module.register_forward_pre_hook(
        lambda module, args: ask(module, args) if threading.current_thread() is threading.main_thread() else None
    )
    try:
        found = train(base, LoRA(rank=2), data=ROWS, settings=settings, on_step=between).result.losses
    finally:
        handle.remove()
    assert found == alone and served == [expected] * 3
    assert len(refused) == 3 and all(isinstance(error, BaseInUseError) for error in refused)


def test_a_step_waits_for_the_passes_of_other_threads() -> None:
    base, entered, leave = base_of(), threading.Event(), threading.Event()
    order = []

    def pass_of_the_base() -> None:
        with base.use.untouched("A pass"):
            entered.set()
            leave.wait(60)
            order.append("pass")

    def act() -> None:
        with customized("lora").active():
            order.append("step")

    with beside(pass_of_the_base) as first:
        entered.wait(60)
        with beside(act) as second:
            while True:  # until the step waits: new passes are refused then
                try:
                    logits(base)
                except BaseInUseError:
                    break
            assert not order
            leave.set()
    assert not first and not second and order == ["pass", "step"]
    logits(base)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_engines_in_several_threads_share_a_base(arch: str) -> None:
    base = base_of(arch)
    requests = [Request("x" * (7 * i + 1), None, SAMPLING) for i in range(4)]
    expected = [Engine(base).generate([request])[0].tokens for request in requests]
    found: dict[int, list[list[int]]] = {}

    def serve(number: int) -> None:
        found[number] = [Engine(base).generate([requests[number]])[0].tokens for _ in range(8)]

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [tokens] * 8 for number, tokens in enumerate(expected)}


# One step at a time.


@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(virtual_tokens=3), Full()], ids=lambda m: m.name)
def test_between_two_steps_the_base_is_itself(method: Method) -> None:
    base, settings = base_of(), TrainSettings(max_steps=4, batch_size=2, lr=1e-2)
    plain, expected, seen = logits(base), answer(base), []
    alone = train(base, method, data=ROWS, settings=settings).result.losses
    engine = Engine(base)

    def look(_metrics: Any) -> None:
        assert torch.equal(logits(base), plain)
        seen.append(engine.generate([REQUEST])[0].tokens)

    assert train(base, method, data=ROWS, settings=settings, on_step=look).result.losses == alone
    assert seen == [expected] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WITH_EFFECTS)
def test_a_step_of_the_optimizer_leaves_served_rows_alone(name: str, dtype: torch.dtype) -> None:
    """Rows are under way, the tensors move in place, and a newcomer has the engine stack everything anew."""
    base = tiny_base("llama", dtype=dtype)
    made = customize(base, METHODS[name], default_template(base.tokenizer), seed=1)
    newcomer = customize(base, LoRA(rank=3), default_template(base.tokenizer), seed=2)
    request = Request("a b c", "it", Sampling(max_new_tokens=8, logprobs=True))

    def served(move: bool) -> list[tuple[list[int], list[float] | None]]:
        engine = Engine(base)
        engine.load("it", made)
        ticket = engine.submit(request)
        for _ in range(3):
            engine.step()
        assert not ticket.done
        if move:
            _moved(made)
        engine.load("newcomer", newcomer)
        engine.submit(Request("d", "newcomer", SAMPLING))
        again = engine.submit(request)
        while engine.step():
            pass
        return [(each.result().tokens, each.result().logprobs) for each in (ticket, again)]

    _moved(made)
    expected = served(move=False)
    assert served(move=True) == expected
    assert served(move=False) != expected  # compiled anew, from the tensors as they are now


@torch.no_grad()
def _moved(made: Customized) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in made.customization.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
