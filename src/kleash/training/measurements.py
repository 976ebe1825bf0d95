"""The measurements after a run's training: each a bar with its name, limited in its work, and kept once it is done.
Those during the training that are repeated after it (held-out prompts) are limited in the same way.

Work is counted and not timed, so that a run on a faster machine measures the same rows: a token that is read counts 1,
one that is trained on 3 (forward and backward pass), and one that is sampled 3, as it takes on a CPU. Together the
measurements may take `measure_share` of the training's work. Small models are not limited: up to `FREE` weights times
tokens, a few seconds of a core, are always allowed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from torch import nn

from kleash.data.batching import order
from kleash.data.group import EncodedGroup
from kleash.io import write_text
from kleash.parse import UnreadableError, parse_json
from kleash.progress import Progress
from kleash.run import RunFolder, derive_seed

TRAINED, SAMPLED = 3, 3
"""Work of a token that is trained on, and of one that is sampled, where one that is read is 1."""

FREE = 1e12
"""Weights times tokens read that need no share of the training's work."""

FEWEST = 8
"""Rows that every measurement gets."""

FOLDER = "measured"

T = TypeVar("T")


class Measurements:
    """What a run measures after its training.

    Args:
        folder: the run. What is done is under measured/ until the run is finished, so that a run that is interrupted
            while it measures goes on with the next measurement.
        model: the trained model; None: the work is not limited.
        train: the training rows.
        rows: how many were trained on, those of each epoch.
        share: of the training's work.
        seed: of which rows are taken.
        work_of_row: work of training on one of `rows`; None: that of its tokens.
    """

    def __init__(
        self,
        folder: RunFolder,
        model: nn.Module | None,
        train: Sequence[EncodedGroup],
        *,
        rows: int,
        share: float,
        seed: int,
        work_of_row: float | None = None,
    ) -> None:
        self.folder, self.seed = folder, seed
        training = rows * (TRAINED * mean_tokens(train) if work_of_row is None else work_of_row)
        weights = 0 if model is None else sum(parameter.numel() for parameter in model.parameters())
        self.work = max(share * training, FREE / weights if weights else math.inf)

    def count(self, name: str, most: int, *, part: float, work: float, least: int = FEWEST) -> int:
        """How many rows a measurement takes: as many as fit into its part; fewer than `most` are noted in run.json.

        Args:
            name: of the measurement.
            most: rows that it would take.
            part: of the work that all measurements may take.
            work: of one row.
            least: rows that it takes in any case, if there are as many.
        """
        rows = min(most, max(least, math.floor(min(most, part * self.work / max(work, 1)))))
        if rows < most:
            self.folder.note("measured", **{name: {"rows": rows, "of": most}})
        return rows

    def some(
        self, name: str, groups: Sequence[EncodedGroup], *, part: float, work: float | None = None
    ) -> list[EncodedGroup]:
        """The rows of a measurement, the same ones on every call.

        Args:
            name: of the measurement.
            groups: rows that it would take.
            part: of the work that all measurements may take.
            work: of one row; None: that of reading it once.
        """
        rows = self.count(name, len(groups), part=part, work=mean_tokens(groups) if work is None else work)
        if rows == len(groups):
            return list(groups)
        chosen = order(len(groups), seed=derive_seed(self.seed, "measure", name), epoch=0)[:rows]
        return [groups[row] for row in sorted(chosen)]

    def keep(self, name: str, kind: Any, measure: Callable[[], T]) -> T:
        """The result of a measurement, read back where it was done before an interruption.

        Args:
            name: of the measurement: the title of its bar.
            kind: the type of its result: dataclasses, tuples, lists and numbers.
            measure: computes it.
        """
        file = self.folder.path / FOLDER / f"{name.replace(' ', '-')}.json"
        if file.exists():
            with suppress(UnreadableError, ValidationError):  # damaged: measured again
                earlier: T = TypeAdapter(kind).validate_python(parse_json(file.read_bytes()))
                return earlier
        with Progress(1, name):
            result = measure()
        file.parent.mkdir(exist_ok=True)
        write_text(file, json.dumps(result, default=vars))
        return result


def mean_tokens(groups: Sequence[EncodedGroup]) -> float:
    """Mean tokens of a group, its prompt once for each response."""
    sizes = [
        max(1, len(group.responses)) * len(group.prompt_ids) + sum(len(response.ids) for response in group.responses)
        for group in groups
    ]
    return sum(sizes) / max(1, len(sizes))
