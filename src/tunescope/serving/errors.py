"""Errors as OpenAI's API words them: a status, and an object with message, type, param and code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from tunescope.errors import QueueFullError, TunescopeError, UnknownNameError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
# Settings of the engine, as clients know them.
_FIELDS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_tokens": "stop_token_ids"}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: what is wrong and what to do about it.
        param: the field of the body it is about, where it is about one.
        code: a word for programs.
        headers: to be sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if status == 409:
            self.headers["x-should-retry"] = "false"  # clients of OpenAI's API would ask again

    @classmethod
    def of(cls, error: TunescopeError) -> ApiError:
        """What the engine or the bank says, for a client."""
        if isinstance(error, QueueFullError):
            return cls(429, str(error), code="queue_full", headers={"Retry-After": "1"})
        said = str(error).removeprefix("Sampling: ").replace("Sampling.", "")
        return cls(400, re.sub("|".join(_FIELDS), lambda found: _FIELDS[found[0]], said))

    @property
    def body(self) -> dict[str, Any]:
        """As JSON has it."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, headers=self.headers)


def readable(problems: list[Any], known: Mapping[str, Any]) -> ApiError:
    """What pydantic found wrong with a body.

    Args:
        problems: as pydantic's ``errors()`` gives them.
        known: the body's fields.
    """
    first = problems[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    field = place[0] if place else None
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is no JSON: send an object, with Content-Type: application/json.")
    if first["type"] == "extra_forbidden" and len(place) == 1:
        return ApiError(400, str(UnknownNameError("field", place[0], known)), param=field, code="unknown_field")
    reason = first["msg"].removeprefix("Value error, ")
    if not place and first["type"] == "value_error":
        return ApiError(400, f"{reason}.")
    if not place:
        return ApiError(400, "The body must be a JSON object, with Content-Type: application/json.")
    return ApiError(400, f"{'.'.join(place)}: {reason}.", param=field)
