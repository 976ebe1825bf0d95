"""The training state to resume from: weights, optimisers, cursors, and numbers of the stage.

Randomness needs no state here: it is derived from (seed, step), so a resumed run draws the same numbers. Parts with a
state follow torch's protocol (`state_dict`, `load_state_dict`). Tensors are stored as safetensors, the rest as JSON;
nothing is pickled. A state is written once and never replaced; one that is not whole is passed over.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kleash.errors import DataError
from kleash.io import Json, read_json, remove, write_folder
from kleash.models.weights import weights
from kleash.run import RunFolder

logger = logging.getLogger("kleash")


@runtime_checkable
class Stateful(Protocol):
    """A part of a run with a state; torch's protocol, which modules implement already."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors and JSON values by name."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore the state of `state_dict`."""
        ...


State = dict[str, Stateful]
"""The parts of a run that have a state, by name."""


def save(folder: RunFolder, step: int, state: State, *, keep: int, **numbers: Any) -> None:
    """Write the state after `step` steps, unless it is there, and drop older states.

    Args:
        folder: the run.
        step: steps done.
        state: the parts with a state, by name. Of a module the trained weights are stored.
        keep: how many of the newest states to keep.
        numbers: further values to store, as JSON.
    """

    def fill(path: Path) -> None:
        values: Json = {}
        sizes: dict[str, int] = {}
        for name, part in state.items():
            entries = trained_weights(part) if isinstance(part, nn.Module) else part.state_dict()
            tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
            values[name] = {key: value for key, value in entries.items() if key not in tensors}
            if tensors:
                save_file(tensors, file := path / f"{name}.safetensors")
                sizes[name] = file.stat().st_size
        (path / "state.json").write_text(json.dumps({"step": step, "values": values, "bytes": sizes, **numbers}))

    path = folder.checkpoints / f"step-{step:08d}"
    if _read(path) is None:
        write_folder(path, fill)
    drop_old(folder, keep=keep)


def drop_old(folder: RunFolder, *, keep: int) -> None:
    """Drop all but the newest states."""
    for old in saved(folder)[:-keep]:
        remove(old)


def restore(folder: RunFolder, state: State) -> Json:
    """Load the newest state into the parts, and rewind the logs to it.

    Returns:
        `step`, and the numbers saved with it; `{"step": 0}` for a new run.
    """
    newest = _newest(folder)
    if newest is None:
        folder.rewind(-1)  # rows of step 0 are measured again, too
        return {"step": 0}
    path, numbers, tensors = newest
    values = numbers.pop("values")
    try:
        for name, part in state.items():
            if isinstance(part, nn.Module):
                load_weights(part, tensors.get(name, {}))
            else:
                part.load_state_dict({**values[name], **tensors.get(name, {})})
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a state of this run ({reason}); delete it to continue before it") from None
    folder.rewind(numbers["step"])
    return numbers


def _newest(folder: RunFolder) -> tuple[Path, Json, dict[str, dict[str, Tensor]]] | None:
    """Folder, numbers and tensors of the newest state that is whole, None where there is none; others are deleted."""
    for path in reversed(saved(folder)):
        numbers = _read(path)
        if numbers is not None:
            with contextlib.suppress(SafetensorError):
                files = {name: path / f"{name}.safetensors" for name in numbers.pop("bytes")}
                return path, numbers, {name: load_file(file) for name, file in files.items()}
        logger.warning("%s is not whole, so the run continues before it", path)
        remove(path)
    return None


def _read(path: Path) -> Json | None:
    """The state.json of a state, None where it is damaged or a file of tensors is missing or cut."""
    try:
        numbers = read_json(path / "state.json") if (path / "state.json").exists() else {}
        present = {file.stem: file.stat().st_size for file in path.glob("*.safetensors")}
        whole = isinstance(numbers["step"], int) and isinstance(numbers["values"], dict)
        whole = whole and all(name in present and present[name] == size for name, size in numbers["bytes"].items())
    except (DataError, LookupError, AttributeError):
        return None
    return numbers if whole else None


def saved(folder: RunFolder) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted(folder.checkpoints.glob("step-*"))


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are not frozen: with LoRA the base weights need not be stored again."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in weights(model).items() if name not in frozen}


def load_weights(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the tensors of `weights` or `trained_weights` into a module; tied and frozen names may be missing, unknown
    ones may not occur.
    """
    unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"tensors of another model: {', '.join(unexpected[:3])}")
