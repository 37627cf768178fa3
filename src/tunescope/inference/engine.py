"""Serving many customizations from one frozen base: requests in, texts out.

    engine = Engine(base)
    engine.load("spam", Path("bank/spam"))
    engine.generate([Request("Win a prize!", "spam"), Request("Why is the sky blue?")])

Threads that wait for an answer drive the engine: they take turns at the steps, and each step serves everyone. Event
loops have a thread that makes the steps while they wait. Requests are read, and customizations too, while steps go on.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from tunescope import peak_memory
from tunescope.base import Base
from tunescope.data.encoding import PromptTokens
from tunescope.errors import EngineError, QueueFullError, TunescopeError
from tunescope.inference.detokenizing import Detokenizer
from tunescope.inference.driver import Driver
from tunescope.inference.grammar import Grammars
from tunescope.inference.healing import TokenTexts
from tunescope.inference.job import Job
from tunescope.inference.loaded import Loaded, LoadedByName
from tunescope.inference.requests import Generated, Request, ScoreRequest, Ticket, refused, told
from tunescope.inference.sampling import Sampling
from tunescope.inference.scheduler import Scheduler
from tunescope.methods import Customized

# How a request is put into the queue, and how many samples it asks for.
_Submit = tuple[Callable[[], "Ticket"], int]


class Load(NamedTuple):
    """What an engine has to do: rows under way and waiting, the share of the memory for keys and values that is in use,
    customizations in memory, and their bytes."""

    running: int
    waiting: int
    kv_share: float
    loaded: int
    bytes: int


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
        self.token_texts = TokenTexts(base.tokenizer)
        self._grammars = Grammars(base.tokenizer, base.embedding.num_embeddings)
        self._queueing = threading.RLock()  # held while room in the queue is looked for and taken
        self._driver = Driver(self.scheduler.step)

    # Customizations.

    @property
    def names(self) -> list[str]:
        """The customizations that can be asked for."""
        return self._loaded.names

    @property
    def customizations_mb(self) -> float:
        """Memory that the loaded customizations take, in 1e6 bytes."""
        return self._loaded.nbytes / 1e6

    @property
    def load_now(self) -> Load:
        """How much there is to do at this moment."""
        loaded, scheduler = self._loaded, self.scheduler
        return Load(scheduler.running, scheduler.queued, scheduler.kv_share, len(loaded.in_memory), loaded.nbytes)

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
        self._loaded.put(self._loaded.prepare(name, source))

    def unload(self, name: str) -> None:
        """Serve it no longer; rows under way end as they began.

        Raises:
            UnknownNameError: none of that name.
        """
        self._loaded.drop(name)

    # Requests.

    def submit(self, request: Request | ScoreRequest) -> Ticket:
        """Put a request into the queue.

        Raises:
            EngineError: an unknown customization or head, a prompt without room for the answer, a full queue.
        """
        if isinstance(request, ScoreRequest):
            loaded = self._loaded.get(request.customization)
            tokens, completions = loaded.completions(request.prompt, request.completions, request.head)
            return self._enqueue(PromptTokens(tokens), loaded, Sampling(), completions, request.head)
        loaded = self._loaded.get(request.customization, request.scale)
        if request.sampling.choices:
            tokens, choices = loaded.candidates(request.prompt, request.sampling.choices, request.steer)
            return self._enqueue(PromptTokens(tokens), loaded, request.sampling, choices)
        prompt = loaded.prompt(request.prompt, request.steer)
        return self._enqueue(prompt, loaded, self._fitted(prompt, request), [])

    def submit_ids(self, prompt: Sequence[int] | PromptTokens, customization: str | None, sampling: Sampling) -> Ticket:
        """``submit`` for a prompt that is tokens already. Negative ids are virtual tokens.

        Raises:
            EngineError: as ``submit``; also for choices, which are tokenized together with their prompt's text.
        """
        if sampling.choices:
            raise EngineError("choices are tokenized together with the prompt: give it as text.")
        tokens = prompt if isinstance(prompt, PromptTokens) else PromptTokens(list(prompt))
        return self._enqueue(tokens, self._loaded.get(customization), sampling, [])

    def step(self) -> bool:
        """A step for everyone under way; returns whether anything is left to do."""
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
            async for _ in self.progress(ticket):
                pass
            return ticket.result()
        finally:
            ticket.cancel()

    async def astream(self, request: Request) -> AsyncIterator[str]:
        """``stream`` for event loops."""
        ticket, sent = await asyncio.to_thread(self.submit, request), 0
        try:
            async for _ in self.progress(ticket):
                text = ticket.text
                if len(text) > sent:
                    yield text[sent:]
                    sent = len(text)
            ticket.result()
        finally:
            ticket.cancel()

    async def progress(self, ticket: Ticket) -> AsyncIterator[None]:
        """For event loops: comes round after each step, the last time when the request has ended."""
        done = False
        while not done:
            if not ticket.done:
                await self._driver.stepped()
            done = ticket.done  # before the caller looks: what it sees the last time is whole
            yield

    def _fitted(self, prompt: PromptTokens, request: Request) -> Sampling:
        """The request's sampling, with fewer new tokens where the context ends and the request says so."""
        left = self.base.context_length - len(prompt.ids) - len(prompt.owed)
        if not request.fit or left >= request.sampling.max_new_tokens or left < 1:
            return request.sampling
        return request.sampling.model_copy(update={"max_new_tokens": left})

    def _enqueue(
        self,
        prompt: PromptTokens,
        loaded: Loaded,
        sampling: Sampling,
        completions: list[list[int]],
        head: str | None = None,
    ) -> Ticket:
        grammar = None if sampling.json_schema is None else self._grammars.of_schema(sampling.json_schema)
        if grammar is not None and prompt.owed:  # JSON begins with a token of its own, whatever stands before it
            owed = self.base.tokenizer(prompt.owed, add_special_tokens=False)["input_ids"]
            prompt = PromptTokens([*prompt.ids, *owed])
        tokens = prompt.ids
        if sampling.n > self.max_waiting:
            raise EngineError(
                f"The request asks for {sampling.n} samples, and at most {self.max_waiting} can wait: lower n."
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
                loaded.template,
                completions,
                head,
                loaded.prefix_tokens,
                self.token_texts.owed(prompt.owed),
                None if grammar is None else grammar.copy(),
                loaded.name,
            )
            for sample in range(sampling.n)
        ]
        with self._queueing:
            if not self._has_room(sampling.n):
                raise QueueFullError(
                    f"The queue is full: {self.scheduler.queued} of {self.max_waiting} requests wait. Ask again later."
                )
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
        with self._queueing:  # nobody else takes the room that was seen
            if samples <= self.max_waiting and not self._has_room(samples):
                return None
            try:
                return submit()
            except TunescopeError as error:
                return refused(str(error))
            except Exception as error:  # a prompt that a chat template or tokenizer fails on: the others go on
                return refused(f"The request could not be read: {told(error)}")

    def _has_room(self, samples: int) -> bool:
        return self.scheduler.queued + samples <= self.max_waiting


def _result(ticket: Ticket) -> Generated:
    try:
        return ticket.result()
    except EngineError as error:
        return refused(str(error))


def _free_bytes(base: Base) -> int:
    """Memory left where the base lies."""
    if base.device.type == "cuda":
        return torch.cuda.mem_get_info(base.device)[0]
    return int(min(peak_memory.available_mb() * 1e6, sys.maxsize))
