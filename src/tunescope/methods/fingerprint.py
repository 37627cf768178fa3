"""What makes a customization the same one, so that unfinished work is continued by no other."""

from __future__ import annotations

import hashlib

from tunescope.base.fingerprint import hash_weights
from tunescope.methods.customization import Customized


def hash_customized(customized: Customized) -> str:
    """SHA-256 over the template and the tensors, after full fine-tuning also over the moved weights."""
    digest = hashlib.sha256(customized.template.model_dump_json().encode())
    for name, tensor in sorted(customized.customization.tensors().items()):
        digest.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    if customized.base is not customized.origin:
        digest.update(hash_weights(customized.base.model).encode())
    return digest.hexdigest()
