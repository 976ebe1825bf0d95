"""Low-rank adapters through `peft`: W + (α/r)·BA, with W frozen and B starting at zero (arXiv:2106.09685).

The adapters are inserted into the existing model, whose class does not change, so that a model with adapters works
wherever a plain one does. With the adapters disabled the model is the one that training started from, which serves as
the reference of the KL penalty at no cost in memory. At the end of a run they are merged: its folder is a plain model.

An adapter that another run trained starts as a part of the model. Where it is trained on (`take_adapter`), a frozen
copy of it stays in the model as the reference: without any adapter the model would be the adapter's base.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model, set_adapter
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from kleash.config import Settings
from kleash.errors import ModelError
from kleash.run import derive_seed

logger = logging.getLogger("kleash")

REFERENCE = "reference"
"""Name of the frozen copy of an adapter that is trained on."""


def add_lora(model: PreTrainedModel, settings: Settings, *, seed: int) -> None:
    """Freeze a model and add adapters, of `lora_rank` to every linear layer of its blocks and to a mixture's experts.

    The head of a reward model gets no adapter and is trained in full. Dropout is off, as in all training.

    Args:
        model: changed in place; its outputs are not, since B is zero.
        settings: by the names of `peft.LoraConfig`.
        seed: of A.

    Raises:
        ModelError: the settings do not fit the model.
    """
    head: Any = getattr(model, "score", None)
    config = LoraConfig(**settings)
    if head is not None:
        every = config.target_modules == "all-linear"
        config.exclude_modules = ["score"] if every else config.exclude_modules
    if config.lora_dropout:
        logger.info("lora_dropout %g is set to 0: dropout is off in all training", config.lora_dropout)
        config.lora_dropout = 0.0
    config.modules_to_save = _whole_modules(model, config.modules_to_save)
    with torch.random.fork_rng(), warnings.catch_warnings():
        # `peft` writes patterns of experts' names for itself, and then warns that no linear layer has such a name
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        torch.manual_seed(derive_seed(seed, "lora"))
        try:
            inject_adapter_in_model(config, model)
        except (ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"peft_config does not fit {type(model).__name__}: {reason}") from None
    if head is not None:
        head.requires_grad_(True)


def can_be_disabled(settings: Settings | None) -> bool:
    """Whether a model with new adapters of these settings is the one that it was once they are disabled: where biases
    of the model itself are trained it is not.
    """
    return settings is not None and settings.get("bias", "none") == "none"


def _whole_modules(model: Any, names: Sequence[str] | None) -> list[str] | None:
    """The modules to train whole; the head of a reward model is in any case, and a decoder has no head.

    Raises:
        ModelError: the model has no such module.
    """
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()} | {n for n, _ in model.named_modules()}
    modules = [name for name in names or () if name != "score"]
    missing = [name for name in modules if name.rpartition(".")[2] not in ends]
    if missing and (hasattr(model, "score") or model.get_output_embeddings() is not None):
        raise ModelError(f"peft_config: {type(model).__name__} has no module {missing[0]!r} (modules_to_save)")
    return [name for name in modules if name not in missing] or None


def has_adapters(model: nn.Module) -> bool:
    """Whether a part of the model carries an adapter."""
    return bool(_wrappers(model))


def adapted_experts(model: nn.Module) -> int:
    """How many mixtures of experts in the model carry an adapter on the experts' own weights."""
    layers = [layer for _, layer in _wrappers(model) if isinstance(layer, ParamWrapper)]
    return sum(layer.get_base_layer().get_parameter(layer.parameter_name).ndim == 3 for layer in layers)


