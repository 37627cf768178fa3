"""From a request of HTTP to the engine and back: admission, deadlines, clients that leave, and what is measured."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest

from tunescope.errors import EngineError, TunescopeError
from tunescope.inference import Engine, Generated, Request, Sampling, ScoreRequest, Ticket
from tunescope.serving.errors import ApiError
from tunescope.serving.limits import Limits
from tunescope.serving.metrics import Metrics
from tunescope.serving.served import Models, Served

_T = TypeVar("_T")
# No token has more characters than this: a longer text needs no tokenizing to be refused.
_CHARACTERS = 128


@dataclass(frozen=True)
class RawPrompt:
    """A prompt that no template stands around, a text or token ids, to be answered by a customization (None: the
    base)."""

    prompt: str | list[int]
    customization: str | None
    sampling: Sampling


Asked = Request | ScoreRequest | RawPrompt


@dataclass
class Flight:
    """A request under way.

    Attributes:
        served: who answers.
        ticket: the engine's.
        begun: when it came, by ``time.perf_counter``.
        first: when its first token was seen.
    """

    served: Served
    ticket: Ticket
    begun: float
    first: float | None = None


@dataclass
class Usage:
    """What a call cost, in tokens."""

    prompt: int = 0
    cached: int = 0
    virtual: int = 0
    completion: int = 0

    def add(self, answer: Generated, served: Served) -> None:
        """Count an answer with all its samples."""
        self.prompt += answer.prompt_tokens - served.virtual_tokens
        self.virtual += served.virtual_tokens
        self.cached += answer.cached_tokens
        self.completion += sum(len(each.tokens) for each in (answer, *answer.others))

    @property
    def shown(self) -> dict[str, Any]:
        """As OpenAI's API has it, with virtual tokens apart."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached, "virtual_tokens": self.virtual},
        }


@dataclass
class Service:
    """What the endpoints share.

    Attributes:
        engine: computes.
        models: what can be asked.
        limits: what a client may ask for.
        metrics: what is counted.
        stopping: whether the server is being stopped.
    """

    engine: Engine
    models: Models
    limits: Limits
    metrics: Metrics = field(init=False)
    stopping: bool = False

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.engine)
        self._rows: Counter[str] = Counter()

    async def submit(self, asked: Asked, served: Served) -> Flight:
        """Put a request into the engine's queue.

        Raises:
            ApiError: what the engine refuses; 429 where the queue, or this customization's half of it, is full.
        """
        rows = 1 if isinstance(asked, ScoreRequest) else asked.sampling.n
        if self._rows[served.name] + rows > self.engine.scheduler.passes.rows + max(self.engine.max_waiting // 2, 1):
            raise ApiError(
                429,
                f"{served.name} has {self._rows[served.name]} requests under way: the rest of the queue is kept for "
                "others. Ask again later.",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        begun = time.perf_counter()
        self._rows[served.name] += rows
        submitting = asyncio.ensure_future(asyncio.to_thread(self._submitted, asked))
        try:
            ticket = await asyncio.shield(submitting)
        except BaseException as error:
            self._rows[served.name] -= rows
            submitting.add_done_callback(_cancel)  # a client that left meanwhile waits for no answer
            if isinstance(error, TunescopeError):
                raise ApiError.of(error) from error
            raise
        return Flight(served, ticket, begun)

    def _submitted(self, asked: Asked) -> Ticket:
        if not isinstance(asked, RawPrompt):
            return self.engine.submit(asked)
        base, prompt = self.engine.base, asked.prompt
        if isinstance(prompt, str) and len(prompt) > _CHARACTERS * base.context_length:
            raise EngineError(
                f"The prompt has {len(prompt)} characters, and the context {base.context_length} tokens: shorten it."
            )
        ids = base.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        most = min(asked.sampling.max_new_tokens, max(base.context_length - len(ids), 1))
        return self.engine.submit_ids(
            ids, asked.customization, asked.sampling.model_copy(update={"max_new_tokens": most})
        )

    async def follow(self, flight: Flight) -> AsyncIterator[None]:
        """Comes round after each step of the engine, the last time when the request has ended. Leaving it early cancels
        the request.

        Raises:
            ApiError: 504 after the longest time; 500 where the engine failed.
        """
        ticket, until = flight.ticket, flight.begun + self.limits.timeout
        try:
            async for _ in self.engine.progress(ticket):
                now = time.perf_counter()
                if flight.first is None and ticket.tokens:
                    flight.first = now
                if now > until and not ticket.done:
                    raise ApiError(504, f"The answer took longer than {self.limits.timeout:g} s.", code="timeout")
                yield
        finally:
            ticket.cancel()
            self._rows[flight.served.name] -= len(ticket.jobs)
            self._measure(flight)

    async def answer(self, asked: Asked, served: Served) -> Generated:
        """Submit a request and follow it to its end."""
        flight = await self.submit(asked, served)
        async for _ in self.follow(flight):
            pass
        return self.result(flight)

    @staticmethod
    def result(flight: Flight) -> Generated:
        """The answer to a request that has ended.

        Raises:
            ApiError: 500, where the engine failed.
        """
        try:
            return flight.ticket.result()
        except TunescopeError as error:
            raise ApiError(500, str(error)) from error

    def _measure(self, flight: Flight) -> None:
        name, now, jobs = flight.served.name, time.perf_counter(), flight.ticket.jobs
        written = sum(len(job.written) for job in jobs)
        self.metrics.prompt_tokens.labels(name).inc(len(jobs[0].tokens))
        self.metrics.cached_tokens.labels(name).inc(jobs[0].cached)
        self.metrics.generation_tokens.labels(name).inc(written)
        self.metrics.whole.labels(name).observe(now - flight.begun)
        if flight.first is not None:
            self.metrics.first_token.labels(name).observe(flight.first - flight.begun)
            if written > len(jobs):
                self.metrics.between_tokens.labels(name).observe((now - flight.first) / (written / len(jobs) - 1))
        for job in jobs:
            self.metrics.ended.labels(name, job.reason or "abort").inc()


def _cancel(submitted: asyncio.Future[Ticket]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


async def unless_gone(http: HttpRequest, work: Coroutine[Any, Any, _T]) -> _T:
    """Do work for a client, and leave off when the client is gone.

    Raises:
        ApiError: 499, to nobody.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_left(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "The client closed the connection.")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
