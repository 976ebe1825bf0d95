"""Measurements that fail are skipped with their reason and do not fail the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kleash.errors import InputError, TrainingError

logger = logging.getLogger("kleash")

Figures = TypeVar("Figures")


@dataclass(frozen=True)
class Skipped:
    """Takes the place of figures in run.json that could not be measured."""

    skipped: str
    """The reason."""


def or_skip(name: str, measure: Callable[[], Figures]) -> Figures | Skipped:
    """The result of a measurement, or the reason why it failed.

    Args:
        name: of the measurement, for the log.
        measure: called once. Errors about its input are caught (a prompt that is too long, a text that cannot be
            encoded); those of the machine are not.
    """
    try:
        return measure()
    except (InputError, TrainingError) as error:
        logger.warning("%s not measured: %s", name, error)
        return Skipped(str(error))
