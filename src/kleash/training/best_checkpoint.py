"""The weights that a run ends with: the last, or the best on held-out rows.

The least of several figures is below what it estimates: rows that chose the weights cannot also report on them. Where
there was a choice, run.json (`results.chosen`), the model card and the log say so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import nn

from kleash.io import write_folder
from kleash.models.finite import not_finite
from kleash.run import RunFolder
from kleash.training.checkpoint import load_weights, trained_weights

logger = logging.getLogger("kleash")


class BestCheckpoint:
    """Stores the weights of the step with the least figure, if a run keeps the best ones.

    Args:
        folder: the run; the weights are under checkpoints/best.
        keep_weights: `best`, or `last`, which stores nothing.

    Attributes:
        step: the best step so far; 0 for none.
        figures: the measured figure by step.
    """

    def __init__(self, folder: RunFolder, keep_weights: Literal["best", "last"]) -> None:
        self.folder, self.path = folder, folder.checkpoints / "best"
        self.keep_weights = keep_weights
        self.step = 0
        self.figures: dict[int, float] = {}

    def update(self, model: nn.Module, step: int, figure: float) -> float:
        """Keep the model if `figure` (less is better) is the least so far; returns it.

        Raises:
            TrainingError: the figure is not finite.
        """
        if not math.isfinite(figure):
            raise not_finite(f"after step {step} the figure on held-out rows is {figure:.3g},", model, trained=True)
        least = self.figures.get(self.step, math.inf)
        self.figures[step] = figure
        if self.keep_weights == "last" or not figure < least:
            return figure
        self.step = step
        tensors = trained_weights(model)
        write_folder(self.path, lambda path: save_file(tensors, path / "model.safetensors"))
        return figure

    def take(self, model: nn.Module, last: int) -> int:
        """Load the final weights into the model and return their step; notes whether held-out rows chose it."""
        if self.keep_weights == "last" or self.step == 0:
            return last
        if len(self.figures) > 1:
            self.folder.note("results", chosen={"step": self.step, "of": len(self.figures)})
            logger.info(
                "step %s was the best of %s on the held-out rows, so their figures are too good: report on other rows",
                self.step,
                len(self.figures),
            )
        if self.step == last:
            return last
        load_weights(model, load_file(self.path / "model.safetensors"))
        return self.step

    def state_dict(self) -> dict[str, int | list[tuple[int, float]]]:
        """The best step, and the figure of each step that was measured."""
        return {"step": self.step, "figures": list(self.figures.items())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.step = state_dict["step"]
        self.figures = {int(step): figure for step, figure in state_dict["figures"]}
