"""What makes a customization the same one, so that unfinished work is continued by no other."""

from __future__ import annotations

import hashlib

from tunescope.base.fingerprint import hash_weights
from tunescope.methods.customization import Customization, Customized


def hash_customized(customized: Customized) -> str:
    """SHA-256 over the template and what acts, after full fine-tuning also over the moved weights."""
    digest = hashlib.sha256(customized.template.model_dump_json().encode())
    digest.update(hash_customization(customized.customization).encode())
    if customized.base is not customized.origin:
        digest.update(hash_weights(customized.base.model).encode())
    return digest.hexdigest()


def hash_customization(customization: Customization) -> str:
    """SHA-256 over the methods' settings and the tensors, those of what it starts from among them."""
    digest = hashlib.sha256()
    for layer in customization.layers:
        digest.update(f"{layer.method.name}{layer.method.model_dump_json()}".encode())
    for name, tensor in sorted(customization.all_tensors().items()):
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()
