"""The weights of a model: as tensors by name, and read from its files, all of them or none."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from kleash.errors import ModelError, listed
from kleash.models.place import adapter_folder, config_of, loading, model_file, name_of, settings_of


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, each stored once where weights are tied."""
    tensors: dict[str, Tensor] = {}
    pointers: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in pointers or tensor.numel() == 0:
            pointers.add(tensor.data_ptr())
            tensors[name] = tensor.detach().contiguous()
    return tensors


def read_weights(kind: Any, model: str | Path, *, new_head: bool = False, **settings: Any) -> PreTrainedModel:
    """All weights of a model (not of an adapter), in float32; for the arguments see `load.read_model`.

    Raises:
        ModelError: weights are missing, of another shape or of another model, and not those of a replaced head.
    """
    with loading(model):
        live, report = kind.from_pretrained(
            name_of(model), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True,
            **settings_of(model), **settings,
        )  # fmt: skip
    _refuse_incomplete(live, report, model, new_head)
    live.kleash_dtype = _stored_dtype(model)
    loaded: PreTrainedModel = live
    return loaded


def _refuse_incomplete(live: PreTrainedModel, report: Mapping[str, Any], model: str | Path, new_head: bool) -> None:
    """Refuse a model some of whose weights were not in its files, or the other way round."""
    decoder = f"{live.base_model_prefix}."
    faults = []
    for fault in ("missing", "unexpected", "mismatched"):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[f"{fault}_keys"])
        names = [name for name in names if name.startswith(decoder) or not new_head]
        if names:
            faults.append(f"{fault} {listed(names)}")
    faults += [" ".join(str(message).split()) for message in report.get("error_msgs", ())]
    if faults:
        raise ModelError(
            f"{model}: its weights are not those of a {type(live).__name__}: {'; '.join(faults)} (its config.json says "
            f"{described(model)}); give a complete model of this kind"
        )


def described(model: str | Path) -> str:
    """What a model is, by its config."""
    if adapter_folder(model) is not None:
        return "an adapter of a language model"
    return f"a {', '.join(config_of(model).architectures or ['model without a head'])}"


def _stored_dtype(model: str | Path) -> torch.dtype:
    """The type in which a model's files hold most weights; float32 where it is not a float of 16 bits or more."""
    index = model_file(model, "model.safetensors.index.json")
    name = "model.safetensors" if index is None else next(iter(json.loads(index.read_text())["weight_map"].values()))
    file = model_file(model, name)
    if file is None:
        return next((dtype for dtype in _FLOATS.values() if dtype == config_of(model).dtype), torch.float32)
    with safe_open(file, "pt") as tensors:
        slices = [tensors.get_slice(key) for key in tensors.keys()]  # noqa: SIM118  (not a dict)
        sizes: Counter[str] = Counter()
        for part in slices:
            sizes[part.get_dtype()] += math.prod(part.get_shape())
    return _FLOATS.get(sizes.most_common(1)[0][0], torch.float32) if sizes else torch.float32


_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The names of types in safetensors."""
