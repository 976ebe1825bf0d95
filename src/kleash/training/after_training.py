"""Measurements after the last step: one that fails is skipped with its reason and does not fail the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kleash.errors import MachineError
from kleash.run import RunFolder

logger = logging.getLogger("kleash")

T = TypeVar("T")


@dataclass(frozen=True)
class Skipped:
    """Takes the place of figures that could not be measured."""

    skipped: str
    """The reason."""


def or_skip(name: str, measure: Callable[[], T], folder: RunFolder | None = None) -> T | Skipped:
    """The result of a measurement, or the reason why it failed.

    Args:
        name: of the measurement, in a few words.
        measure: computes it. Any error is caught, since the training is done and worth more than this figure; those of
            the machine are not.
        folder: the run, whose run.json has the reason under `skipped`; None: it is only logged.
    """
    try:
        return measure()
    except MachineError:
        raise
    except Exception as error:
        return skipped(name, error, folder)


def skipped(name: str, error: Exception, folder: RunFolder | None) -> Skipped:
    """Log and note why something was not measured, see `or_skip`."""
    reason = " ".join(str(error).split()) or type(error).__name__
    logger.warning("not measured: %s: %s", name, reason)
    if folder is not None:
        folder.note("skipped", **{name: reason})
    return Skipped(reason)


def after_training(folder: RunFolder, name: str, measure: Callable[[], T]) -> T | None:
    """The result of a measurement, None where it fails; see `or_skip`.

    Callers write the weights first, so that a failing measurement cannot lose them.
    """
    result = or_skip(name, measure, folder)
    return None if isinstance(result, Skipped) else result
