"""Figures with their uncertainty, for reports, and reports as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from kleash.io import Json


class MeanSE(TypedDict):
    """A mean over independent units."""

    mean: float | None
    """Mean; None over no values."""
    se: float | None
    """Standard deviation (n − 1) / √n; None below two values."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; None is infinite."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedMean:
    """A mean over prompts with its standard error and 95 % interval (Student's t)."""

    mean: float
    se: float
    low: float
    high: float


def as_json(report: Any) -> Json:
    """A report and its nested reports as a JSON value: lists, numbers, text, null."""
    plain: Json = _lists(asdict(report))
    return plain


def _lists(value: Any) -> Any:
    """The value with every tuple as a list, as JSON returns it."""
    if isinstance(value, dict):
        return {key: _lists(entry) for key, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, list | tuple) else value
