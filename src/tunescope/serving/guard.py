"""The door of the server: keys, the size of bodies, and a line in the log for each request."""

from __future__ import annotations

import json
import logging
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunescope.serving.errors import ApiError
from tunescope.serving.keys import Keys
from tunescope.serving.limits import Limits

OPEN = frozenset(("/", "/health", "/ready"))
"""Paths that need no key. Nor do the studio's own files, and reports, which have addresses that nobody guesses."""
_UPLOADS = "/v1/rows/"
_LOG = logging.getLogger("tunescope.serving")


class Guard:
    """Middleware around all endpoints.

    Args:
        app: what is guarded.
        keys: who may ask.
        limits: how large a body may be.
    """

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits) -> None:
        self.app, self.keys, self.limits = app, keys, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Logged(scope, send)
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            scope["state"]["key"] = self._key(scope, headers)
            most = self.limits.max_upload_mb * 1000 if scope["path"].startswith(_UPLOADS) else self.limits.max_body_kb
            received = _Bounded(scope, receive, most * 1000, headers.get(b"content-length"))
            await self.app(scope, received, request.send)
        except ApiError as error:
            if request.status is not None:
                raise
            await error.response(scope, receive, request.send)
        except Exception:
            _LOG.exception("%s failed", request.id)
            if request.status is not None:
                raise
            failed = ApiError(500, f"The server failed while it answered; its log says how, at {request.id}.")
            await failed.response(scope, receive, request.send)
        finally:
            request.log()

    def _key(self, scope: Scope, headers: dict[bytes, bytes]) -> Any:
        path = scope["path"]
        if path in OPEN or path.startswith(("/studio/", "/reports/")) or scope["method"] == "OPTIONS":
            return None
        key = self.keys.of(headers.get(b"authorization", b"").decode("latin-1"))
        if key is not None and scope["method"] not in ("GET", "HEAD"):
            self.keys.count(key)
        return key


class _Bounded:
    """Receives a body up to a size."""

    def __init__(self, scope: Scope, receive: Receive, most: int, announced: bytes | None) -> None:
        self._scope, self._receive, self._most, self._size = scope, receive, most, 0
        if announced is not None and announced.isdigit() and int(announced) > most:
            raise self._too_large()

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            self._scope["state"]["refused"] = self._too_large()  # for what reads the body, and calls any error bad JSON
            raise self._scope["state"]["refused"]
        return message

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self._most // 1000} kB: send less at once.", code="too_large")


class _Logged:
    """Notes how a request went."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._begun = time.perf_counter()
        self.status: int | None = None
        self.id = uuid.uuid4().hex
        scope.setdefault("state", {})["noted"] = {}

    async def send(self, message: Message) -> None:
        """Pass a message on, with the request's id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
        await self._send(message)

    def log(self) -> None:
        """One line of JSON; without prompts and answers, unless the server was told to log them."""
        key = self._scope["state"].get("key")
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "id": self.id,
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": self.status or 499,
            "seconds": round(time.perf_counter() - self._begun, 4),
            **({} if key is None else {"key": key.name}),
            **{name: getattr(each, "shown", each) for name, each in self._scope["state"]["noted"].items()},
        }
        _LOG.info(json.dumps(line, ensure_ascii=False))
