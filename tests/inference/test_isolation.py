"""A request can only hurt itself: it ends with an error that says why, and the others' answers are those they get
alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.inference.mix import customized
from tests.tiny import VOCABULARY, tiny_base

from tunescope import bank
from tunescope.bank import BaseRecord, Record
from tunescope.data.template import default_template
from tunescope.errors import BankError, EngineError
from tunescope.inference import Engine, Generated, Request, Sampling
from tunescope.inference.detokenizing import Detokenizer
from tunescope.inference.sampling import choose
from tunescope.inference.stack import Stack
from tunescope.methods import Adapter, Customized, Full, LoRA, Method, customize

SAMPLING = Sampling(max_new_tokens=8, temperature=0.9, seed=2, logprobs=True)
GOOD = [Request("first", None, SAMPLING), Request("second", "lora", SAMPLING), Request("third " * 9, "ia3", SAMPLING)]


def engine(arch: str = "llama", **options: Any) -> Engine:
    made = Engine(tiny_base(arch), **options)
    for name in ("lora", "ia3"):
        made.load(name, customized(name, arch))
    return made


def beside(made: Engine, bad: Request) -> tuple[list[Generated], Generated]:
    """The answers of the good requests, and that of the bad one among them."""
    answers = made.generate([GOOD[0], bad, *GOOD[1:]])
    return [answers[0], *answers[2:]], answers[1]


def check_untouched(answers: list[Generated], arch: str = "llama") -> None:
    for request, answer in zip(GOOD, answers, strict=True):
        alone = engine(arch).generate([request])[0]
        assert answer.error is None and answer.tokens == alone.tokens and answer.text == alone.text
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def filled(method: Method, value: float, arch: str = "llama") -> Customized:
    """A customization whose tensors are all ``value``."""
    base = tiny_base(arch)
    made = customize(base, method, default_template(base.tokenizer), seed=1)
    with torch.no_grad():
        for parameter in made.customization.parameters():
            parameter.fill_(value)
    made.finish()
    return made


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [LoRA(rank=2), Adapter(bottleneck=3, activation="gelu")], ids=["lora", "adapter"])
def test_tensors_so_large_that_they_overflow_end_their_own_rows(arch: str, method: Method) -> None:
    made = engine(arch)
    made.load("huge", filled(method, 3e37, arch))
    answers, lost = beside(made, Request("huge", "huge", SAMPLING))
    assert lost.reason == "error" and "not finite" in (lost.error or "") and not lost.tokens
    check_untouched(answers, arch)
    # Nor does what they left in memory reach those who come next.
    check_untouched(made.generate(GOOD), arch)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(choices=("yes", "no")), Sampling(temperature=1.0, n=2)])
def test_no_answer_is_made_of_logits_that_are_not_numbers(sampling: Sampling) -> None:
    made = engine()
    made.load("huge", filled(LoRA(rank=2), 3e37))
    answer = made.generate([Request("a", "huge", sampling)])[0]
    assert answer.reason == "error" and "not finite" in (answer.error or "")


def stop_outside(made: Engine) -> Request:
    given = customized("lora")
    template = given.template.model_copy(update={"stop": (VOCABULARY + 7,)})
    changed = customize(given.base, LoRA(rank=2), template)
    changed.customization.template = template
    made.load("bad", changed)
    return Request("a", "bad", Sampling(min_new_tokens=2))


def other_count(made: Engine) -> Request:
    given = customized("prompt-tuning")
    changed = Customized(
        given.base, type(given.customization)(given.method, given.template, given.customization.effects), given.origin
    )
    changed.customization.template = given.template.model_copy(update={"virtual_tokens": 9})
    made.load("bad", changed)
    return Request("a", "bad")


def unreadable(made: Engine) -> Request:
    return Request([{"role": "user", "content": 7}])  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("bad", "said"),
    [(stop_outside, "stop tokens has 267"), (other_count, "template has 9 virtual tokens"), (unreadable, "")],
)
def test_a_request_that_does_not_fit_is_refused_alone(bad: Callable[[Engine], Request], said: str) -> None:
    made = engine()
    answers, lost = beside(made, bad(made))
    assert lost.reason == "error" and lost.error and said in lost.error
    check_untouched(answers)


@pytest.mark.parametrize("token", [VOCABULARY, 10**9, -1, -6])
@pytest.mark.parametrize("name", [None, "lora", "prompt-tuning"])
def test_ids_out_of_range_are_refused(token: int, name: str | None) -> None:
    made = engine()
    made.load("prompt-tuning", customized("prompt-tuning"))  # five virtual tokens
    answers = made.generate_ids([[1, 2, 3], [1, token, 3], [4, 5]], name, Sampling(max_new_tokens=3))
    fine = name == "prompt-tuning" and token == -1
    assert (answers[1].error is None) == fine
    assert fine or f"has {token}, and the base's tokens are 0 to {VOCABULARY - 1}" in (answers[1].error or "")
    alone = made.generate_ids([[1, 2, 3], [4, 5]], name, Sampling(max_new_tokens=3))
    assert [answers[0].tokens, answers[2].tokens] == [each.tokens for each in alone]


@pytest.mark.parametrize("decoding", [False, True])
def test_a_pass_that_fails_ends_the_row_that_it_failed_for(decoding: bool) -> None:
    made = engine()
    bad = made.submit_ids([1, 2, 250, 250, 3], None, SAMPLING)
    job = bad.jobs[0]
    passes, whole = made.scheduler.passes, made.scheduler.passes.hidden

    def hidden(effects: Any, slots: list[int], ids: torch.Tensor, *more: Any) -> torch.Tensor:
        if job.arrived in slots and (ids.shape[1] == 1) == decoding:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return whole(effects, slots, ids, *more)

    passes.hidden = hidden  # type: ignore[method-assign]
    check_untouched(made.generate(GOOD))
    assert bad.done and job.reason == "error" and bool(job.written) == decoding
    with pytest.raises(EngineError, match="can't allocate memory"):
        bad.result()
    assert not made.step() and made.scheduler.passes.slots.allocated == 0


def test_a_row_that_fails_to_come_in_is_lost_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    find = made.scheduler.prefixes.find

    def failing_find(effects: Any, tokens: list[int]) -> Any:
        if len(tokens) == 5:
            raise MemoryError
        return find(effects, tokens)

    monkeypatch.setattr(made.scheduler.prefixes, "find", failing_find)
    bad = made.submit_ids([1, 2, 3, 4, 5], None, SAMPLING)
    check_untouched(made.generate(GOOD))
    with pytest.raises(EngineError, match="MemoryError"):
        bad.result()


def test_choosing_a_token_that_fails_ends_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no memory for one row's top-p: the others choose by themselves, what they would have chosen."""
    rows = [Request("a", "lora", Sampling(max_new_tokens=4, temperature=1.0, repetition_penalty=2.0)), GOOD[0]]
    alone = [engine().generate([row])[0] for row in rows]

    def failing(logits: torch.Tensor, draws: Any) -> Any:
        found = choose(logits, draws)
        if any(draw.sampling.top_p < 1 for draw in draws):
            raise torch.OutOfMemoryError("no memory")
        return found

    monkeypatch.setattr("tunescope.inference.scheduler.choose", failing)
    bad = Request("b", None, Sampling(max_new_tokens=4, temperature=1.0, top_p=0.5))
    *answers, lost = engine().generate([*rows, bad])
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in alone]
    assert lost.error == "The engine failed while it computed this answer: no memory"


