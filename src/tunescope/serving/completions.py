"""``/v1/chat/completions`` and ``/v1/completions``: bodies to requests, and answers to what OpenAI's clients read."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunescope.errors import TunescopeError
from tunescope.inference import Generated, Request, Sampling
from tunescope.inference.job import Job
from tunescope.inference.prediction import probabilities_of
from tunescope.inference.sampling import for_prompt
from tunescope.serving.bodies import ChatBody, CompletionBody, GenerationBody
from tunescope.serving.errors import ApiError
from tunescope.serving.gather import all_of
from tunescope.serving.rows import asked_of, checked, prompt_of
from tunescope.serving.served import Served
from tunescope.serving.service import Asked, Flight, RawPrompt, Service, Usage

_REASONS = {"stop": "stop", "choice": "stop", "length": "length", "cancelled": "abort"}


@dataclass
class Piece:
    """A part of one sample: its text, and its tokens with their log-probabilities where these were asked for.

    Attributes:
        index: of the choice.
        text: new text.
        tokens: new ids.
        nats: their log-probabilities.
        top: the likeliest ids at each place.
        reason: why it ended, where it did.
        offset: characters of the answer before it.
    """

    index: int
    text: str
    tokens: Sequence[int]
    nats: Sequence[float]
    top: Sequence[list[tuple[int, float]]]
    reason: str | None
    offset: int = 0


class Conversation:
    """The two forms in which OpenAI's API tells the same: here that of chats.

    Args:
        service: computes.
        body: what was asked.
        served: who answers.
    """

    whole, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, service: Service, body: GenerationBody, served: Served) -> None:
        self.service, self.body, self.served = service, body, served
        self.id, self.created = f"{self.prefix}{uuid.uuid4().hex}", int(time.time())
        self.texts: list[str] = []  # of a stream, once it has ended

    def asked(self) -> list[Asked]:
        """What the engine is asked.

        Raises:
            ApiError: a conversation that is none, settings that contradict each other, too much of something.
        """
        assert isinstance(self.body, ChatBody)
        if self.body.row is not None:
            prompt = prompt_of(self.body.row, self.served.record, "row")
        else:
            prompt = asked_of(checked(self.body.messages), self.served.record)
        wants = {"logprobs": bool(self.body.logprobs), "top_logprobs": self.body.top_logprobs or 0}
        return [self._request(prompt, self._sampling(self.body.limit, wants))]

    def choice(self, piece: Piece, answer: Generated | None) -> dict[str, Any]:
        """A whole choice."""
        content = {"role": "assistant", "content": piece.text}
        shown = {"index": piece.index, "message": content, "finish_reason": piece.reason}
        return shown | {"logprobs": self.logprobs(piece)} | _probabilities(answer)

    def delta(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A choice's next part."""
        said = ({"role": "assistant"} if first else {}) | ({"content": piece.text} if piece.text or first else {})
        shown = {"index": piece.index, "delta": said, "finish_reason": piece.reason}
        return shown | {"logprobs": self.logprobs(piece)}

    def logprobs(self, piece: Piece) -> dict[str, Any] | None:
        """The tokens of a piece with their log-probabilities."""
        if not self.wants_logprobs:
            return None
        places = zip(piece.tokens, piece.nats, _padded(piece), strict=True)
        return {
            "content": [
                self._token(token, nats) | {"top_logprobs": [self._token(*each) for each in top]}
                for token, nats, top in places
            ]
        }

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities were asked for."""
        return bool(getattr(self.body, "logprobs", None))

    def _token(self, token: int, nats: float) -> dict[str, Any]:
        raw = self.service.engine.token_texts.raw(token)
        return {"token": self.text_of(token), "logprob": nats, "bytes": None if raw is None else list(raw)}

    def text_of(self, token: int) -> str:
        """What a token says, for people."""
        return self.service.engine.token_texts.shown(token)

    def _request(self, messages: Any, sampling: Sampling) -> Request:
        scale = 1.0 if self.body.customization_scale is None else self.body.customization_scale
        return Request(messages, self.served.customization, sampling, self.body.steer or {}, scale, fit=True)

    def _sampling(self, limit: int | None, wants: dict[str, Any]) -> Sampling:
        most = self.service.limits.max_tokens
        if limit is not None and limit > most:
            raise ApiError(400, f"max_tokens is {limit}, and this server writes at most {most}.", param="max_tokens")
        if (self.body.n or 1) > self.service.limits.max_samples:
            raise ApiError(400, f"n is {self.body.n}, and at most {self.service.limits.max_samples} can be asked for.")
        try:
            return self.body.sampling(limit or most, **wants)
        except TunescopeError as error:
            raise ApiError.of(error) from error


class Continuation(Conversation):
    """``/v1/completions``: texts that are gone on with. The base answers them as they stand; around a prompt of a
    customization stands its template."""

    whole, part, prefix = "text_completion", "text_completion", "cmpl-"

    def asked(self) -> list[Asked]:
        """What the engine is asked, a request a prompt."""
        body = self.body
        assert isinstance(body, CompletionBody)
        most = self.service.limits.max_samples
        if len(body.prompts) * (body.n or 1) > most:
            raise ApiError(
                400, f"prompt asks for more than {most} answers at once: send several calls.", param="prompt"
            )
        if not body.prompts or not all(body.prompts):
            raise ApiError(400, "prompt is empty: send at least one character or token.", param="prompt")
        wants = {"logprobs": body.logprobs is not None, "top_logprobs": body.logprobs or 0}
        sampling = self._sampling(body.max_tokens, wants)
        return [self._asked(prompt, for_prompt(sampling, number)) for number, prompt in enumerate(body.prompts)]

    def _asked(self, prompt: str | list[int], sampling: Sampling) -> Asked:
        record = self.served.record
        if isinstance(prompt, str) and record is not None:
            return self._request(prompt_of(prompt, record, "prompt"), sampling)
        if self.body.steer or self.body.customization_scale is not None:
            raise ApiError(400, "steer and customization_scale are for text prompts of a customization.")
        if sampling.choices:
            raise ApiError(400, "choices are tokenized with their prompt: ask /v1/chat/completions.", param="prompt")
        if record is not None and (record.template.virtual_splits or not record.tensors_sha256):
            raise ApiError(400, f"{self.served.name} acts through its template, which token ids have not: send a text.",
                           param="prompt")  # fmt: skip
        virtual = [] if record is None else record.template.virtual_ids
        return RawPrompt(
            prompt if isinstance(prompt, str) else [*virtual, *prompt], self.served.customization, sampling
        )

    def choice(self, piece: Piece, answer: Generated | None) -> dict[str, Any]:
        """A whole choice, or the next part of one: they look the same here."""
        shown = {"index": piece.index, "text": piece.text, "finish_reason": piece.reason}
        return shown | {"logprobs": self.logprobs(piece)} | _probabilities(answer)

    def delta(self, piece: Piece, *, first: bool) -> dict[str, Any]:
        """A choice's next part."""
        return self.choice(piece, None)

    @property
    def wants_logprobs(self) -> bool:
        """Whether log-probabilities were asked for: 0 asks for those of the tokens alone."""
        return getattr(self.body, "logprobs", None) is not None

    def logprobs(self, piece: Piece) -> dict[str, Any] | None:
        """The tokens of a piece, side by side with their log-probabilities."""
        if not self.wants_logprobs:
            return None
        texts = [self.text_of(token) for token in piece.tokens]
        offsets = [piece.offset + sum(map(len, texts[:i])) for i in range(len(texts))]
        top = [{self.text_of(token): nats for token, nats in each} for each in _padded(piece)]
        return {"tokens": texts, "token_logprobs": list(piece.nats), "top_logprobs": top, "text_offset": offsets}


