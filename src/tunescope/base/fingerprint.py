"""What makes a base the same base: its weights, its tokenizer and its chat template."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn

from tunescope import storage
from tunescope.settings import Settings


class Fingerprint(Settings):
    """SHA-256 sums of a base's parts, so that an error can say which of them differs."""

    weights: str
    """Over every parameter and buffer at rest: name, dtype, shape, bytes, in order of name."""
    tokenizer: str
    """Over the tokenizer's full definition: vocabulary, merges, normalization, added tokens."""
    chat_template: str
    """Over the chat template's text; of the empty text where there is none."""
    quantized: str | None = Field(None, exclude_if=lambda value: value is None)
    """Over every tensor after quantization; none where weights are as they are at rest."""

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits of all of them together, for people."""
        return hashlib.sha256(f"{self.computing}{self.tokenizer}{self.chat_template}".encode()).hexdigest()[:12]

    @property
    def computing(self) -> str:
        """Of the weights that compute: the quantized ones where there are any."""
        return self.quantized or self.weights

    def differences(self, other: Fingerprint) -> list[str]:
        """The parts in which two fingerprints differ, in words."""
        return [words for field, words in _PARTS.items() if getattr(self, field) != getattr(other, field)]

    def differs_in_bits_alone(self, other: Fingerprint) -> bool:
        """Whether both are of the same base, and keep its weights in other bits."""
        return self.differences(other) == [_PARTS["quantized"]]


_PARTS = {
    "weights": "weights", "tokenizer": "tokenizer", "chat_template": "chat template", "quantized": "quantization"
}  # fmt: skip


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over the model's tensors as they are now. Tied tensors count once, under their first name."""
    digest, seen = hashlib.sha256(), set()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(raw.numpy()))
    return digest.hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's definition, without what changes from call to call (padding, truncation)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        definition.pop("padding", None)
        definition.pop("truncation", None)
    else:
        definition = {"vocab": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    return _hash_text(json.dumps(definition, sort_keys=True, default=str))


def fingerprint(model: nn.Module, tokenizer: Any, folder: Path | None) -> Fingerprint:
    """Fingerprint a base as loaded from ``folder`` in its stored precision (None: it never was in one).

    The sum over the weights of a folder is remembered in the cache under the files' names, sizes and times.
    """
    weights = _remembered(folder, model) if folder is not None else hash_weights(model)
    return Fingerprint(
        weights=weights,
        tokenizer=hash_tokenizer(tokenizer),
        chat_template=_hash_text(getattr(tokenizer, "chat_template", None) or ""),
    )


def _remembered(folder: Path, model: nn.Module) -> str:
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(folder.glob("*.safetensors"))]
    if not files:
        return hash_weights(model)
    key = _hash_text(json.dumps([str(folder.resolve()), files]))
    memo = storage.cache_folder() / "fingerprints" / key
    if memo.is_file() and re.fullmatch(rb"[0-9a-f]{64}", kept := memo.read_bytes()):
        return kept.decode()
    value = hash_weights(model)
    storage.atomic_write(memo, value)
    return value


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
