"""What the studio starts: ``look``, ``train`` and ``compare`` on an uploaded file, one after the other, each in a
process of its own. A job is a recipe that ``tunescope run`` goes on with when it is started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from tunescope.errors import TunescopeError
from tunescope.serving.bodies import Body
from tunescope.serving.errors import ApiError
from tunescope.storage import atomic_write

_ROWS = re.compile(r"[\w][\w .-]{0,99}\.(jsonl|json|csv|tsv|parquet)")
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_RUN = "from tunescope.cli import main; main()"
_LOG_LINES = 200
_INTERRUPTED = "interrupted"
_NAME_BYTES = 120
_RESUMED = ("failed", "stopped", _INTERRUPTED)
_OVER = ("done", "failed", "stopped", _INTERRUPTED)
# Settings of a job that its command has.
_SETTINGS = {
    "look": ("template", "max_length"),
    "train": ("template", "max_length", "method", "max_steps", "lr", "epochs", "seed"),
    "compare": ("template", "max_length", "methods", "budget", "seed"),
}


class JobBody(Body):
    """``POST /v1/jobs``. Of the commands' settings those that name no file, no code and no place."""

    command: Literal["look", "train", "compare"]
    rows: str
    name: str | None = Field(None, pattern=_NAME)
    template: str | None = Field(None, max_length=10_000)
    max_length: int | None = Field(None, ge=2)
    method: str | None = None
    methods: list[str] | None = Field(None, min_length=1)
    max_steps: int | None = Field(None, gt=0)
    epochs: float | None = Field(None, gt=0)
    lr: float | None = Field(None, gt=0)
    seed: int | None = Field(None, ge=0)
    budget: str | None = None

    @model_validator(mode="after")
    def _check_settings(self) -> JobBody:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if extra := sorted(given - {"command", "rows", "name", *_SETTINGS[self.command]}):
            raise ValueError(f"{extra[0]} is no setting of {self.command}")
        if self.command == "train" and not (self.method and self.name):
            raise ValueError("train needs method and name, under which the entry stands in the bank")
        return self


@dataclass
class _Running:
    """The job under way; without a process while that is being made."""

    id: str
    process: asyncio.subprocess.Process | None = None
    to_stop: bool = False

    def stop(self) -> None:
        """Tell it to save and end, now or as soon as it is there."""
        self.to_stop = True
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)


