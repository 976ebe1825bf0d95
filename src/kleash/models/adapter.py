"""Adapters that another run or another tool trained with `peft`: read from their folder into a model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from peft.functional import set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from kleash.errors import ModelError, listed

PREFIX = "base_model.model."
"""What `peft` puts before the names of a model's tensors."""


def attach(model: PreTrainedModel, folder: Path) -> None:
    """Put an adapter into its base, frozen.

    A classifier takes no part of an adapter that belongs to the output head of a language model.

    Args:
        model: the base; changed in place.
        folder: with adapter_config.json and the adapter's weights.

    Raises:
        ModelError: the adapter is of a kind that has no weights to merge, or does not fit the base.
    """
    config = _config(folder)
    weights = _of_the_model(_weights(folder), model)
    _grow_embedding(model, weights)
    names = [name for name, _ in model.named_modules()]
    whole = getattr(config, "modules_to_save", None)
    if whole is not None:
        config.modules_to_save = [part for part in whole if any(f".{name}".endswith(f".{part}") for name in names)]
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the adapter's first weights, which are replaced
            adapted = PeftModel(model, config)
            result: Any = set_peft_model_state_dict(adapted, weights)
    except KeyError as error:
        raise ModelError(f"{folder}: the adapter lacks the weights of {error}; restore its folder") from None
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder}: the adapter does not fit its base {model.name_or_path} ({reason}); correct "
            "base_model_name_or_path in adapter_config.json"
        ) from None
    missing = [name for name in result.missing_keys if "default" in name.split(".")]
    for fault, tensors in (("lacks", missing), ("has also", result.unexpected_keys)):
        if tensors:
            tensor_names = listed(name.removeprefix(PREFIX) for name in sorted(tensors))
            raise ModelError(
                f"{folder}: the adapter does not fit its base {model.name_or_path}: it {fault} {tensor_names}; correct "
                "base_model_name_or_path in adapter_config.json"
            )


def head_rows(folder: Path) -> int | None:
    """How many outputs the `score` head has that an adapter brings; None where it brings none."""
    heads = [tensor for name, tensor in _weights(folder).items() if name.endswith("score.weight")]
    return len(heads[0]) if heads else None


def _config(folder: Path) -> Any:
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: its adapter_config.json cannot be used ({reason}); restore the file") from None
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ModelError(
            f"{folder} is an adapter of kind {config.peft_type.value}, which has no weights to merge into a model; "
            "give a LoRA or a whole model"
        )
    return config


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # no file (as if the folder were a hub name), a damaged one, one that is not of tensors
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: the adapter's weights cannot be read ({reason}); restore its folder") from None
    return tensors


def _of_the_model(weights: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights without those of a language model's output head, where the model is a classifier."""
    if not hasattr(model, "score"):
        return weights
    decoder = f"{PREFIX}{model.base_model_prefix}."
    return {name: tensor for name, tensor in weights.items() if name.startswith(decoder) or "score" in name.split(".")}


def _grow_embedding(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give the embedding as many rows as an adapter has that was trained with new tokens."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    rows = weights.get(f"{PREFIX}{name}.weight")
    if rows is not None and len(rows) != embedding.num_embeddings:
        with torch.random.fork_rng():
            model.resize_token_embeddings(len(rows), mean_resizing=False)