def test_a_customization_too_large_beside_those_before_it_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows share one stack of tensors, as wide as the largest of those that came last."""

    def small(compiled: list[Any], base: Any) -> Any:
        if len(compiled) > 1:
            raise torch.OutOfMemoryError("no memory")
        return Stack(compiled, base)

    alone = [engine().generate([row])[0] for row in GOOD]
    made = engine()
    monkeypatch.setattr("tunescope.inference.passes.Stack", small)
    assert [answer.tokens for answer in made.generate(GOOD)] == [answer.tokens for answer in alone]


def test_a_text_that_fails_ends_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    bad = made.submit(Request("a", None, Sampling(max_new_tokens=4)))
    monkeypatch.setattr(bad.jobs[0].text, "add", lambda token: 1 / 0)
    check_untouched(made.generate(GOOD))
    with pytest.raises(EngineError, match="division by zero"):
        bad.result()


def test_a_fault_of_the_engine_itself_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    tickets = [made.submit(request) for request in GOOD]
    monkeypatch.setattr(made.scheduler, "_admit", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.step()
    assert all(ticket.done for ticket in tickets)
    monkeypatch.undo()
    check_untouched(made.generate(GOOD))


def test_rows_wait_until_their_keys_and_values_fit() -> None:
    alone = engine()
    position = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, width, bytes
    assert alone.scheduler.kv_bytes_of(0) == 256 * position
    made = engine(kv_mb=(256 + 1.25 * 200) * position / 1e6)  # the good ones need 35 to 90 positions each
    answers, refused = beside(made, Request("long", None, Sampling(max_new_tokens=300)))
    assert "more than the engine has for them (kv_mb)" in (refused.error or "")
    check_untouched(answers)
    tickets = [made.submit(GOOD[2]) for _ in range(6)]
    most = 0
    while made.step():
        most = max(most, made.scheduler.running)
        assert made.scheduler.passes.slots.nbytes <= (256 + 1.25 * 200) * position
    assert most == 2 and len({tuple(ticket.result().tokens) for ticket in tickets}) == 1


def test_an_answer_is_complete_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop text that may yet come is held back until the end: a thread that sees ``done`` must see it."""
    made, seen = engine(), []
    ticket = made.submit(Request("a", None, Sampling(max_new_tokens=5)))
    close = Detokenizer.close

    def slow(self: Detokenizer) -> None:
        seen.append(ticket.done)
        close(self)

    monkeypatch.setattr(Detokenizer, "close", slow)
    while made.step():
        pass
    assert seen == [False] and ticket.done


