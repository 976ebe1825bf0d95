"""Low-rank adapters through `peft`: W + (α/r)·BA, with W frozen and B starting at zero (arXiv:2106.09685).

The adapters are inserted into the existing model, whose class does not change, so that a model with adapters works
wherever a plain one does. With the adapters disabled the model is the one that training started from, which serves as
the reference of the KL penalty at no cost in memory. At the end of a run they are merged: its folder is a plain model.
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
    """Freeze a model and add an adapter to every linear layer of its blocks.

    The head of a reward model gets no adapter and is trained in full.

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
    """Merge the adapters into their weights and remove them; without adapters nothing happens."""
    for name, layer in _adapted(model):
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with the adapters merged; the model is not changed. Without adapters the model itself."""
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
