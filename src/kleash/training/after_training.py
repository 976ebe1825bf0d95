"""Measurements after the last step: what cannot be measured is skipped with its reason, and never costs the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from kleash.errors import MachineError
from kleash.run import RunFolder

logger = logging.getLogger("kleash")

T = TypeVar("T")


def after_training(folder: RunFolder, name: str, measure: Callable[[], T]) -> T | None:
    """What `measure` gives; or None where it fails, its reason under `skipped` in run.json.

    The weights are written before anything is measured, so that no fault of a measurement can take them away.

    Args:
        folder: the run.
        name: what is measured, in a few words.
        measure: takes the measurement.
    """
    try:
        return measure()
    except MachineError:
        raise
    except Exception as error:  # whatever it is: the training is done, and worth more than this figure
        skip(folder, name, error)
        return None


def skip(folder: RunFolder, name: str, error: Exception) -> None:
    """Log why something was not measured, and note it under `skipped` in run.json."""
    reason = " ".join(str(error).split()) or type(error).__name__
    logger.warning("%s: not measured: %s: %s", folder.path, name, reason)
    folder.note("skipped", **{name: reason})