def test_threads_that_stream_get_the_whole_text() -> None:
    made, texts = engine(), {}
    request = Request("stream", "lora", Sampling(max_new_tokens=20, stop=("never comes",)))

    def read(number: int) -> None:
        texts[number] = "".join(made.stream(request))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(texts.values()) == {engine().generate([request])[0].text} and len(texts) == 6


def test_a_cancelled_request_with_choices_returns() -> None:
    made = engine()
    ticket = made.submit(Request("a", None, Sampling(choices=("yes", "no"))))
    ticket.cancel()
    made.step()
    answer = ticket.result()
    assert answer.reason == "cancelled" and answer.choice_logprobs is None


@pytest.mark.parametrize("logprobs", [False, True])
def test_choices_do_not_depend_on_min_new_tokens_nor_on_the_other_rows(logprobs: bool) -> None:
    plain = Request("is it?", "lora", Sampling(choices=("a", "b c")))
    asked = Request("is it?", "lora", Sampling(choices=("a", "b c"), min_new_tokens=5))
    wanted = engine().generate([plain])[0].choice_logprobs
    others = [Request("w", None, Sampling(max_new_tokens=3, logprobs=logprobs)) for _ in range(3)]
    for answer in (engine().generate([asked])[0], engine().generate([*others, asked])[3]):
        assert answer.choice_logprobs == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (lambda t: t.fill_(torch.nan), "not finite"),
        (lambda t: t.double().fill_(1e300), "not finite"),
        (lambda t: t.to(torch.int8), "dtype int8"),
    ],
)
def test_tensors_are_finite_floating_point_numbers(tensor: Callable[[torch.Tensor], torch.Tensor], said: str) -> None:
    made = customized("lora")
    tensors = {name: value.clone() for name, value in made.customization.tensors().items()}
    tensors["0.q.low_rank.B"] = tensor(tensors["0.q.low_rank.B"])
    fresh = customize(made.base, LoRA(rank=2), made.template)
    with pytest.raises(BankError, match=f"0.q.low_rank.B.*{said}"):
        fresh.customization.load_tensors(tensors)


def test_weights_that_are_not_finite_are_refused_at_load(tmp_path: Path) -> None:
    base = tiny_base()
    made = customize(base, Full(), default_template(base.tokenizer))
    with torch.no_grad():
        made.base.model.model.norm.weight[3] = torch.nan
    record = Record(
        tunescope="0",
        method="full",
        objective="sft",
        method_settings={},
        template=made.template,
        base=BaseRecord(name="tiny", fingerprint=base.fingerprint),
    )
    bank.save(made, tmp_path / "full", record)
    with pytest.raises(BankError, match=r"model.norm.weight holds values that are not finite"):
        bank.load(tmp_path / "full", base)
