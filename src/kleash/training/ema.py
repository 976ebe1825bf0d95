"""An exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Average:
    """θ̄ ← decay·θ̄ + (1 − decay)·θ over the trained parameters; without a decay it is empty."""

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        """Start from the model's weights."""
        self.decay = decay
        self.tensors: dict[str, Tensor] = {} if decay is None else {n: p.detach().clone() for n, p in _trained(model)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average by the weights of one more step."""
        if self.decay is not None:
            for name, parameter in _trained(model):
                self.tensors[name].lerp_(parameter, 1 - self.decay)

    @torch.no_grad()
    def take(self, model: nn.Module) -> None:
        """Load the average into the model."""
        for name, parameter in _trained(model):
            if name in self.tensors:
                parameter.copy_(self.tensors[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(self.tensors)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the state of `state_dict`."""
        self.tensors = {name: tensor.to(self.tensors[name].device) for name, tensor in state_dict.items()}


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