async def whole(call: Conversation) -> tuple[dict[str, Any], Usage]:
    """The answer at once."""
    service, served, usage = call.service, call.served, Usage()

    choices: list[dict[str, Any]] = []
    for answer in await all_of(service.answer(asked, served) for asked in call.asked()):
        usage.add(answer, served)
        for each in (answer, *answer.others):
            piece = Piece(
                len(choices), each.text, each.tokens, each.logprobs or [], each.top_logprobs or [],
                _REASONS.get(each.reason, each.reason),
            )  # fmt: skip
            choices.append(call.choice(piece, each))
    return _envelope(call, call.whole, choices) | {"usage": usage.shown}, usage


async def streamed(call: Conversation) -> tuple[AsyncIterator[str], Usage]:
    """The answer in parts, as server-sent events. What can be refused is refused before the first of them.

    Raises:
        ApiError: as ``whole``; several prompts.
    """
    asked = call.asked()
    if len(asked) > 1:
        raise ApiError(400, "stream takes one prompt: send several calls.", param="prompt")
    flight = await call.service.submit(asked[0], call.served)
    usage = Usage()
    return _events(call, flight, usage), usage


async def _events(call: Conversation, flight: Flight, usage: Usage) -> AsyncIterator[str]:
    options = call.body.stream_options
    with_usage = options is not None and options.include_usage
    more = {"usage": None} if with_usage else {}
    seen = [_Sent(index, job) for index, job in enumerate(flight.ticket.jobs)]
    try:
        async for _ in call.service.follow(flight):
            for sent in seen:
                if (piece := sent.news()) is not None:
                    delta = call.delta(piece, first=sent.first)
                    if piece.reason is not None and sent.job.reason == "choice":
                        delta |= _probabilities(call.service.result(flight))
                    yield _event(_envelope(call, call.part, [delta]) | more)
                    sent.first = False
        answer = call.service.result(flight)
        usage.add(answer, call.served)
        call.texts += [each.text for each in (answer, *answer.others)]
        if with_usage:
            yield _event(_envelope(call, call.part, []) | {"usage": usage.shown})
    except ApiError as error:
        yield _event(error.body)
    yield "data: [DONE]\n\n"


@dataclass
class _Sent:
    """How much of a sample was sent."""

    index: int
    job: Job
    first: bool = True
    characters: int = 0
    tokens: int = 0
    ended: bool = False

    def news(self) -> Piece | None:
        """What came since; None where nothing did."""
        if self.ended:
            return None
        job, reason = self.job, self.job.reason  # first the reason: with it the text is whole
        text, count = job.text.text[self.characters :], len(job.written)
        if not text and reason is None:
            return None
        new = slice(self.tokens, count)
        piece = Piece(
            self.index, text, job.written[new], job.logprobs[new], job.likeliest[new],
            None if reason is None else _REASONS.get(reason, reason), self.characters,
        )  # fmt: skip
        self.characters, self.tokens, self.ended = self.characters + len(text), count, reason is not None
        return piece


def _padded(piece: Piece) -> list[list[tuple[int, float]]]:
    return list(piece.top) or [[] for _ in piece.tokens]


def _probabilities(answer: Generated | None) -> dict[str, Any]:
    """Where texts were chosen among, how likely each was."""
    if answer is None or answer.choice_logprobs is None:
        return {}
    return {"probabilities": probabilities_of(answer.choice_logprobs)}


def _envelope(call: Conversation, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": call.id, "object": kind, "created": call.created, "model": call.served.name, "choices": choices}


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, separators=(',', ':'))}\n\n"  # in ASCII: U+2028 ends a line for some clients
