"""A composition of rewards from YAML: a weighted sum whose parts may be clipped or gated.

    parts:
      - reward: math
      - reward: my_rewards:brief
        weight: 0.1
        clip: [-1, 0]
        gate: math            # brevity counts only where the answer is right

score = Σ weight · clip(part), over the parts whose gate is open. Each part is logged separately, before clip, gate and
weight: the sum does not show which of its parts the policy optimises.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from kleash.config import Config, is_possible_path, read_yaml
from kleash.data.group import Group
from kleash.errors import ConfigError
from kleash.rewards.reward import Parts, Reward, check_rows, explain


class Part(Config):
    """One reward of a composition."""

    reward: str = Field(min_length=1)
    """A verifier, a reward model's folder or `module:function`."""
    name: str = ""
    """Its name in logs and gates; empty: the value of `reward`."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Its weight in the sum."""
    clip: tuple[float, float] | None = None
    """Lower and upper bound of the value that enters the sum; null: no bounds."""
    gate: str | None = None
    """Name of a part that has to be above 0 (right, for a verifier) for this one to count; null: it always does."""

    @field_validator("clip")
    @classmethod
    def _ordered(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError("[lower, upper] with lower < upper")
        return clip

    @field_validator("reward")
    @classmethod
    def _not_nested(cls, reward: str) -> str:
        if reward.endswith((".yaml", ".yml")):
            raise ValueError("a reward other than a .yaml file; list the parts of that file here")
        if not is_possible_path(reward):
            raise ValueError("a name that a file could have")
        return reward

    @property
    def title(self) -> str:
        """Its name in logs and gates."""
        return self.name or self.reward


def read_parts(path: Path) -> list[Part]:
    """The parts of a composition's file.

    Raises:
        ConfigError: names the file, the part and the valid values.
    """
    values = read_yaml(path)
    items = values.pop("parts", None)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items) or values:
        raise ConfigError(
            f"{path}: should have one key, 'parts': a list of 'reward: …', with weight, clip, gate, name as needed"
        )
    parts = [Part.make(item, source=f"{path}: part {number}") for number, item in enumerate(items, start=1)]
    titles = [part.title for part in parts]
    for number, part in enumerate(parts, start=1):
        if titles.index(part.title) + 1 != number:
            raise ConfigError(f"{path}: part {number}: another part is '{part.title}' too; give it a 'name'")
        if part.gate is not None and part.gate not in set(titles) - {part.title}:
            raise ConfigError(f"{path}: part {number}: 'gate' is '{part.gate}', but should be another part's name")
    return parts


class ComposedReward:
    """A weighted sum of rewards."""

    def __init__(self, parts: Sequence[tuple[Part, Reward]]) -> None:
        """Take the parts, each with the reward that it names."""
        self.parts = parts

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def check_rows(self, groups: Sequence[Group]) -> None:
        """See `reward.check_rows`."""
        for _, reward in self.parts:
            check_rows(reward, groups)

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and those of each part; see `reward.explain`. The components of a part are named `part/…`."""
        raw: dict[str, Tensor] = {}
        nested: dict[str, Tensor] = {}
        for part, reward in self.parts:
            raw[part.title], components = explain(reward, groups)
            nested |= {f"{part.title}/{name}": values for name, values in components.items()}
        total = torch.zeros_like(next(iter(raw.values())))
        for part, _ in self.parts:
            values = raw[part.title]
            if part.clip is not None:
                values = values.clamp(*part.clip)
            if part.gate is not None:
                values = torch.where(raw[part.gate] > 0, values, 0.0)
            total = total + part.weight * values
        return total, raw | nested
