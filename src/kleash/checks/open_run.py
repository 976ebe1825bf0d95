"""How a stage that trains begins."""

from __future__ import annotations

from typing import Any

from torch import nn

from kleash.checks.gates import check_parents
from kleash.run import RunFolder
from kleash.training.settings import TrainingConfig
from kleash.training.trackers import require


def open_run(stage: str, config: TrainingConfig, **live: tuple[nn.Module, Any] | object | None) -> RunFolder:
    """Open the folder of a run, new, to be gone on with, or finished."""
    from kleash.stages.artifacts import inputs_of

    require(config.trackers)
    models = {role: value for role, value in live.items() if isinstance(value, tuple)}
    folder = RunFolder.open(config.out, stage=stage, config=config, inputs=inputs_of(config, **models))
    if not folder.finished:
        for role in ("model", "reference", "reward"):
            if (name := getattr(config, role, None)) is not None:
                check_parents(folder, role=role, parent=name, force=config.force)
    return folder
