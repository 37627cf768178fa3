"""Full fine-tuning: every weight of the base moves.

The only method that cannot be switched off: it makes another model, of the base's size, and can forget what the base
knew. It trains a copy, so the frozen base stays as it was. Where the base computes in bfloat16 so does the copy, and
the optimizer keeps float32 masters of its weights.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tunescope.methods.method import Method
from tunescope.methods.space import Between


class Full(Method):
    """Train every weight."""

    name: ClassVar[str] = "full"
    trains: ClassVar[Literal["nothing", "effects", "base"]] = "base"
    learning_rate: ClassVar[float] = 1e-4
    rates: ClassVar[Between | None] = Between(1e-5, 1e-3)
