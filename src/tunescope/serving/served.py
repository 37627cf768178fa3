"""The base and the entries of a bank, by the names that clients use, loaded when they are first asked for."""

from __future__ import annotations

import asyncio
import difflib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import bank
from tunescope.bank import Record
from tunescope.errors import BankError, EngineError, TunescopeError, UnknownNameError
from tunescope.inference import Engine
from tunescope.serving.errors import ApiError

_SCORERS = ("reward", "attributes")


@dataclass(frozen=True)
class Served:
    """What a request's ``model`` means.

    Attributes:
        name: as the client said it; of the base where ``record`` is None.
        record: the entry's certificate.
    """

    name: str
    record: Record | None = None

    @property
    def customization(self) -> str | None:
        """What the engine knows it by."""
        return None if self.record is None else self.name

    @property
    def head(self) -> str | None:
        """The head that scores, where it is an entry for scores."""
        return self.record.objective if self.record is not None and self.record.objective in _SCORERS else None

    @property
    def virtual_tokens(self) -> int:
        """How many tokens of its prompts are virtual."""
        return 0 if self.record is None else self.record.template.virtual_tokens

    def must_generate(self) -> Served:
        """Itself, where it writes answers.

        Raises:
            ApiError: 400, where it gives scores.
        """
        if self.head is not None:
            where = "/score or /pooling" if self.head == "reward" else "/pooling"
            raise ApiError(
                400, f"{self.name} gives scores ({self.head}) and writes no answers: ask {where}.", param="model"
            )
        return self

    def must_score(self, *heads: str) -> str:
        """Its head, where it has one of these.

        Raises:
            ApiError: 400, where it writes answers or scores something else.
        """
        if self.head not in heads:
            kind = "writes answers" if self.head is None else f"gives {self.head}"
            raise ApiError(400, f"{self.name} {kind}: this needs an entry for {' or '.join(heads)}.", param="model")
        assert self.head is not None
        return self.head


