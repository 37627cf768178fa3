"""What is written beside a customization's tensors: everything needed to trust it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from tunescope.base import Fingerprint
from tunescope.data.template import Template
from tunescope.settings import Settings


class BaseRecord(Settings):
    """The base a customization was made for."""

    name: str
    """What the user called it: a hub id, a folder, a built-in name."""
    fingerprint: Fingerprint
    """Of its weights, tokenizer and chat template."""


class DataRecord(Settings):
    """The rows a customization was made from."""

    name: str
    """File or data set."""
    sha256: str
    """Over the prompts and completions of the rows used, in order."""
    rows: int
    """How many rows were used."""


class Continued(Settings):
    """The entry whose own tensors were trained on."""

    name: str
    """File or what it was called."""
    tensors_sha256: str
    """Of its tensors."""
    labels: tuple[str, ...] | None = None
    """The labels of its task, which some methods begin at."""


class Record(Settings):
    """The certificate of a customization, kept as ``customization.json``."""

    format: Literal[1] = 1
    """Version of this layout."""
    tunescope: str
    """Version of tunescope that wrote it."""
    method: str
    """The method's name."""
    method_settings: dict[str, Any]
    """The method's settings."""
    objective: str | None
    """What it was trained for; none for prompting."""
    objective_settings: dict[str, Any] = Field(default_factory=dict)
    """The objective's settings."""
    train_settings: dict[str, Any] | None = None
    """The training loop's settings; none for prompting."""
    dtype: str | None = None
    """Precision the base computed in when it was trained."""
    template: Template
    """What stands around a row's text, with the stop tokens."""
    base: BaseRecord
    """Which base it belongs to."""
    data: DataRecord | None = None
    """Which rows it was made from."""
    labels: tuple[str, ...] | None = None
    """The labels of a classification task."""
    tensors_sha256: str | None = None
    """Of the tensor files, so that damage is found; none only where the method has no tensors."""
    training: dict[str, Any] = Field(default_factory=dict)
    """What the run measured: steps, seconds, tokens, loss."""
    start: Record | None = None
    """The certificate of what it starts from, whose effects act before its own; none where that is the base."""
    continued: Continued | None = None
    """The entry whose own tensors were trained on; none where they are new."""
    card: dict[str, Any] | None = None
    """What ``tunescope eval`` measured last."""
