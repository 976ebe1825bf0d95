"""What of a model is trained, and at what price in memory."""

from __future__ import annotations

from kleash.models.forward import Model
from kleash.models.lora import add_lora
from kleash.training.settings import TrainingConfig


def make_trainable(model: Model, config: TrainingConfig) -> None:
    """Put adapters in where the config asks for them, and switch gradient checkpointing on."""
    if config.lora_rank is not None:
        add_lora(model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
    if config.gradient_checkpointing:
        # transformers 5.24 gave it this name, and warns of the old one
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.train()  # checkpointing works in training mode alone; dropout is off in any case
