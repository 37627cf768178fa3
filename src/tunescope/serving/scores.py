"""``/classify``, ``/score`` and ``/pooling``, as vLLM names them: labels, rewards, and what a head gives."""

from __future__ import annotations

import time
import uuid
from typing import Any

from tunescope.inference import Generated, Request, Sampling, ScoreRequest
from tunescope.inference.prediction import probabilities_of
from tunescope.serving.bodies import ClassifyBody, PoolingBody, ScoreBody
from tunescope.serving.errors import ApiError
from tunescope.serving.gather import all_of
from tunescope.serving.rows import checked, prompt_of
from tunescope.serving.served import Served
from tunescope.serving.service import Asked, Service, Usage


async def classify(service: Service, body: ClassifyBody, served: Served) -> tuple[dict[str, Any], Usage]:
    """Each row's label with the probabilities of all, through the entry's own template.

    Raises:
        ApiError: an entry without labels, or rows that its template does not fit.
    """
    record = served.record
    if record is None or not record.labels:
        raise ApiError(
            400, f"{served.name} was not trained on labels: ask /v1/chat/completions for free text, or with "
            'response_format {"type": "choice", "choices": [...]}.', param="model",
        )  # fmt: skip
    given = body.input if isinstance(body.input, list) else [body.input]
    scale = 1.0 if body.customization_scale is None else body.customization_scale
    sampling = Sampling(choices=record.labels)
    asked = [Request(prompt_of(row, record), served.customization, sampling, scale=scale) for row in given]
    answers, usage = await _answers(service, list(asked), served)
    data = []
    for index, answer in enumerate(answers):
        shares = probabilities_of(answer.choice_logprobs or {}) or {}
        shown = {"index": index, "label": answer.text, "probs": list(shares.values()), "num_classes": len(shares)}
        data.append(shown | {"probabilities": shares})
    return _listed("classify", served, data, usage), usage


async def score(service: Service, body: ScoreBody, served: Served) -> tuple[dict[str, Any], Usage]:
    """A reward model's score of each answer.

    Raises:
        ApiError: an entry that is none, or prompts and answers of different number.
    """
    head = served.must_score("reward")
    try:
        pairs = body.pairs
    except ValueError as error:
        raise ApiError(400, f"{error}.", param="text_1") from error
    asked = [ScoreRequest(prompt, [answer], served.name, head) for prompt, answer in pairs]
    answers, usage = await _answers(service, list(asked), served)
    scores = [(answer.scores or [[]])[0][0] for answer in answers]
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    return _listed("list", served, data, usage), usage


async def pooling(service: Service, body: PoolingBody, served: Served) -> tuple[dict[str, Any], Usage]:
    """What the entry's head gives for each conversation's last answer: a reward, or attributes by name.

    Raises:
        ApiError: an entry without such a head, or conversations that end in no answer.
    """
    head = served.must_score("reward", "attributes")
    asked: list[Asked] = []
    for given in body.conversations:
        messages = checked(given)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise ApiError(400, "messages must end in the assistant's answer, which is scored.", param="messages")
        asked.append(ScoreRequest(messages[:-1], [messages[-1]["content"]], served.name, head))
    if not asked:
        raise ApiError(400, "messages is empty: send a conversation, or a list of them.", param="messages")
    answers, usage = await _answers(service, asked, served)
    assert served.record is not None
    names = served.record.objective_settings.get("columns") if head == "attributes" else None
    data = []
    for index, answer in enumerate(answers):
        outputs = (answer.scores or [[]])[0]
        shown: dict[str, Any] = {"index": index, "object": "pooling", "data": outputs}
        data.append(shown | ({"attributes": dict(zip(names, outputs, strict=True))} if names else {}))
    return _listed("list", served, data, usage), usage


async def _answers(service: Service, asked: list[Asked], served: Served) -> tuple[list[Generated], Usage]:
    most = service.limits.max_inputs
    if not asked or len(asked) > most:
        raise ApiError(400, f"The call has {len(asked)} inputs: send 1 to {most}.", param="input")

    usage = Usage()
    answers = await all_of(service.answer(each, served) for each in asked)
    for answer in answers:
        usage.add(answer, served)
    return answers, usage


def _listed(kind: str, served: Served, data: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
    head = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": served.name}
    return head | {"data": data, "usage": usage.shown}
