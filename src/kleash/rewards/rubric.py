"""A rubric as reward: a chat model says of each criterion whether a response meets it.

    score = clip(Σ w·met / Σ of the positive w, 0, 1)

Explicit aggregation of Rubrics as Rewards (Gunjal et al. 2025, arXiv:2507.17746, eq. 1), with HealthBench's negative
weights for faults, which count in the sum and not in what can be reached (Arora et al. 2025, arXiv:2505.08775, the
score of an example). `met` is the probability of the answer yes, or the share of the votes that say so.

Each criterion is a request of its own. One request for all would cost less, but its answers lean on each other, a list
that is cut off or miscounted loses all of them, and a small judge does not keep to the format. The conversation and the
response come first in the prompt, so that a server that caches prefixes reads them once for all criteria.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from kleash.chat.client import ChatClient
from kleash.chat.verdicts import Question, VerdictReader
from kleash.config import Config
from kleash.data.group import Group
from kleash.errors import ConfigError, DataError
from kleash.rewards.judge_score import judge_parts, refuse_silence, shown
from kleash.rewards.reward import Parts

COLUMN = "rubric"
"""The column with a row's own criteria."""

MET = Question(
    "Is the criterion true of the response? A criterion may describe a fault: then say whether the response has it.",
    "verdict",
    ("Y", "N"),
    (1.0, 0.0),
)

TITLE_LENGTH = 40
"""Characters of a criterion that stand for its name."""


