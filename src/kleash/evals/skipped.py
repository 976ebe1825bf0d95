"""A measurement must never cost the run: what cannot be measured is left out with its reason."""

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
    """Stands in run.json where figures could not be measured."""

    skipped: str
    """Why they were not."""


def or_skip(name: str, measure: Callable[[], Figures]) -> Figures | Skipped:
    """What a measurement gives, or why it could not be made.

    Args:
        name: what is measured, for the log.
        measure: asked once. Errors about its input are caught (a prompt that is too long, a text that cannot be
            encoded); those of the machine are not.
    """
    try:
        return measure()
    except (InputError, TrainingError) as error:
        logger.warning("%s not measured: %s", name, error)
        return Skipped(str(error))
