"""P-tuning: an encoder predicts the virtual tokens (Liu et al. 2021, arXiv:2103.10385).

Against the plain transformer the change is prompt tuning's, [P_1 … P_m] before the text, but in training

    P = encoder(H)

with H [virtual_tokens, hidden] learned and the encoder shared by all rows, so that the virtual tokens move together
instead of one by one (section 3.2 of the paper: discreteness and association). Two encoders:

* ``mlp``: hidden → ReLU → hidden → ReLU → embedding, row by row;
* ``lstm``: a bidirectional LSTM over the rows, then hidden → ReLU → embedding.

Both begin at random; the first rows of H begin as the word embeddings of the task's name, which is what the encoder is
fed. When training ends, P is written down and the encoder is dropped: at rest and in service this is prompt tuning,
and the encoder's weights cost nothing. A checkpoint of an unfinished run keeps the encoder.

Several tasks may share one encoder (``training.tasks``): each has an H of its own, that begins at its name, and what
the encoder learns of one serves the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from tunescope.base import Base
from tunescope.methods.effects import Effect, SoftPrompt
from tunescope.methods.prompt_tuning import VirtualTokens, embed, random_rows
from tunescope.methods.space import Between
from tunescope.settings import MOST


class PTuning(VirtualTokens):
    """P-tuning."""

    name: ClassVar[str] = "p-tuning"
    learning_rate: ClassVar[float] = 1e-2
    rates: ClassVar[Between | None] = Between(1e-3, 1e-1)

    encoder: Literal["mlp", "lstm"] = "mlp"
    """What predicts the virtual tokens. The LSTM is the paper's; the MLP trains faster."""
    encoder_hidden: int | None = Field(None, gt=0, le=MOST)
    """Width of the encoder. By default the model's hidden size."""
    encoder_layers: int = Field(2, gt=0, le=1000)
    """Layers of the LSTM."""
    task: str = Field("task", min_length=1)
    """Name of the task. The encoder's input begins at its words."""

    def effects(self, base: Base, generator: torch.Generator, labels: Sequence[str] | None = None) -> dict[str, Effect]:
        """One ``EncodedSoftPrompt`` of this task.

        Raises:
            TrainingError: no room for the virtual tokens.
        """
        return self.effects_of_tasks(base, generator, [self.task])

    def effects_of_tasks(self, base: Base, generator: torch.Generator, tasks: Sequence[str]) -> dict[str, Effect]:
        """One ``EncodedSoftPrompt`` of several tasks, by their names, that share the encoder.

        Raises:
            TrainingError: no room for the virtual tokens of a task.
        """
        self.check_room(base)
        inputs = torch.stack([self._input(base, task, generator) for task in tasks])
        width = inputs.shape[-1]
        hidden = self.encoder_hidden or width
        made = MLPEncoder(width, hidden) if self.encoder == "mlp" else LSTMEncoder(width, hidden, self.encoder_layers)
        _initialize(made, generator)
        return {"embedding.prefix": EncodedSoftPrompt(inputs, made)}

    def _input(self, base: Base, task: str, generator: torch.Generator) -> torch.Tensor:
        """H of a task as it begins, [virtual_tokens, hidden]: the words of its name, then random rows."""
        rows = random_rows(base, self.virtual_tokens, generator)
        words = base.tokenizer(task, add_special_tokens=False)["input_ids"][: self.virtual_tokens]
        rows[: len(words)] = embed(base, words)
        return rows


class EncodedSoftPrompt(SoftPrompt):
    """Virtual tokens while they are trained: ``inputs`` [tasks, virtual_tokens, hidden] seen through an encoder."""

    def __init__(self, inputs: torch.Tensor, encoder: nn.Module) -> None:
        super(SoftPrompt, self).__init__()  # it has no embeddings of its own yet
        self.inputs = nn.Parameter(inputs.detach().float().clone())
        self.encoder = encoder

    def table(self) -> torch.Tensor:
        """[tasks · virtual_tokens, hidden], what the encoder predicts now, task by task."""
        return self.encoder(self.inputs).flatten(0, 1)

    def finished(self) -> Effect:
        """The predicted virtual tokens alone."""
        with torch.no_grad():
            return SoftPrompt(self.table())


class MLPEncoder(nn.Module):
    """Three linear maps with ReLU between them; [tasks, virtual_tokens, width] to the same shape."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Predict the virtual tokens."""
        return self.head(rows)


class LSTMEncoder(nn.Module):
    """A bidirectional LSTM and two linear maps with a ReLU; [tasks, virtual_tokens, width] to the same shape."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, num_layers=layers, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Predict the virtual tokens."""
        return self.head(self.lstm(rows)[0])


def _initialize(encoder: nn.Module, generator: torch.Generator) -> None:
    """Every tensor uniform within 1/√(its inputs), torch's own choice, but drawn by our generator."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear | nn.LSTM):
            fan = module.in_features if isinstance(module, nn.Linear) else module.hidden_size
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, -(fan**-0.5), fan**-0.5, generator=generator)
