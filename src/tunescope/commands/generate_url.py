"""``generate --url``: prompts answered by a server, this project's or another with OpenAI's API."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests

from tunescope.commands.answers import Answer
from tunescope.commands.report import Report
from tunescope.errors import TunescopeError
from tunescope.inference import Generated, Sampling

KEY = "TUNESCOPE_API_KEY"
"""The environment's variable with the key that is sent."""
_SECONDS = 600
# Sampling's fields as OpenAI's and vLLM's clients name them.
_NAMES = {
    "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_tokens": "stop_token_ids",
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "n", "stop")},
}  # fmt: skip
_UNTOLD = ("logprobs", "top_logprobs")


@dataclass(frozen=True)
class Client:
    """Asks a server.

    Attributes:
        url: of the server, with or without ``/v1``.
        model: what is asked there; the first that it lists by default.
    """

    url: str
    model: str | None

    def answer_all(
        self, prompts: tuple[str, ...], sampling: Sampling, steer: Mapping[str, int], report: Report
    ) -> None:
        """Answer prompts one after the other: a single one in pieces, as they come.

        Raises:
            TunescopeError: what the server says, or that there is none.
        """
        model = self.model or self._first_model()
        body = {"model": model, **body_of(sampling), **({"steer": dict(steer)} if steer else {})}
        for prompt in prompts:
            asked = body | {"messages": [{"role": "user", "content": prompt}]}
            if len(prompts) == 1 and sampling.n == 1 and report.pieces:
                for piece in self._streamed(asked):
                    report.write(piece)
                report.write("\n")
                continue
            try:
                answer = _generated(self._post(asked).json())
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise TunescopeError(f"{self.url} gives no answer of OpenAI's API: is it another server?") from error
            report.part(Answer.of(answer, model, before={"prompt": prompt}))

    def _first_model(self) -> str:
        try:
            return str(self._call("GET", "models").json()["data"][0]["id"])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise TunescopeError(f"{self.url} lists no models: name one with --model.") from error

    def _streamed(self, body: dict[str, Any]) -> Iterator[str]:
        answer = self._post(body | {"stream": True}, stream=True)
        try:
            for line in answer.iter_lines():  # of bytes: some characters of a text are line ends too
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise TunescopeError(f"{self.url}: {event['error'].get('message', event['error'])}")
                for choice in event.get("choices", []):
                    yield choice["delta"].get("content") or ""
        except (requests.RequestException, ValueError, KeyError, TypeError) as error:
            raise TunescopeError(f"{self.url} broke off its answer ({type(error).__name__}). Ask again.") from error

    def _post(self, body: dict[str, Any], *, stream: bool = False) -> requests.Response:
        return self._call("POST", "chat/completions", json=body, stream=stream)

    def _call(self, method: str, path: str, **more: Any) -> requests.Response:
        root = self.url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
        try:
            answer = requests.request(method, f"{root}/v1/{path}", headers=headers, timeout=_SECONDS, **more)
        except requests.RequestException as error:
            raise TunescopeError(f"{self.url} does not answer ({type(error).__name__}): is a server there?") from error
        if answer.status_code == 200:
            return answer
        try:
            said = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            said = f"status {answer.status_code}"
        hint = f" Set {KEY}." if answer.status_code == 401 else ""
        raise TunescopeError(f"{self.url}: {said}{hint}")


def body_of(sampling: Sampling) -> dict[str, Any]:
    """How tokens are chosen, as a request's fields. Temperature is always said: where nothing is, it is 0 here.

    Raises:
        TunescopeError: what a printed answer has no place for.
    """
    given = sampling.model_dump(exclude_unset=True)
    if untold := [name for name in _UNTOLD if given.pop(name, None)]:
        raise TunescopeError(f"--{untold[0].replace('_', '-')} is not shown with --url: leave it out.")
    body: dict[str, Any] = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens}
    if choices := given.pop("choices", None):
        body["response_format"] = {"type": "choice", "choices": list(choices)}
    if (schema := given.pop("json_schema", None)) is not None:
        try:
            parsed = json.loads(schema)
        except ValueError as error:
            raise TunescopeError(f"--json-schema is no JSON: {error}.") from error
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": parsed}}
    return body | {_NAMES[name]: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def _generated(answer: dict[str, Any]) -> Generated:
    """An answer as the engine gives it."""
    usage = answer.get("usage") or {}
    made = [
        Generated(
            text=choice["message"]["content"] or "",
            tokens=[],
            finished=choice["finish_reason"] == "stop",
            reason=choice["finish_reason"] or "",
            prompt_tokens=usage.get("prompt_tokens", 0),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        )
        for choice in answer["choices"]
    ]
    return Generated(**{**vars(made[0]), "others": tuple(made[1:])})
