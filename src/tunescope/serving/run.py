"""Running the server until it is stopped."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from tunescope.errors import TunescopeError
from tunescope.serving.log import log_lines


class _Server(uvicorn.Server):
    """Takes no more requests once it is told to stop, and lets those under way end."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn when it is told to stop."""
        self.config.loaded_app.app.state.service.stopping = True  # around the application lies uvicorn's own layer
        if (jobs := getattr(self.config.loaded_app.app.state, "jobs", None)) is not None:
            await jobs.close()
        await super().shutdown(sockets)


def serve(app: FastAPI, host: str, port: int, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way may end within ``Limits.grace``.

    Args:
        app: what ``make_app`` made.
        host: address to listen at.
        port: 0 takes a free one.
        on_ready: told the address when it listens.

    Raises:
        TunescopeError: the address cannot be listened at.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise TunescopeError(
            f"{host}:{port} cannot be listened at ({error}): choose another with --host and --port."
        ) from error
    limits = app.state.service.limits
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=max(round(limits.grace), 1), lifespan="off"
    )
    shown = f"[{host}]" if ":" in host else host
    on_ready(f"http://{shown}:{listening.getsockname()[1]}")
    with listening, log_lines(logging.getLogger("tunescope.serving"), sys.stderr):
        _Server(config).run(sockets=[listening])
