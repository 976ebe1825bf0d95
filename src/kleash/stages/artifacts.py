"""Names that moved: `checks.open_run` opens a run, `training.model_folder` has the rest."""

from __future__ import annotations

from typing import Any

from torch import nn

from kleash.training.model_folder import model_card, parameters_held, save_snapshot, weights_hash

__all__ = ["inputs_of", "model_card", "parameters_held", "save_snapshot"]


def inputs_of(_: object, **live: tuple[nn.Module, Any] | None) -> dict[str, dict[str, str]]:
    """Fingerprints of live models; what the config names is hashed by `RunFolder.open` itself."""
    return {
        role: {"path": f"live {type(given[0]).__name__}", "sha256": weights_hash(given[0])}
        for role, given in live.items()
        if given is not None
    }