class Jobs:
    """The jobs of a server, kept in a folder: they are there after a restart.

    Args:
        folder: for uploads, jobs and comparisons.
        bank: where trained entries go.
        base: what the commands call the base.
        taken: further names that no entry may have: the base's for clients.
    """

    def __init__(self, folder: Path, bank: Path, base: str, taken: Sequence[str] = ()) -> None:
        self.taken = tuple(taken)
        self.folder, self.bank, self.base = folder, bank, base
        self._waiting: deque[str] = deque()
        self._running: _Running | None = None
        self._closed = False
        self._runner: asyncio.Task[None] | None = None
        for path in (self.uploads, self.reports, folder / "jobs"):
            path.mkdir(parents=True, exist_ok=True)
        for id in self.ids:
            if self._read(id)["state"] in ("waiting", "running"):
                self._write(id, state=_INTERRUPTED)

    @property
    def uploads(self) -> Path:
        """Where uploaded rows lie."""
        return self.folder / "rows"

    @property
    def reports(self) -> Path:
        """Where comparisons go."""
        return self.folder / "comparisons"

    @property
    def ids(self) -> list[str]:
        """All jobs, the newest first."""
        return sorted((path.parent.name for path in (self.folder / "jobs").glob("*/job.json")), reverse=True)

    async def upload(self, name: str, content: bytes) -> dict[str, Any]:
        """Keep a file of rows; one of that name is replaced.

        Raises:
            ApiError: a name that is no file of rows.
        """
        if not _ROWS.fullmatch(name) or len(name.encode()) > _NAME_BYTES:
            raise ApiError(
                400, f"{name!r} is no name of a file of rows: end it in .jsonl, .json, .csv, .tsv or .parquet."
            )
        await asyncio.to_thread(atomic_write, self.uploads / name, content)
        return {"name": name, "bytes": len(content)}

    def start(self, body: JobBody) -> dict[str, Any]:
        """Queue a job.

        Raises:
            ApiError: rows that were not uploaded, or an entry that is there already.
        """
        rows = self.uploads / body.rows
        if self._closed:
            raise ApiError(503, "The server is being stopped.")
        if body.name in (self.base, *self.taken):
            raise ApiError(409, f"{body.name} is the base's name: take another.", param="name")
        if not _ROWS.fullmatch(body.rows) or len(body.rows.encode()) > _NAME_BYTES or not rows.is_file():
            raise ApiError(400, f"{body.rows!r} was not uploaded: PUT /v1/rows/NAME first.", param="rows")
        begun = datetime.now(UTC)
        id = f"{begun:%Y%m%d-%H%M%S-%f}-{uuid.uuid4().hex[:6]}"  # in order, also of those that begin in one second
        name = body.name or id
        recipe = {"command": body.command, "base": self.base, "data": str(rows)}
        recipe |= {key: value for key in _SETTINGS[body.command] if (value := getattr(body, key)) is not None}
        if body.command == "train":
            if (self.bank / name).exists():
                raise ApiError(409, f"The bank has an entry {name}: take another name.", param="name")
            recipe["out"] = str(self.bank / name)
        if body.command == "compare":
            if (self.reports / name).exists():
                raise ApiError(409, f"There is a comparison {name}: take another name.", param="name")
            recipe["out"] = str(self.reports / name)
        (self._of(id)).mkdir()
        atomic_write(self._of(id) / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        settings = body.model_dump(exclude_none=True)
        self._write(id, state="waiting", command=body.command, name=name, settings=settings, created=time.time())
        self._queue(id)
        return self.shown(id)

    def resume(self, id: str) -> dict[str, Any]:
        """Go on with a job that was stopped or failed."""
        if self._known(id)["state"] not in _RESUMED:
            raise ApiError(409, f"The job {id} is under way, or done.")
        self._write(id, state="waiting", ended=None)
        self._queue(id)
        return self.shown(id)

    def stop(self, id: str) -> dict[str, Any]:
        """Stop a job: what it has is kept, and it can go on."""
        if self._known(id)["state"] in _OVER:
            raise ApiError(409, f"The job {id} has ended.")
        if self._running is not None and self._running.id == id:
            self._running.stop()
        else:
            self._waiting.remove(id)
            self._write(id, state="stopped", ended=time.time())
        return self.shown(id)

    async def close(self, patience: float = 20.0) -> None:
        """Stop what runs, and start nothing more; what has not saved and ended after ``patience`` seconds is killed."""
        self._closed = True
        self._waiting.clear()
        if self._running is not None:
            self._running.stop()
        if self._runner is None or self._runner.done():
            return
        done, _ = await asyncio.wait({self._runner}, timeout=patience)
        if not done and self._running is not None and self._running.process is not None:
            self._running.process.kill()
            await self._runner

    def shown(self, id: str) -> dict[str, Any]:
        """A job with how it goes: its log's end, the losses of a training, the rows of a comparison.

        Raises:
            ApiError: 404.
        """
        job = self._known(id)
        log = _text(self._of(id) / "log.txt").splitlines()[-_LOG_LINES:]
        shown = {"id": id, **job, "log": "\n".join(log), "output": _text(self._of(id) / "output.txt")[-50_000:]}
        if job["command"] == "train":
            shown["losses"] = self._losses(job["name"])
        if job["command"] == "compare":
            shown["rows"] = self._rows(job["name"])
        return shown

    def _losses(self, name: str) -> list[list[float]]:
        places = (self.bank / name / "metrics.jsonl", self.bank / ".training" / name / "metrics.jsonl")
        text = next((text for place in places if (text := _text(place))), "")
        steps = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError):  # the last line may be half written
                step = json.loads(line)
                steps.append([step["step"], step["loss"]])
        return steps[:: max(len(steps) // 400, 1)]

    def _rows(self, name: str) -> list[dict[str, Any]]:
        keys = (
            "name",
            "score",
            "score_low",
            "score_high",
            "seconds",
            "forgetting_on",
            "ttft_ms",
            "trainable_parameters",
        )
        with contextlib.suppress(ValueError):
            found = json.loads(_text(self.reports / name / "comparison.json"))
            return [{key: row.get(key) for key in keys} for row in found["rows"]]
        return []

    def _queue(self, id: str) -> None:
        self._waiting.append(id)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_all())

    async def _run_all(self) -> None:
        while self._waiting:
            id = self._waiting.popleft()
            try:
                await self._run(id)
            except OSError as error:
                self._write(id, state="failed", ended=time.time(), error=str(error))
            finally:
                self._running = None

    async def _run(self, id: str) -> None:
        folder = self._of(id)
        self._running = running = _Running(id)
        as_json = () if self._read(id)["command"] == "look" else ("--json",)
        with (folder / "log.txt").open("ab") as log, (folder / "output.txt").open("wb") as output:
            running.process = process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _RUN, "run", str(folder / "recipe.yaml"), *as_json,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=log,
                env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}, start_new_session=True,
            )  # fmt: skip
            if running.to_stop:
                running.stop()
            self._write(id, state="running", started=time.time())
            code = await process.wait()
        # One that is told to stop while it still starts ends with a code of its own.
        state = "done" if code == 0 else "stopped" if running.to_stop else "failed"
        self._write(id, state=state, ended=time.time(), code=code)

    def _known(self, id: str) -> dict[str, Any]:
        if id not in self.ids:
            raise ApiError(404, f"There is no job {id!r}: GET /v1/jobs lists all.")
        return self._read(id)

    def _of(self, id: str) -> Path:
        return self.folder / "jobs" / id

    def _read(self, id: str) -> dict[str, Any]:
        try:
            return dict(json.loads(_text(self._of(id) / "job.json")))
        except ValueError as error:
            raise TunescopeError(f"{self._of(id)} is damaged ({error}): remove that folder.") from error

    def _write(self, id: str, **changes: Any) -> None:
        path = self._of(id) / "job.json"
        job = self._read(id) if path.exists() else {}
        atomic_write(path, json.dumps(job | changes, ensure_ascii=False))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
