"""Which weights a run ends with: the last, or those that did best on held-out rows."""

from __future__ import annotations

import math
from typing import Literal

from safetensors.torch import load_file, save_file
from torch import nn

from kleash.run import RunFolder, write_folder
from kleash.training.checkpoint import load_weights, trained_weights


class BestCheckpoint:
    """Keeps the weights of the step with the least figure."""

    def __init__(
        self, folder: RunFolder, keep_weights: Literal["best", "last"], *, step: int = 0, least: float | None = None
    ):
        """Start, or go on from a checkpoint's `step` and `least`."""
        self.folder, self.keep_weights = folder, keep_weights
        self.step, self.least = step, math.inf if least is None else least

    def offer(self, model: nn.Module, step: int, figure: float) -> None:
        """Keep the model if `figure` (less is better) is the least so far."""
        if self.keep_weights == "last" or not figure < self.least:
            return
        self.step, self.least = step, figure
        tensors = trained_weights(model)
        write_folder(self.folder.checkpoints / "best", lambda path: save_file(tensors, path / "model.safetensors"))

    def take(self, model: nn.Module, last: int) -> int:
        """Put the chosen weights into the model and return the step they are of."""
        if self.keep_weights == "last" or self.step in (0, last):
            return last
        load_weights(model, load_file(self.folder.checkpoints / "best" / "model.safetensors"))
        return self.step

    @property
    def numbers(self) -> dict[str, float | None]:
        """What a checkpoint stores of it."""
        return {"best_step": self.step, "best_figure": None if math.isinf(self.least) else self.least}
