"""Prepare a model for training: adapters and gradient checkpointing."""

from __future__ import annotations

import logging

from kleash.config import Settings
from kleash.errors import ConfigError
from kleash.models.forward import Model
from kleash.models.lora import adapted_experts, add_lora, has_adapters, merge_lora

logger = logging.getLogger("kleash")


def make_trainable(
    model: Model, *, lora: Settings | None, seed: int, gradient_checkpointing: bool, keep: bool = False
) -> None:
    """Add adapters and enable gradient checkpointing, where requested.

    Args:
        model: changed in place.
        lora: settings of new adapters, by `peft.LoraConfig`'s names; None adds none.
        seed: of the adapters' weights.
        gradient_checkpointing: compute a layer's activations again in the backward pass.
        keep: whether the run is to write an adapter: then the model has to have one.

    Raises:
        ConfigError: it has none.
        ModelError: the settings do not fit the model.
    """
    if lora is not None:
        if has_adapters(model):  # that came with it
            merge_lora(model)
        add_lora(model, lora, seed=seed)
        if mixtures := adapted_experts(model):
            logger.info("the experts of %d layers carry adapters too, each expert its own", mixtures)
    if keep and not has_adapters(model):
        raise ConfigError("adapter keep writes an adapter, and there is none; give lora_rank or peft_config")
    if gradient_checkpointing:
        # transformers 5.24 gave it this name, and warns of the old one
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.train()  # checkpointing works only in training mode; dropout is off in any case