class Models:
    """All that a server serves.

    Args:
        engine: computes.
        folder: the bank; None serves the base alone.
        base_name: what clients call the base.
    """

    def __init__(self, engine: Engine, folder: Path | None, base_name: str) -> None:
        self.engine, self.folder, self.base_name = engine, folder, base_name
        self._paths: dict[str, Path] = {}  # of those loaded by request, under names of their own
        self._hidden: set[str] = set()  # unloaded by request, until they are loaded again
        self._records: dict[str, tuple[tuple[int, int], Record]] = {}
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        if folder is not None and base_name in bank.names_in(folder):
            raise BankError(f"{folder} has an entry {base_name}, which is the base's name: rename it, or the base.")

    @property
    def names(self) -> list[str]:
        """The base and every entry."""
        found = [] if self.folder is None else bank.names_in(self.folder)
        return [self.base_name, *sorted({*found, *self._paths} - self._hidden)]

    def record(self, name: str) -> Record:
        """An entry's certificate as it is on disk now.

        Raises:
            BankError: it is damaged.
        """
        path = self._path(name)
        stat = (path / bank.RECORD).stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if name not in self._records or self._records[name][0] != stamp:
            self._records[name] = (stamp, bank.read_record(path))
        return self._records[name][1]

    async def get(self, name: str) -> Served:
        """What a name means, ready to be asked.

        Raises:
            ApiError: 404 with the nearest names; 409 for an entry that this base can't serve.
        """
        if name == self.base_name:
            return Served(name)
        if name not in self.engine.names:
            if name not in await asyncio.to_thread(lambda: self.names):
                raise self._unknown(name)
            await self.load(name, self._path(name))
        return Served(name, await asyncio.to_thread(self._own_record, name))

    async def load(self, name: str, path: Path, *, replace: bool = False) -> None:
        """Load an entry, or what is at its path now.

        Raises:
            ApiError: 409, where it is damaged, of another base, or cannot share the base's rows.
        """
        async with self._loading[name]:
            if name in self.engine.names and not replace:
                return
            try:
                await asyncio.to_thread(self.engine.load, name, path)
            except (BankError, EngineError) as error:
                raise ApiError(409, str(error), param="model", code="cannot_be_served") from error
            if path != self._default_path(name):
                self._paths[name] = path
            self._hidden.discard(name)

    async def add(self, name: str, given: str | None, *, replace: bool) -> None:
        """Load by request: an entry of the bank, under its own or another name.

        Raises:
            ApiError: 400 for a name or path that cannot be; 404 for an entry that isn't there; 409, as ``load``, and
                for a name that is taken.
        """
        if not name.strip() or name != name.strip() or name.startswith(".") or "/" in name or "\\" in name:
            raise ApiError(400, f"{name!r} cannot name a customization: it has no slash and no space around it.")
        if name == self.base_name:
            raise ApiError(409, f"{name} is the base's name: take another.", code="name_taken")
        path = await asyncio.to_thread(self._inside, given or name)
        if name in self.engine.names and not replace:
            raise ApiError(409, f"{name} is loaded already: say replace, or load_inplace.", code="name_taken")
        await self.load(name, path, replace=True)

    def remove(self, name: str) -> None:
        """Unload by request; rows under way end as they began.

        Raises:
            ApiError: 404, nothing of that name.
        """
        if name == self.base_name:
            raise ApiError(400, "The base cannot be unloaded: every customization needs it.")
        if name not in self.names:
            raise self._unknown(name)
        if name in self.engine.names:
            self.engine.unload(name)
        self._paths.pop(name, None)
        self._hidden.add(name)

    def listed(self) -> list[dict[str, Any]]:
        """All, as ``/v1/models`` lists them; one whose certificate cannot be read says why."""
        return [self.describe(name) for name in self.names]

    def describe(self, name: str) -> dict[str, Any]:
        """One of them, as ``/v1/models`` has it."""
        base = self.engine.base
        shown: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "tunescope"}
        shown |= {"root": base.name, "parent": None, "max_model_len": base.context_length}
        if name == self.base_name:
            return shown | {"kind": "base", "loaded": True, "fingerprint": base.fingerprint.model_dump()}
        shown |= {"parent": self.base_name, "loaded": name in self.engine.names}
        try:
            record = self.record(name)
            shown["created"] = int((self._path(name) / bank.RECORD).stat().st_mtime)
        except (TunescopeError, OSError) as error:
            return shown | {"kind": None, "error": str(error)}
        steering = record.template.steering
        return shown | {
            "kind": record.method,
            "objective": record.objective,
            "fingerprint": record.base.fingerprint.model_dump(),
            "tensors_sha256": record.tensors_sha256,
            "labels": record.labels,
            "steer": None
            if steering is None
            else {"names": steering.names, "low": steering.low, "high": steering.high, "defaults": steering.defaults},
            "virtual_tokens": record.template.virtual_tokens,
        }

    def _own_record(self, name: str) -> Record:
        try:
            return self.record(name)
        except (BankError, OSError) as error:
            raise ApiError(409, str(error), param="model", code="cannot_be_served") from error

    def _default_path(self, name: str) -> Path:
        assert self.folder is not None
        return bank.entry_folder(self.folder / name)

    def _path(self, name: str) -> Path:
        return self._paths.get(name) or self._default_path(name)

    def _inside(self, given: str) -> Path:
        """The entry that a client's path means, which lies in the bank."""
        if self.folder is None:
            raise ApiError(400, "There is no bank: start the server with --bank.")
        root = self.folder.resolve()
        try:
            path = bank.entry_folder(root / given)
            inside = path.resolve().is_relative_to(root)
        except (UnknownNameError, OSError, ValueError) as error:
            raise ApiError(404, f"{given!r} is no entry of the bank: {error}") from error
        if not inside:
            raise ApiError(403, f"{given!r} lies outside the bank, where nothing is read.", code="outside_bank")
        if not (path / bank.RECORD).is_file():
            raise self._unknown(given)
        return path

    def _unknown(self, name: str) -> ApiError:
        near = difflib.get_close_matches(name, self.names, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else " GET /v1/models lists all."
        return ApiError(404, f"The model {name!r} does not exist.{hint}", param="model", code="model_not_found")
