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
from tunescope.serving.keys import Key

_SCORERS = ("reward", "attributes")
_SCALED = ("lora", "ia3", "adapter")


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


@dataclass(frozen=True)
class _Held:
    """An entry that the engine has: where it came from, and its certificate as it was then."""

    path: Path
    stamp: tuple[int, int]
    record: Record


class Models:
    """All that a server serves.

    Args:
        engine: computes.
        folder: the bank; None serves the base alone.
        base_name: what clients call the base.
    """

    def __init__(self, engine: Engine, folder: Path | None, base_name: str) -> None:
        self.engine, self.folder, self.base_name = engine, folder, base_name
        self._held: dict[str, _Held] = {}
        self._paths: dict[str, Path] = {}  # of those loaded by request, under names of their own
        self._hidden: set[str] = set()  # unloaded by request, until they are loaded again
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        if folder is not None and base_name in bank.names_in(folder):
            raise BankError(f"{folder} has an entry {base_name}, which is the base's name: rename it, or the base.")

    @property
    def names(self) -> list[str]:
        """The base and every entry."""
        found = [] if self.folder is None else bank.names_in(self.folder)
        return [self.base_name, *sorted({*found, *self._paths} - self._hidden)]

    async def get(self, name: str, key: Key | None = None) -> Served:
        """What a name means, ready to be asked: loaded when it is first asked for, and again where another entry lies
        at its place since.

        Args:
            name: as the client says it.
            key: the client's; names that it may not ask for are not suggested.

        Raises:
            ApiError: 404 with the nearest names; 409 for an entry that this base can't serve.
        """
        if name == self.base_name:
            return Served(name)
        path = await asyncio.to_thread(self._found, name)
        if path is None:
            self._forget(name)
            raise self.unknown(name, key)
        held = self._held.get(name)
        if held is None or held.path != path or held.stamp != await asyncio.to_thread(_stamp, path):
            held = await self._load(name, path)
        return Served(name, held.record)

    async def add(self, name: str, given: str | None, *, replace: bool, key: Key | None = None) -> None:
        """Load by request: an entry of the bank, under its own or another name.

        Raises:
            ApiError: 400 for a name that cannot be; 403 for what this key may not ask for, and paths outside the bank;
                404 for an entry that isn't there; 409, as ``get``, and for a name that is taken.
        """
        own = given is None or given == name
        if not own and (not name.strip() or name != name.strip() or name[0] == "." or any(c in name for c in "/\\:")):
            raise ApiError(400, f"{_short(name)!r} cannot be a name: it has a slash, a colon, or space around it.")
        if name == self.base_name:
            raise ApiError(409, f"{name} is the base's name: take another.", code="name_taken")
        path, source = await asyncio.to_thread(self._inside, given or name, key)
        if key is not None:
            key.check_model(source)
        taken = name in self._held or name in self._paths or (not own and name in self.names)
        if taken and not replace:
            raise ApiError(409, f"{name} is there already: say replace, or load_inplace.", code="name_taken")
        await self._load(name, path)
        self._hidden.discard(name)
        if self.folder is not None and path == bank.entry_folder(self.folder.resolve() / name):
            self._paths.pop(name, None)
        else:
            self._paths[name] = path

    def remove(self, name: str, key: Key | None = None) -> None:
        """Unload by request; rows under way end as they began.

        Raises:
            ApiError: 404, nothing of that name.
        """
        if name == self.base_name:
            raise ApiError(400, "The base cannot be unloaded: every customization needs it.")
        if name not in self.names:
            raise self.unknown(name, key)
        self._forget(name)
        self._paths.pop(name, None)
        self._hidden.add(name)

    def listed(self, key: Key | None = None) -> list[dict[str, Any]]:
        """All that a key may ask for, as ``/v1/models`` lists them; one whose certificate cannot be read says why."""
        return [self.describe(name) for name in self.names if key is None or key.may(name)]

    def describe(self, name: str) -> dict[str, Any]:
        """One of them, as ``/v1/models`` has it."""
        base = self.engine.base
        shown: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "tunescope"}
        shown |= {"root": base.name, "parent": None, "max_model_len": base.context_length}
        if name == self.base_name:
            return shown | {"kind": "base", "loaded": True, "fingerprint": base.fingerprint.model_dump()}
        held = self._held.get(name)
        shown |= {"parent": self.base_name, "loaded": held is not None}
        try:
            if held is None:
                path = self._place(name)
                held = _Held(path, _stamp(path), bank.read_record(path))
        except (TunescopeError, ApiError, OSError):
            return shown | {"kind": None, "error": "Its certificate cannot be read: tunescope bank verify says why."}
        record, steering = held.record, held.record.template.steering
        return shown | {
            "created": held.stamp[0] // 10**9,
            "kind": record.method,
            "objective": record.objective,
            "fingerprint": record.base.fingerprint.model_dump(),
            "tensors_sha256": record.tensors_sha256,
            "labels": record.labels,
            "template": record.template.pattern,
            "steer": None
            if steering is None
            else {"names": steering.names, "low": steering.low, "high": steering.high, "defaults": steering.defaults},
            "scales": record.method in _SCALED and not record.method_settings.get("dora") and record.start is None,
            "virtual_tokens": record.template.virtual_tokens,
        }

    def unknown(self, name: str, key: Key | None = None) -> ApiError:
        """The answer where nothing has this name."""
        may_know = [each for each in self.names if key is None or key.may(each)]
        near = difflib.get_close_matches(_short(name), may_know, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else " GET /v1/models lists all."
        return ApiError(404, f"The model {_short(name)!r} does not exist.{hint}", param="model", code="model_not_found")

    async def _load(self, name: str, path: Path) -> _Held:
        async with self._loading[name]:
            stamp, held = await asyncio.to_thread(_stamp, path), self._held.get(name)
            if held is not None and held.path == path and held.stamp == stamp:
                return held  # another request loaded it meanwhile
            try:
                record = await asyncio.to_thread(bank.read_record, path)
                await asyncio.to_thread(self.engine.load, name, path)
            except (BankError, EngineError) as error:
                self._forget(name)
                raise ApiError(409, str(error), param="model", code="cannot_be_served") from error
            self._held[name] = made = _Held(path, stamp, record)
            return made

    def _forget(self, name: str) -> None:
        self._held.pop(name, None)
        if name in self.engine.names:
            self.engine.unload(name)

    def _found(self, name: str) -> Path | None:
        """Where the entry of this name lies; None where there is none."""
        known = name in self._held or name in self._paths  # the bank is listed for names that are new only
        if name in self._hidden or not (known or name in self.names):
            return None
        path = self._place(name)
        return path if (path / bank.RECORD).is_file() else None

    def _place(self, name: str) -> Path:
        if name in self._paths:
            return self._paths[name]
        assert self.folder is not None
        path = bank.entry_folder(self.folder.resolve() / name)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ApiError(403, f"{name!r} is a link out of the bank, where nothing is read.", code="outside_bank")
        return path

    def _inside(self, given: str, key: Key | None) -> tuple[Path, str]:
        """The entry that a client's path means, which lies in the bank, and its name there."""
        if self.folder is None:
            raise ApiError(400, "There is no bank: start the server with --bank.")
        root, outside = self.folder.resolve(), f"{_short(given)!r} lies outside the bank, where nothing is read."
        try:
            if not (root / given).parent.resolve().is_relative_to(root):
                raise ApiError(403, outside, code="outside_bank")
            path = bank.entry_folder(root / given)
            if not path.resolve().is_relative_to(root):
                raise ApiError(403, outside, code="outside_bank")
        except (UnknownNameError, OSError, ValueError) as error:
            raise self.unknown(given, key) from error
        if not (path / bank.RECORD).is_file():
            raise self.unknown(given, key)
        return path, ":".join(path.relative_to(root).parts)


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when an entry is written anew."""
    stat = (path / bank.RECORD).stat()
    return stat.st_mtime_ns, stat.st_size


def _short(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:100]}…"
