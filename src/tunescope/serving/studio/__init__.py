"""The studio: a page over the server's own API. Nothing is built and nothing is fetched from elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response

from tunescope.serving.errors import ApiError
from tunescope.serving.keys import Key

_FILES = Path(__file__).parent
_TYPES = {"studio.js": "text/javascript", "studio.css": "text/css"}
# The page loads nothing from other hosts, and no other page may frame it.
_POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "frame-ancestors 'self'; sandbox allow-scripts"  # also where it is opened by its address
)


def add(app: FastAPI, reports: Sequence[Path]) -> None:
    """Add the page and what it reads beside the API.

    Args:
        app: to add it to.
        reports: folders of comparisons.
    """

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(_FILES / "studio.html", headers={"Content-Security-Policy": _POLICY})

    @app.get("/studio/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        if name not in _TYPES:
            raise ApiError(404, f"/studio/{name} is no file of the studio.")
        return FileResponse(_FILES / name, media_type=_TYPES[name])

    secret = secrets.token_bytes(32)

    def issued(name: str) -> str:
        return hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()

    @app.get("/reports", include_in_schema=False)
    def listed(http: Request) -> dict[str, Any]:
        """The comparisons, each with an address that opens it without a key: a frame cannot send one."""
        key: Key | None = http.state.key
        names = sorted(_reports(reports)) if key is None or key.sees_all else []
        return {"data": [{"name": name, "href": f"/reports/{quote(name)}?ticket={issued(name)}"} for name in names]}

    @app.get("/reports/{name}", include_in_schema=False)
    def report(name: str, ticket: str = "") -> Response:
        found = _reports(reports)
        if name not in found or not hmac.compare_digest(ticket.encode(), issued(name).encode()):
            raise ApiError(404, f"There is no comparison {name!r} at this address: GET /reports gives the addresses.")
        return FileResponse(found[name], headers={"Content-Security-Policy": _REPORT_POLICY})


def _reports(folders: Sequence[Path]) -> dict[str, Path]:
    """The reports of folders of comparisons, by the name of the run; a folder may be a run itself."""
    found = {}
    for folder in folders:
        own = folder / "report.html"
        for path in [own] if own.is_file() else folder.glob("*/report.html"):
            found[path.resolve().parent.name] = path
    return found
