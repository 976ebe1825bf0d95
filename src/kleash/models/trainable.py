"""Prepare a model for training: adapters and gradient checkpointing."""

from __future__ import annotations

import logging

from kleash.models.forward import Model
from kleash.models.lora import adapted_experts, add_lora

logger = logging.getLogger("kleash")


def make_trainable(model: Model, *, rank: int | None, alpha: float, seed: int, gradient_checkpointing: bool) -> None:
    """Add adapters and enable gradient checkpointing, where requested.

    Args:
        model: changed in place.
        rank: of the adapters; None trains all weights.
        alpha: scales the adapters' output by alpha / rank.
        seed: of the adapters' weights.
        gradient_checkpointing: compute a layer's activations again in the backward pass.
    """
    if rank is not None:
        add_lora(model, rank=rank, alpha=alpha, seed=seed)
        if mixtures := adapted_experts(model):
            logger.info("the experts of %d layers carry adapters too, each expert its own", mixtures)
    if gradient_checkpointing:
        # transformers 5.24 gave it this name, and warns of the old one
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.train()  # checkpointing works only in training mode; dropout is off in any case
