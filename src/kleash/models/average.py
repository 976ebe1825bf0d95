"""The mean of several models' weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


@torch.no_grad()
def average_weights(models: Sequence[nn.Module]) -> None:
    """Write the mean of all models' weights into the first model (WARM: Ramé et al. 2024, arXiv:2401.12187, eq. 3).

    The models must have been trained from the same weights, heads included; otherwise the mean is meaningless.

    Args:
        models: at least one, of one architecture.
    """
    states = [model.state_dict() for model in models]
    mean = {name: sum(state[name].double() for state in states) / len(states) for name in states[0]}
    models[0].load_state_dict(mean)
