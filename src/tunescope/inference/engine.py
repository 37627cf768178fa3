"""Serving many customizations from one frozen base: requests in, texts out.

    engine = Engine(base)
    engine.load("spam", Path("bank/spam"))
    engine.generate([Request("Win a prize!", "spam"), Request("Why is the sky blue?")])

Whoever waits for an answer drives the engine: there is no thread in the background. Threads take turns at the steps, an
event loop has one task that makes them; each step serves everyone.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from tunescope import peak_memory
from tunescope.base import Base
from tunescope.data.encoding import PromptTokens
from tunescope.data.rows import Message
from tunescope.errors import EngineError, TunescopeError
from tunescope.inference.detokenizing import Detokenizer
from tunescope.inference.healing import TokenTexts
from tunescope.inference.loaded import Loaded, LoadedByName
from tunescope.inference.sampling import Sampling
from tunescope.inference.scheduler import Job, Scheduler
from tunescope.methods import Customized

# How a request is put into the queue, and how many samples it asks for.
_Submit = tuple[Callable[[], "Ticket"], int]


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        prompt: a text, or chat messages that end in the user's.
        customization: name of a loaded one; None is the base under its plain template.
        sampling: how the answer is chosen.
        steer: what the answer is to be like, a whole number for some of the attributes that the customization was
            trained on (``{"quality": 4}``); the others are asked for by their defaults.
    """

    prompt: str | Sequence[Message]
    customization: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    steer: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreRequest:
    """Completions of a prompt to be scored by a head, each at its last token (the stop token).

    Attributes:
        prompt: as of a ``Request``.
        completions: texts, at least one.
        customization: name of a loaded one that has the head.
        head: its name: that of a reward model's is ``reward``.
    """

    prompt: str | Sequence[Message]
    completions: Sequence[str]
    customization: str
    head: str = "reward"


@dataclass(frozen=True)
class Generated:
    """An answer.

    Attributes:
        text: without the stop token or stop text.
        tokens: ids, the stop token included when there was one.
        finished: whether it ended of itself and not by the limit.
        reason: ``stop``, ``length``, ``choice``, ``score``, ``cancelled`` or ``error``.
        prompt_tokens: length of the prompt, virtual tokens included.
        cached_tokens: how many of these had been computed before.
        logprobs: of each token in nats, where asked for.
        choice_logprobs: log-probability of each choice as a whole, in nats, where choices were given.
        scores: the head's outputs for each completion of a ``ScoreRequest``.
        others: the request's further samples, where it asked for several.
        error: why there is no answer, where there is none.
    """

    text: str
    tokens: list[int]
    finished: bool
    reason: str = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    logprobs: list[float] | None = None
    choice_logprobs: dict[str, float] | None = None
    scores: list[list[float]] | None = None
    others: tuple[Generated, ...] = ()
    error: str | None = None


class Ticket:
    """A request under way.

    Attributes:
        request: what was asked.
    """

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = jobs

    @property
    def done(self) -> bool:
        """Whether all of its samples have ended."""
        return all(job.done for job in self._jobs)

    @property
    def tokens(self) -> int:
        """How many tokens the first sample has so far."""
        return len(self._jobs[0].written)

    @property
    def text(self) -> str:
        """What the first sample says so far."""
        return self._jobs[0].text.text

    def cancel(self) -> None:
        """End it at the next step; what was written stays."""
        for job in self._jobs:
            job.cancelled = True

    def result(self) -> Generated:
        """The answer, once ``done``.

        Raises:
            EngineError: a step failed under it.
        """
        first, *others = [_generated(job) for job in self._jobs]
        return first if not others else Generated(**{**vars(first), "others": tuple(others)})


