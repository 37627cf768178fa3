"""What torch's libraries are told before they load, so that they compute well on a CPU that others use, too.

Each variable is one that the library itself reads. What the environment says already stays; docs/training.md has the
measurements.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

# oneDNN, and torch in front of it, keep what they prepared for the last 1,024 shapes of matmuls. Rows of many lengths
# make 20 new shapes a step, no shape comes back, and what is kept fragments the heap: after 140 steps of
# SmolLM2-135M memory had doubled and a step took 1.5 times as long. One step needs fewer than 128.
_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}

# A product of matrices ends with its last thread, and the others spin until then: GNU OpenMP's some 300,000 turns
# before they sleep. Where other work holds a core, they keep another one from the very thread they wait for. With
# fewer turns than these, waking up costs more than spinning.
_TURNS = {"GOMP_SPINCOUNT": "10000"}


def prepare(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what the environment does not say; of an effect before torch is imported."""
    for name, value in _SHAPES.items():
        environment.setdefault(name, value)
    if "OMP_WAIT_POLICY" not in environment:  # the standard's word for the same
        for name, value in _TURNS.items():
            environment.setdefault(name, value)
