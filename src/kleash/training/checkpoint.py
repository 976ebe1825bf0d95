"""The state to go on from: weights, optimisers, position, and whatever numbers a stage holds.

Randomness needs no state here: it is derived from (seed, step), so a run that goes on draws what it would have drawn.
Tensors are stored as safetensors, the rest as JSON; nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kleash.run import RunFolder, write_folder
from kleash.training.optim import Optimizer

Parts = Mapping[str, nn.Module | Optimizer | dict[str, Tensor]]
"""What a checkpoint holds, by name."""


def save(folder: RunFolder, step: int, parts: Parts, *, keep: int, **numbers: Any) -> None:
    """Write the state after `step` steps and drop older states.

    Args:
        folder: the run.
        step: steps done.
        parts: modules, optimisers and dicts of tensors by name.
        keep: how many states stay; the newest ones.
        numbers: what else the stage needs to go on, as JSON.
    """

    def fill(path: Path) -> None:
        for name, part in parts.items():
            save_file(_tensors(part), path / f"{name}.safetensors")
        (path / "state.json").write_text(json.dumps({"step": step, **numbers}))

    write_folder(folder.checkpoints / f"step-{step:08d}", fill)
    for old in saved(folder)[:-keep]:
        shutil.rmtree(old)


def restore(folder: RunFolder, parts: Parts) -> dict[str, Any]:
    """Load the newest state into modules and optimisers, and rewind the logs to it.

    Returns:
        The numbers saved with it; `{"step": 0}` for a new run.
    """
    states = saved(folder)
    if not states:
        folder.rewind(-1)  # rows of step 0 are measured again, too
        return {"step": 0}
    for name, part in parts.items():
        tensors = load_file(states[-1] / f"{name}.safetensors")
        if isinstance(part, Optimizer):
            part.load(tensors)
        elif isinstance(part, nn.Module):
            load_weights(part, tensors)
        else:
            part.update(tensors)
    numbers: dict[str, Any] = json.loads((states[-1] / "state.json").read_text())
    folder.rewind(numbers["step"])
    return numbers


def saved(folder: RunFolder) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted(folder.checkpoints.glob("step-*"))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, each stored once where weights are tied."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen or tensor.numel() == 0:
            seen.add(tensor.data_ptr())
            tensors[name] = tensor.detach().contiguous()
    return tensors


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The same without what is frozen: beside LoRA the weights of the model itself need not be stored again."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in weights(model).items() if name not in frozen}


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put what these gave back into a module; tied and frozen names may be missing, unknown ones may not."""
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"tensors of another model: {', '.join(unexpected[:3])}")


def _tensors(part: nn.Module | Optimizer | dict[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(part, Optimizer):
        return part.state()
    return trained_weights(part) if isinstance(part, nn.Module) else dict(part)