class Engine:
    """Any row, any customization, in one batch that rows join and leave.

    Args:
        base: frozen; every customization is for it.
        slots: most rows at once. On a CPU a pass of 128 rows costs about two of 32, as each reads all weights once.
        max_waiting: requests that may wait; one more is refused.
        prefix_mb: memory for prefixes that prompts share, in 1e6 bytes.
        customizations_mb: memory for customizations, in 1e6 bytes. What was used longest ago and came from a folder is
            read again when it is needed.
        kv_mb: memory for the keys and values of rows under way, in 1e6 bytes; a third of what is free now by default,
            as activations need some too, and rows that are moved into longer memory are held twice meanwhile, which is
            not counted here. Requests wait until theirs fit.
    """

    def __init__(
        self,
        base: Base,
        *,
        slots: int = 128,
        max_waiting: int = 1024,
        prefix_mb: float = 512,
        customizations_mb: float = 2048,
        kv_mb: float | None = None,
    ) -> None:
        for name, value in (("slots", slots), ("max_waiting", max_waiting)):
            if value < 1:
                raise EngineError(f"{name} must be at least 1, got {value}.")
        kv_bytes = _free_bytes(base) // 3 if kv_mb is None else int(kv_mb * 1e6)
        self.base = base
        self.max_waiting = max_waiting
        self.scheduler = Scheduler(base, slots=slots, prefix_bytes=int(prefix_mb * 1e6), kv_bytes=kv_bytes)
        self._loaded = LoadedByName(base, int(customizations_mb * 1e6), self.scheduler.evict)
        self._token_texts = TokenTexts(base.tokenizer)
        self._lock = threading.RLock()
        self._driver: asyncio.Task[None] | None = None
        self._stepped = asyncio.Event()

    # Customizations.

    @property
    def names(self) -> list[str]:
        """The customizations that can be asked for."""
        return self._loaded.names

    @property
    def customizations_mb(self) -> float:
        """Memory that the loaded customizations take, in 1e6 bytes."""
        return self._loaded.nbytes / 1e6

    def load(self, name: str, source: Customized | str | Path) -> None:
        """Serve a customization under a name, at once and as a whole; one of that name is replaced.

        Rows under way end with the customization they began with.

        Args:
            name: what requests say.
            source: one in memory, or an entry of a bank (``BANK/NAME``, ``BANK/TABLE:TASK``).

        Raises:
            EngineError: it has weights of its own (full fine-tuning), or was made on another base object.
            BankError: an entry that is damaged or belongs to another base.
        """
        loaded = self._loaded.prepare(name, source)
        with self._lock:
            self._loaded.put(loaded)

    def unload(self, name: str) -> None:
        """Serve it no longer; rows under way end as they began.

        Raises:
            UnknownNameError: none of that name.
        """
        with self._lock:
            self._loaded.drop(name)

    # Requests.

    def submit(self, request: Request | ScoreRequest) -> Ticket:
        """Put a request into the queue.

        Raises:
            EngineError: an unknown customization or head, a prompt without room for the answer, a full queue.
        """
        with self._lock:
            loaded = self._loaded.get(request.customization)
            if isinstance(request, ScoreRequest):
                tokens, completions = loaded.completions(request.prompt, request.completions, request.head)
                return self._enqueue(PromptTokens(tokens), loaded, Sampling(), completions, request.head)
            if request.sampling.choices:
                tokens, choices = loaded.candidates(request.prompt, request.sampling.choices, request.steer)
                return self._enqueue(PromptTokens(tokens), loaded, request.sampling, choices)
            return self._enqueue(loaded.prompt(request.prompt, request.steer), loaded, request.sampling, [])

    def submit_ids(self, prompt: Sequence[int] | PromptTokens, customization: str | None, sampling: Sampling) -> Ticket:
        """``submit`` for a prompt that is tokens already. Negative ids are virtual tokens.

        Raises:
            EngineError: as ``submit``; also for choices, which are tokenized together with their prompt's text.
        """
        if sampling.choices:
            raise EngineError("choices are tokenized together with the prompt: give it as text.")
        tokens = prompt if isinstance(prompt, PromptTokens) else PromptTokens(list(prompt))
        with self._lock:
            return self._enqueue(tokens, self._loaded.get(customization), sampling, [])

    def step(self) -> bool:
        """A step for everyone under way; returns whether anything is left to do."""
        with self._lock:
            return self.scheduler.step()

    def generate(
        self,
        requests: Sequence[Request | ScoreRequest],
        *,
        on_done: Callable[[int, Generated], None] = lambda index, generated: None,
    ) -> list[Generated]:
        """Answer requests, in order. One that cannot be served has its ``error`` set; the others go on.

        Args:
            requests: any number: they wait outside the queue until it has room.
            on_done: told of each answer by its index, as it comes.
        """
        submits = [(partial(self.submit, r), r.sampling.n if isinstance(r, Request) else 1) for r in requests]
        return self._answer_all(submits, on_done)

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int] | PromptTokens],
        customization: str | None,
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Generated], None] = lambda index, generated: None,
    ) -> list[Generated]:
        """``generate`` for prompts that are tokens already; ``sampling`` is for all, or one for each."""
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        asked = zip(prompts, each, strict=True)
        submits = [(partial(self.submit_ids, prompt, customization, how), how.n) for prompt, how in asked]
        return self._answer_all(submits, on_done)

    def stream(self, request: Request) -> Iterator[str]:
        """The answer in pieces, as they come. Leaving the loop cancels the request."""
        ticket, sent = self.submit(request), 0
        try:
            while True:
                done, text = ticket.done, ticket.text
                if len(text) > sent:
                    yield text[sent:]
                    sent = len(text)
                if done:
                    ticket.result()
                    return
                if not ticket.done:
                    self.step()
        finally:
            ticket.cancel()

    async def answer(self, request: Request | ScoreRequest) -> Generated:
        """``generate`` of one request, for event loops. Cancelling the task cancels the request."""
        ticket = await asyncio.to_thread(self.submit, request)
        try:
            while not ticket.done:
                await self._next_step()
            return ticket.result()
        finally:
            ticket.cancel()

    async def astream(self, request: Request) -> AsyncIterator[str]:
        """``stream`` for event loops."""
        ticket, sent = await asyncio.to_thread(self.submit, request), 0
        try:
            while True:
                done, text = ticket.done, ticket.text
                if len(text) > sent:
                    yield text[sent:]
                    sent = len(text)
                if done:
                    ticket.result()
                    return
                await self._next_step()
        finally:
            ticket.cancel()

    def _enqueue(
        self,
        prompt: PromptTokens,
        loaded: Loaded,
        sampling: Sampling,
        completions: list[list[int]],
        head: str | None = None,
    ) -> Ticket:
        tokens = prompt.ids
        if sampling.n > self.max_waiting:
            raise EngineError(
                f"The request asks for {sampling.n} samples, and at most {self.max_waiting} can wait: lower n."
            )
        if not self._has_room(sampling.n):
            raise EngineError(
                f"The queue is full: {len(self.scheduler.waiting)} of {self.max_waiting} requests wait. Ask again "
                "later."
            )
        self._check_ids(tokens, completions, loaded, sampling)
        room = sum(map(len, completions)) if completions else sampling.max_new_tokens + len(prompt.owed)
        context = self.base.context_length
        if not tokens:
            raise EngineError("The prompt has no tokens.")
        if len(tokens) + room > context:
            raise EngineError(
                f"The prompt has {len(tokens)} tokens: with {room} new ones it exceeds the base's context of "
                f"{context}. Shorten it or ask for fewer new tokens (max_new_tokens)."
            )
        most = len(tokens) + room
        if not self.scheduler.fits(most):
            raise EngineError(
                f"The keys and values of up to {most} tokens take {self.scheduler.kv_bytes_of(most) / 1e6:.1f} MB, "
                "more than the engine has for them (kv_mb). Shorten the prompt, ask for fewer new tokens "
                "(max_new_tokens), or give it more memory."
            )
        jobs = [
            Job(
                tokens,
                loaded.effects,
                sampling,
                sample,
                frozenset((*loaded.template.stop, *sampling.stop_tokens)),
                Detokenizer(self.base.tokenizer, sampling.stop, prompt.owed),
                completions,
                head,
                loaded.prefix_tokens,
                self._token_texts.owed(prompt.owed),
            )
            for sample in range(sampling.n)
        ]
        for job in jobs:
            self.scheduler.add(job)
        return Ticket(jobs)

    def _check_ids(self, tokens: list[int], completions: list[list[int]], loaded: Loaded, sampling: Sampling) -> None:
        """Refuse ids that no embedding answers: an id out of range would fail the pass that other rows share."""
        size, virtual = self.base.embedding.num_embeddings, loaded.virtual_tokens
        of = "the base" if loaded.name is None else loaded.name
        if loaded.template.virtual_tokens != virtual:
            raise EngineError(
                f"{of}: its template has {loaded.template.virtual_tokens} virtual tokens and its tensors {virtual}: "
                "the entry is damaged. Train it again."
            )
        given = [("The prompt", token, -virtual) for token in (min(tokens), max(tokens))] if tokens else []
        given += [("A completion", token, 0) for completion in completions for token in completion]
        given += [("stop_tokens", token, 0) for token in sampling.stop_tokens]
        given += [(f"The template of {of} for its stop tokens", token, 0) for token in loaded.template.stop]
        for what, token, least in given:
            if not least <= token < size:
                some = f", its virtual tokens {-virtual} to -1" if least else ""
                raise EngineError(f"{what} has {token}, and the base's tokens are 0 to {size - 1}{some}.")

    def _answer_all(self, submits: Sequence[_Submit], on_done: Callable[[int, Generated], None]) -> list[Generated]:
        answers: dict[int, Generated] = {}
        tickets: dict[int, Ticket] = {}

        def finish(index: int, answer: Generated) -> None:
            answers[index] = answer
            on_done(index, answer)

        ahead = 4 * self.scheduler.passes.rows
        following = 0
        try:
            while len(answers) < len(submits):
                while following < len(submits) and len(tickets) < ahead:
                    outcome = self._offer(*submits[following])
                    if outcome is None:
                        break
                    if isinstance(outcome, Ticket):
                        tickets[following] = outcome
                    else:
                        finish(following, outcome)
                    following += 1
                for index in [index for index, ticket in tickets.items() if ticket.done]:
                    finish(index, _result(tickets.pop(index)))
                if len(answers) < len(submits):
                    self.step()
        finally:
            for ticket in tickets.values():
                ticket.cancel()
        return [answers[index] for index in range(len(submits))]

    def _offer(self, submit: Callable[[], Ticket], samples: int) -> Ticket | Generated | None:
        """The ticket, or a refusal; None while the queue has no room for that many samples."""
        with self._lock:  # nobody else takes the room that was seen
            if samples <= self.max_waiting and not self._has_room(samples):
                return None
            try:
                return submit()
            except TunescopeError as error:
                return _refused(str(error))
            except Exception as error:  # a prompt that a chat template or tokenizer fails on: the others go on
                return _refused(f"The request could not be read: {_told(error)}")

    def _has_room(self, samples: int) -> bool:
        return len(self.scheduler.waiting) + samples <= self.max_waiting

    async def _next_step(self) -> None:
        """Wait for a step to be made, by the one task that makes them."""
        if self._driver is None or self._driver.done():
            self._stepped = asyncio.Event()
            self._driver = asyncio.create_task(self._drive())
        await self._stepped.wait()

    async def _drive(self) -> None:
        busy = True
        while busy:
            try:
                busy = await asyncio.to_thread(self.step)
            except Exception:
                busy = False  # the scheduler told every job why
            stepped, self._stepped = self._stepped, asyncio.Event()
            stepped.set()


def _result(ticket: Ticket) -> Generated:
    try:
        return ticket.result()
    except EngineError as error:
        return _refused(str(error))


def _generated(job: Job) -> Generated:
    if isinstance(job.error, EngineError):
        raise job.error
    if job.error is not None:
        raise EngineError(f"The engine failed while it computed this answer: {_told(job.error)}") from job.error
    return Generated(
        text=job.text.text,
        tokens=job.written,
        finished=job.reason in ("stop", "choice", "score"),
        reason=job.reason or "",
        prompt_tokens=len(job.tokens),
        cached_tokens=job.cached,
        logprobs=job.logprobs if job.sampling.logprobs else None,
        choice_logprobs=dict(zip(job.sampling.choices, map(sum, job.scores), strict=True))
        if job.reason == "choice"
        else None,
        scores=job.scores if job.reason == "score" else None,
    )


def _told(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _refused(why: str) -> Generated:
    return Generated(text="", tokens=[], finished=False, reason="error", error=why)


def _free_bytes(base: Base) -> int:
    """Memory left where the base lies."""
    if base.device.type == "cuda":
        return torch.cuda.mem_get_info(base.device)[0]
    return int(min(peak_memory.available_mb() * 1e6, sys.maxsize))
