"""Measurements after the last step: one that fails is skipped with its reason and does not fail the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from kleash.errors import MachineError
from kleash.run import RunFolder

logger = logging.getLogger("kleash")

T = TypeVar("T")


def after_training(folder: RunFolder, name: str, measure: Callable[[], T]) -> T | None:
    """The result of `measure`; None where it fails, with the reason under `skipped` in run.json.

    Callers write the weights first, so that a failing measurement cannot lose them.

    Args:
        folder: the run.
        name: of the measurement, in a few words.
        measure: computes it.
    """
    try:
        return measure()
    except MachineError:
        raise
    except Exception as error:  # any error: the training is done and worth more than this figure
        skip(folder, name, error)
        return None


def skip(folder: RunFolder, name: str, error: Exception) -> None:
    """Log why something was not measured, and note it under `skipped` in run.json."""
    reason = " ".join(str(error).split()) or type(error).__name__
    logger.warning("%s: not measured: %s: %s", folder.path, name, reason)
    folder.note("skipped", **{name: reason})