def merge_lora(model: nn.Module) -> None:
    """Merge the adapters into their weights and remove them; without adapters nothing happens."""
    wrappers = _wrappers(model)
    for name, wrapper in wrappers:
        model.set_submodule(name, _merged(wrapper))
    if wrappers:
        _forget_adapters(model)


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with the adapters merged; the model is not changed. Without adapters the model itself."""
    if not has_adapters(model):
        return model
    merged = copy.deepcopy(model)
    merge_lora(merged)
    return merged


def take_adapter(model: PreTrainedModel, *, train_on: bool) -> None:
    """Prepare a model that comes with an adapter for training: the adapter is merged, and all weights are trained; or
    the adapter's weights are trained on, and all others are frozen.

    Raises:
        ModelError: an adapter is to be trained on, and the model has several active ones.
    """
    if train_on:
        (name,) = _active(model)
        model.requires_grad_(False)
        set_adapter(model, name)
        _take_head(model)
        return
    merge_lora(model)
    model.requires_grad_(True)


def keep_reference(model: PreTrainedModel) -> None:
    """Keep a frozen copy of the model's adapter, as it is now, for `as_it_came`; a second call changes nothing."""
    (name,) = _active(model)
    configs: Any = model.peft_config
    if REFERENCE in configs:
        return
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a second adapter is intended here
        inject_adapter_in_model(copy.deepcopy(configs[name]), model, adapter_name=REFERENCE)
    state = model.state_dict()
    for key, tensor in state.items():
        original = _renamed(key, REFERENCE, name)
        if original != key:
            tensor.copy_(state[original])
    set_adapter(model, name)


@contextmanager
def as_it_came(model: nn.Module) -> Iterator[None]:
    """The model as training started: new adapters are disabled, one that is trained on is the copy of `keep_reference`.

    A model without adapters is not changed.
    """
    wrappers = [layer for _, layer in _wrappers(model)]
    if REFERENCE in getattr(model, "peft_config", ()):
        (name,) = _active(model)
        set_adapter(model, REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            set_adapter(model, name)
        return
    for layer in _nested(wrappers):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in _nested(wrappers):
            layer.enable_adapters(True)


def _wrappers(model: nn.Module) -> list[tuple[str, Any]]:
    """The outermost modules that stand in place of a plain one: a layer with adapters, a module that is saved whole.

    A mixture of experts has a wrapper for each of its weights, one within the other.
    """
    wrappers: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in wrappers[-1:])
        if not inside and isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            wrappers.append((name, module))
    return wrappers


def _nested(wrappers: list[nn.Module]) -> list[Any]:
    """The wrappers and those within them."""
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [module for wrapper in wrappers for module in wrapper.modules() if isinstance(module, kinds)]


def _merged(wrapper: nn.Module) -> nn.Module:
    """The plain module of a wrapper, with what its adapters add."""
    unload = getattr(wrapper, "unload_and_optionally_merge_module", None)
    if unload is not None:
        plain: nn.Module = unload(merge=True, safe_merge=False, adapter_names=None)
        return plain
    layer = wrapper
    while isinstance(layer, BaseTunerLayer):
        layer.merge()
        inner: Any = layer
        layer = inner.base_layer
    return layer


def _forget_adapters(model: nn.Module) -> None:
    """Undo what `peft` and `transformers` noted on a model, so that it is saved as a plain one."""
    holder: Any = model
    if hasattr(holder, "peft_config"):
        del holder.peft_config
    if getattr(holder, "_hf_peft_config_loaded", False):
        holder._hf_peft_config_loaded = False
        del holder._weight_conversions  # by which `transformers` would write the names of an adapter
    config = getattr(holder, "config", None)
    if getattr(config, "tie_word_embeddings", False) and hasattr(holder, "get_output_embeddings"):
        first, second = holder.get_input_embeddings(), holder.get_output_embeddings()
        if second is not None and first.weight is not second.weight:  # an adapter that trained one of them, or both
            holder.config.tie_word_embeddings = False


def _take_head(model: Any) -> None:
    """Make the head of a reward model, which an adapter brings whole, its plain head, trained in full."""
    if isinstance(getattr(model, "score", None), AuxiliaryTrainingWrapper):
        model.score = _merged(model.score).requires_grad_(True)


def trained_adapter(model: nn.Module) -> str:
    """The name of the adapter that is trained."""
    (name,) = _active(model)
    return name


def _active(model: nn.Module) -> list[str]:
    """The name of the active adapter."""
    names = {name for _, layer in _wrappers(model) for name in getattr(layer, "active_adapters", ())}
    if len(names) != 1:
        adapters = f"adapters ({', '.join(sorted(names))})" if names else "no adapter"
        raise ModelError(f"the model has {adapters}, and `--adapter continue` trains one; merge them, or activate one")
    return list(names)


def _renamed(key: str, old: str, new: str) -> str:
    """A tensor's name for another adapter."""
    return ".".join(new if part == old else part for part in key.split("."))
