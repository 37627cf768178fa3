"""Full fine-tuning: every weight of the base moves.

The only method that cannot be switched off: it makes another model, of the base's size, and can forget what the base
knew. It trains on a float32 copy (products run in bfloat16 where that is fast), so the frozen base stays as it was.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tunescope.methods.method import Method


class Full(Method):
    """Train every weight."""

    name: ClassVar[str] = "full"
    trains: ClassVar[Literal["nothing", "effects", "base"]] = "base"
    learning_rate: ClassVar[float] = 3e-5
