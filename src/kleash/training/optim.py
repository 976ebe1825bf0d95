"""AdamW with a schedule, clipping, and exact gradient accumulation.

A step is any number of `backward` calls, each with a part of the step's loss that is already divided by the *step's*
count (tokens or groups), then one `step`. The gradient is therefore independent of the split into micro-batches (F1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kleash.errors import TrainingError
from kleash.models.finite import not_finite
from kleash.run import StepMetrics
from kleash.training.settings import Schedule

ENDS: dict[Schedule, float] = {"linear": 0.0, "cosine": 0.1, "constant": 1.0}
"""Rate at the end of each schedule as a share of the peak, where no other is given; cosine's is InstructGPT's."""


def learning_rate_at(
    step: int, steps: int, *, peak: float, schedule: Schedule, warmup_steps: int = 0, end: float | None = None
) -> float:
    """The learning rate of a step.

    Args:
        step: optimiser step, from 0.
        steps: steps in all.
        peak: the rate after warm-up.
        schedule: `linear` and `cosine` fall from the peak to `end`, `constant` stays.
        warmup_steps: steps over which the rate rises linearly to the peak.
        end: rate at the end of the schedule as a share of the peak; None: that of `ENDS`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    end = ENDS[schedule] if end is None else end
    if schedule == "linear":
        return peak * (end + (1 - end) * (1 - done))
    if schedule == "cosine":
        return peak * (end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done)))
    return peak


class Optimizer:
    """AdamW over the trainable parameters of one model."""

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int,
        learning_rate: float,
        schedule: Schedule = "linear",
        min_lr_ratio: float | None = None,
        warmup_steps: int = 0,
        warmup_ratio: float | None = None,
        weight_decay: float = 0.0,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-8,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        """Set up.

        Args:
            model: its parameters with `requires_grad` are trained; only matrices are decayed.
            steps: optimiser steps in all, for the schedule.
            learning_rate: peak rate.
            schedule: see `learning_rate_at`.
            min_lr_ratio: `end` of `learning_rate_at`.
            warmup_steps: see `learning_rate_at`.
            warmup_ratio: the same as a share of `steps`, rounded up; None: `warmup_steps` counts.
            weight_decay: decoupled decay of matrices.
            adam_betas: Adam's β₁ and β₂.
            adam_eps: Adam's ε.
            max_grad_norm: the gradient is scaled down to this norm; None: no clipping.
        """
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = [p for p in self.parameters.values() if p.dim() >= 2]
        vectors = [p for p in self.parameters.values() if p.dim() < 2]
        self.adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=adam_betas,
            eps=adam_eps,
            fused=True,
        )
        self.peak, self.schedule, self.end, self.steps = learning_rate, schedule, min_lr_ratio, steps
        self.warmup_steps = warmup_steps if warmup_ratio is None else math.ceil(warmup_ratio * steps)
        self.max_grad_norm = max_grad_norm
        self.steps_taken = 0
        self._model, self._last_norm = model, math.nan
        self._loss: float | Tensor = 0.0
        self._norm: Tensor | None = None

    def backward(self, loss: Tensor) -> None:
        """Add a micro-batch's gradient; `loss` is its sum divided by the step's count."""
        loss.backward()
        self._loss = self._loss + loss.detach()

    def check(self) -> None:
        """Refuse a gradient that is not finite; `step` does it too, where this was not called.

        Raises:
            TrainingError: loss or gradient is not finite; the weights are as they were.
        """
        norm = nn.utils.get_total_norm(self._gradients())
        if not math.isfinite(number := float(norm)):
            loss = float(self._loss)
            named = f"the loss is {loss:.3g}," if not math.isfinite(loss) else f"the gradient's norm is {number:.3g},"
            raise self._not_finite(f"before optimiser step {self.steps_taken + 1} {named}")
        self._norm, self._last_norm, self._loss = norm, number, 0.0

    def step(self) -> StepMetrics:
        """Take the step and clear the gradient.

        Returns:
            `learning_rate` and `grad_norm` (before clipping).

        Raises:
            TrainingError: loss or gradient is not finite, and no step was taken; or the step made weights that are not
                finite.
        """
        if self._norm is None:
            self.check()
        norm, self._norm = self._norm, None
        assert norm is not None
        limit = self.max_grad_norm if self.max_grad_norm is not None else math.inf
        nn.utils.clip_grads_with_norm_(self._with_gradients(), limit, norm)
        rate = self._rate()
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.steps_taken += 1
        largest = nn.utils.get_total_norm(self.parameters.values(), norm_type=math.inf)
        if not math.isfinite(float(largest)):  # one transfer for all weights
            raise self._not_finite(f"after optimiser step {self.steps_taken} weights are")
        return {"learning_rate": rate, "grad_norm": norm}

    def skip(self) -> StepMetrics:
        """Clear a gradient that is nothing but rounding, and take no step; the schedule goes on.

        Returns:
            `learning_rate`, and 0 as `grad_norm`.
        """
        self.adam.zero_grad(set_to_none=True)
        self._loss = 0.0
        rate = self._rate()
        self.steps_taken += 1
        return {"learning_rate": rate, "grad_norm": torch.zeros(())}

    def state_dict(self) -> dict[str, int | Tensor]:
        """Steps taken, and Adam's moments by parameter name."""
        state: dict[str, int | Tensor] = {"steps_taken": self.steps_taken}
        for name, parameter in self.parameters.items():
            for key, value in self.adam.state[parameter].items():
                state[f"{name}/{key}"] = value
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self.steps_taken = int(state_dict["steps_taken"])
        for name, parameter in self.parameters.items():
            prefix = f"{name}/"
            state = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            if state:
                self.adam.state[parameter] = {
                    key: value.to(parameter.device if key != "step" else value.device) for key, value in state.items()
                }

    def _rate(self) -> float:
        return learning_rate_at(
            self.steps_taken, self.steps, peak=self.peak, schedule=self.schedule, warmup_steps=self.warmup_steps,
            end=self.end,
        )  # fmt: skip

    def _not_finite(self, what: str) -> TrainingError:
        """The error for loss, gradient or weights; no later call can take the gradient that they left."""
        self.adam.zero_grad(set_to_none=True)
        detail = f"; learning rate {self.peak:.3g}" + (
            f", last gradient norm {self._last_norm:.3g}" if math.isfinite(self._last_norm) else ""
        )
        return not_finite(what, self._model, trained=self.steps_taken > 0, detail=detail)

    def _with_gradients(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters.values() if parameter.grad is not None]

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
