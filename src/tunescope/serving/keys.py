"""API keys: who may ask, for which entries, and how often."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import Field, model_validator

from tunescope.errors import DataError, TunescopeError
from tunescope.serving.errors import ApiError
from tunescope.settings import Settings


class Key(Settings):
    """One key of the file of keys."""

    name: str
    """Whose it is, for the log."""
    key: str | None = Field(None, min_length=16)
    """The key itself, at least 16 characters; or"""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """its SHA-256 in hexadecimal digits, so that the file holds no secret."""
    models: tuple[str, ...] = ("*",)
    """The entries it may ask for; * stands for any characters, as in topics:*."""
    requests_per_minute: float | None = Field(None, gt=0)
    """How often it may ask; as often as it likes where nothing is said."""
    updates: bool = False
    """Whether it may load and unload, where the server allows updates."""

    @model_validator(mode="after")
    def _check_secret(self) -> Key:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("needs either key or sha256")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        return bytes.fromhex(self.sha256) if self.sha256 else hashlib.sha256((self.key or "").encode()).digest()

    @property
    def sees_all(self) -> bool:
        """Whether it may know of every entry."""
        return "*" in self.models

    def may(self, name: str) -> bool:
        """Whether it may ask for an entry."""
        return any(fnmatchcase(name, pattern) for pattern in self.models)

    def check_model(self, name: str) -> None:
        """Refuse an entry it may not ask for.

        Raises:
            ApiError: 403.
        """
        if not self.may(name):
            raise ApiError(403, f"This key may not ask for {name!r}.", param="model", code="model_not_allowed")


@dataclass
class _Allowance:
    """A bucket that fills by the minute."""

    left: float
    seen: float = field(default_factory=time.monotonic)


class Keys:
    """The keys of a server.

    Args:
        keys: with names that all differ; none lets everyone in.
    """

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self.keys = tuple(keys)
        self._digests = [key.digest for key in self.keys]
        self._left = {key.name: _Allowance(key.requests_per_minute or 0) for key in self.keys}

    def of(self, header: str | None) -> Key | None:
        """Whose key an Authorization header has; None where no key is needed.

        Raises:
            ApiError: 401.
        """
        if not self.keys:
            return None
        scheme, _, given = (header or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        # Every key is compared in full, so that the time tells nothing about them.
        matches = [hmac.compare_digest(digest, own) for own in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "This server needs a key: send Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return self.keys[matches.index(True)]

    def count(self, key: Key) -> None:
        """Take a request from a key's rate.

        Raises:
            ApiError: 429, with the seconds until there is room again.
        """
        rate = key.requests_per_minute
        if rate is None:
            return
        allowance, now = self._left[key.name], time.monotonic()
        most = max(rate, 1.0)
        allowance.left = min(most, allowance.left + (now - allowance.seen) * rate / 60)
        allowance.seen = now
        if allowance.left < 1:
            wait = (1 - allowance.left) * 60 / rate
            raise ApiError(
                429,
                f"This key may ask {rate:g} times a minute. Ask again in {wait:.0f} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(max(round(wait), 1))},
            )
        allowance.left -= 1


def read_keys(path: Path) -> Keys:
    """Read a YAML file: a list of keys with the fields of ``Key``.

    Raises:
        DataError: it cannot be read, names an unknown field, or a name twice.
    """
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise DataError(f"{path} must be a list of keys, each with name, and key or sha256.")
    keys = []
    for number, each in enumerate(listed, start=1):
        try:
            keys.append(Key.parse(each))
        except TunescopeError as error:
            raise DataError(f"{path}, key {number}: {error}") from error
    names = [key.name for key in keys]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{path} names {twice} twice.")
    return Keys(keys)
