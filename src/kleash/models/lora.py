"""Low-rank adapters through `peft`: W + (α/r)·BA, with W frozen and B starting at zero (arXiv:2106.09685).

The adapters are put into the model that is there, whose class stays what it was, so that what takes a model takes
one with adapters. Switched off they leave the model that training began with, which is the reference of the KL penalty
at no cost in memory. A run ends with them merged: its folder is a plain model again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from kleash.run import derive_seed


def add_lora(model: PreTrainedModel, *, rank: int, alpha: float, seed: int) -> None:
    """Freeze a model and put an adapter beside every linear layer of its blocks.

    The head of a reward model stays what it is and is trained in full.

    Args:
        model: changed in place; its outputs are not, since B is zero.
        rank: r, ≥ 1.
        alpha: α; the adapter's share of the output is scaled by α/r.
        seed: of A.
    """
    head: Any = getattr(model, "score", None)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # it is divided by r, and need not be whole
        target_modules="all-linear",
        exclude_modules=None if head is None else ["score"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, model)
    if head is not None:
        head.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Add the adapters to the weights they stand beside, and take them out; without adapters nothing happens."""
    for name, layer in _adapted(model):
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with the adapters merged, the model itself left as it is; without adapters that model."""
    if not _adapted(model):
        return model
    merged = copy.deepcopy(model)
    merge_lora(merged)
    return merged


@contextmanager
def lora_off(model: nn.Module) -> Iterator[None]:
    """The model as it was before its adapters were trained."""
    for _, layer in _adapted(model):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in _adapted(model):
            layer.enable_adapters(True)


def _adapted(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
