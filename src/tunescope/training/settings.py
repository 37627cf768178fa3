"""How a training run goes: everything about it that is neither the method nor the objective nor the data."""

from __future__ import annotations

from pydantic import Field

from tunescope.settings import Settings


class TrainSettings(Settings):
    """The training loop's settings; each is a flag of ``tunescope train``."""

    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps. By default as many as the epochs take."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows, when max-steps does not say."""
    batch_size: int = Field(8, gt=0)
    """Rows an optimizer step."""
    accumulate: int = Field(1, gt=0)
    """Parts a step's rows are cut into, one after the other, to save memory. The result is the same."""
    recompute: bool = False
    """Compute each layer again in the backward pass instead of keeping what it computed: less memory, about a third
    more time. The result is the same."""
    lr: float | None = Field(None, gt=0)
    """Highest learning rate. By default the method's own."""
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of the steps in which the rate rises from zero; after it, a cosine takes it down to zero."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay, toward the base as it is. None by default: short fine-tuning gains nothing from it."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients longer than this are scaled down to it."""
    max_length: int | None = Field(None, gt=1)
    """Most tokens a row may have, prompt and completion together. By default the base's context."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of the initialization, the order of the rows and dropout."""
    checkpoint_every: int | None = Field(None, gt=0)
    """Steps between checkpoints. By default one a minute."""
    validate_every: int | None = Field(None, gt=0)
    """Steps between measurements of the validation rows, where there are some. By default an epoch's."""
    trackers: tuple[str, ...] = ()
    """accelerate trackers that also get the metrics (tensorboard, wandb, mlflow …); files go to BANK/tracking."""