class Criterion(Config):
    """One criterion of a rubric."""

    criterion: str = Field(min_length=1)
    """What a response should do, or the fault that it should not have."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Its weight in the score; below 0 for a fault."""
    name: str = ""
    """Its name in logs; empty: the beginning of the criterion."""

    @field_validator("weight")
    @classmethod
    def _counts(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("other than 0")
        return weight

    @property
    def title(self) -> str:
        """Its name in logs."""
        return self.name or " ".join(self.criterion.split())[:TITLE_LENGTH]


Rubric = tuple[Criterion, ...]


def read_rubric(value: Any) -> Rubric:
    """A rubric from a list of texts, or of objects with `criterion`, `weight` and `name`.

    Raises:
        ConfigError: names the criterion and what is wrong.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ConfigError("should be a list of criteria: texts, or {criterion: …, weight: …}")
    rubric = []
    for number, item in enumerate(value, start=1):
        if isinstance(item, str):
            item = {"criterion": item}
        if not isinstance(item, Mapping):
            raise ConfigError(f"criterion {number} should be a text, or {{criterion: …, weight: …}}")
        values = {str(key): entry for key, entry in item.items() if entry is not None}  # Arrow fills all keys
        rubric.append(Criterion.make(values, source=f"criterion {number}"))
    if not any(criterion.weight > 0 for criterion in rubric):
        raise ConfigError("no criterion has a weight above 0, so nothing could be reached; give one")
    titles = [criterion.title for criterion in rubric]
    for number, title in enumerate(titles, start=1):
        if titles.index(title) + 1 != number:
            raise ConfigError(f"criterion {number}: another one is called {title!r} too; give it a 'name'")
    return tuple(rubric)


class RubricReward:
    """A `Reward` in [0, 1] from criteria; no opinion where one of them got no readable answer.

    Args:
        client: the judge.
        default: criteria of the rows without a column `rubric`; None: each row needs one.
        max_characters: as of `JudgeReward`.
        reader: how verdicts are read; None: from log-probabilities if the model reports any, otherwise from votes.
    """

    def __init__(
        self, client: ChatClient, *, default: Rubric | None = None, max_characters: int | None = None,
        reader: VerdictReader | None = None,
    ) -> None:  # fmt: skip
        self.client, self.default, self.max_characters = client, default, max_characters
        self.reader = reader or VerdictReader(client)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def faults(self, groups: Sequence[Group]) -> dict[int, str]:
        """The rows whose rubric is missing or wrong; see `reward.faults`."""
        faults = {}
        for index, group in enumerate(groups):
            try:
                self.rubric_of(group)
            except DataError as error:
                faults[index] = str(error)
        return faults

    def rubric_of(self, group: Group) -> Rubric:
        """The criteria of a row: its own, or the default ones.

        Raises:
            DataError: it has none, or they cannot be read.
        """
        value = group.columns.get(COLUMN)
        if value is None and self.default is not None:
            return self.default
        if value is None:
            raise DataError(
                f"a rubric as reward reads the column '{COLUMN}', but the row with prompt {group.prompt_text[:60]!r} "
                "has none; give each row one, or a default as 'rubric' in the judge's file"
            )
        try:
            return read_rubric(value)
        except ConfigError as error:
            raise DataError(
                f"the column '{COLUMN}' of the row with prompt {group.prompt_text[:60]!r}: {error}"
            ) from None

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and their components.

        `met` is the share of the reachable weight and `faults` that of the negative weight; `met/NAME` is of each
        criterion of the default rubric and of each that has a name, NaN where a row lacks it. The others are those of
        `judge_parts`.

        Raises:
            RewardError: not one of the answers could be read.
            DataError: as `rubric_of`.
        """
        rows = [(group, response, self.rubric_of(group)) for group in groups for response in group.responses]
        prompts = [
            f"You check a response to a conversation by a criterion.\n\n{shown(group, response, self.max_characters)}"
            f"\n\nThe criterion: {criterion.criterion}"
            for group, response, rubric in rows
            for criterion in rubric
        ]
        answers = self.reader(prompts, MET)
        refuse_silence(self.client, answers)
        remaining = iter(answers)
        verdicts = [[next(remaining) for _ in rubric] for _, _, rubric in rows]
        met = [
            [float("nan") if verdict.value is None else verdict.value for verdict in of_response]
            for of_response in verdicts
        ]
        rubrics = [rubric for _, _, rubric in rows]
        figures = {
            "met": [_share(rubric, values, 1) for rubric, values in zip(rubrics, met, strict=True)],
            "faults": [_share(rubric, values, -1) for rubric, values in zip(rubrics, met, strict=True)],
        }
        for title in self._titles(rubrics):
            figures[f"met/{title}"] = [
                next((value for each, value in zip(*row, strict=True) if each.title == title), float("nan"))
                for row in zip(rubrics, met, strict=True)
            ]
        scores = [rubric_score(rubric, values) for rubric, values in zip(rubrics, met, strict=True)]
        parts = {name: torch.tensor(values).reshape(len(groups), -1) for name, values in figures.items()}
        return torch.tensor(scores).reshape(len(groups), -1), parts | judge_parts(verdicts, len(groups))

    def _titles(self, rubrics: Sequence[Rubric]) -> list[str]:
        """Names of the criteria that are logged one by one: rows' own are too many unless somebody has named them."""
        named = [criterion.title for rubric in rubrics for criterion in rubric if criterion.name]
        return list(dict.fromkeys([*(criterion.title for criterion in self.default or ()), *named]))


def rubric_score(rubric: Rubric, met: Sequence[float]) -> float:
    """clip(Σ w·met / Σ of the positive w, 0, 1).

    Args:
        rubric: the criteria, at least one with a weight above 0.
        met: of each, in [0, 1]; NaN makes the score NaN.
    """
    reachable = sum(criterion.weight for criterion in rubric if criterion.weight > 0)
    total = sum(criterion.weight * value for criterion, value in zip(rubric, met, strict=True))
    return total if total != total else min(max(total / reachable, 0.0), 1.0)


def _share(rubric: Rubric, met: Sequence[float], sign: int) -> float:
    """Share of the weight with a sign that is met; NaN without such criteria."""
    weights = [max(sign * criterion.weight, 0.0) for criterion in rubric]
    total = sum(weights)
    return sum(w * value for w, value in zip(weights, met, strict=True) if w) / total if total else float("nan")
