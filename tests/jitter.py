"""A test must hold on any processor: its models' weights, and every seed it does not set itself, can be moved a little.

Processors round differently, so that the weights of a trained model differ in the last digits and what follows from
them by a long chain of steps may differ in the first. `KLEASH_TEST_JITTER=s` stands for another processor: every tiny
model gets its weights multiplied by 1 + 1e-6·N(0, 1), drawn from the seed s, and the global random seeds move with s.
Any whole number is a jitter, 0 too; unset, nothing moves.
"""

from __future__ import annotations

import os
import random
from typing import TypeVar

import numpy as np
import torch

Module = TypeVar("Module", bound=torch.nn.Module)

_SETTING = os.environ.get("KLEASH_TEST_JITTER", "")
SEED = int(_SETTING) if _SETTING else None
"""The seed s of the jitter, or None for no jitter."""

SCALE = float(os.environ.get("KLEASH_TEST_JITTER_SCALE", "1e-6"))
"""Standard deviation of a weight's relative change. Larger finds a fragile test sooner (1e-2), and proves nothing."""


@torch.no_grad()
def jitter(model: Module) -> Module:
    """Change the weights of a new tiny model in place, by the jitter of this test run, and return the model."""
    if SEED is not None:
        generator = torch.Generator().manual_seed(SEED)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_((parameter.double() * (1 + SCALE * noise)).to(parameter.dtype))
    return model


def seed_everything() -> None:
    """Set the global seeds of torch, numpy and `random`: 0, or 1 + s under a jitter."""
    seed = 0 if SEED is None else 1 + SEED
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
