"""Several rewards as one, from YAML: a weighted sum, each part clipped or gated where the file says so.

    parts:
      - reward: math
      - reward: my_rewards:brief
        weight: 0.1
        clip: [-1, 0]
        gate: math            # brevity counts only where the answer is right

score = Σ weight · clip(part), over the parts whose gate is open. Each part is logged apart, as it was before clip, gate
and weight: a sum alone does not say which of its parts is being optimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from kleash.config import Config, read_yaml
from kleash.data.group import Group
from kleash.errors import ConfigError
from kleash.rewards.reward import Parts, Reward, build_reward, explain


class Part(Config):
    """One reward of a composition."""

    reward: str = Field(min_length=1)
    """A verifier, a reward model's folder or `module:function`."""
    name: str = ""
    """What it is logged as and what gates call it; empty: as `reward` has it."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """What it is multiplied by in the sum."""
    clip: tuple[float, float] | None = None
    """Least and greatest value that it counts with; null leaves it."""
    gate: str | None = None
    """Name of a part that has to be above 0 (right, for a verifier) for this one to count; null: it always does."""

    @field_validator("clip")
    @classmethod
    def _ordered(cls, clip: tuple[float, float] | None) -> tuple[float, float] | None:
        if clip is not None and not clip[0] < clip[1]:
            raise ValueError("[least, greatest]")
        return clip

    @field_validator("reward")
    @classmethod
    def _not_nested(cls, reward: str) -> str:
        if reward.endswith((".yaml", ".yml")):
            raise ValueError("no composition itself; list its parts here")
        return reward

    @property
    def title(self) -> str:
        """The name it goes by."""
        return self.name or self.reward


def read_parts(path: Path) -> list[Part]:
    """The parts of a composition's file.

    Raises:
        ConfigError: naming the file, the part and what would be right.
    """
    values = read_yaml(path)
    listed = values.pop("parts", None)
    if not isinstance(listed, list) or not listed or not all(isinstance(part, dict) for part in listed) or values:
        raise ConfigError(f"{path}: should hold 'parts' alone, a list of 'reward: …' with weight, clip, gate, name")
    parts = [Part.make(part, source=f"{path}: part {place}") for place, part in enumerate(listed, start=1)]
    titles = [part.title for part in parts]
    for place, part in enumerate(parts, start=1):
        if titles.index(part.title) + 1 != place:
            raise ConfigError(f"{path}: part {place}: another part is '{part.title}' too; give it a 'name'")
        if part.gate is not None and part.gate not in set(titles) - {part.title}:
            raise ConfigError(f"{path}: part {place}: 'gate' is '{part.gate}', but should be another part's name")
    return parts


class ComposedReward:
    """A weighted sum of rewards."""

    def __init__(self, parts: Sequence[tuple[Part, Reward]]) -> None:
        """Take the parts, each with the reward that it names."""
        self.parts = parts

    @classmethod
    def load(cls, path: Path, **settings: Any) -> ComposedReward:
        """From YAML.

        Args:
            path: the file.
            settings: passed on to `build_reward`.

        Raises:
            ConfigError: naming the file, the part and what would be right.
        """
        return cls([(part, build_reward(part.reward, **settings)) for part in read_parts(path)])

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and those of each part; see `reward.explain`. What a part is made of is named `part/…`."""
        raw: dict[str, Tensor] = {}
        below: dict[str, Tensor] = {}
        for part, reward in self.parts:
            raw[part.title], own = explain(reward, groups)
            below |= {f"{part.title}/{name}": values for name, values in own.items()}
        total = torch.zeros_like(next(iter(raw.values())))
        for part, _ in self.parts:
            values = raw[part.title]
            if part.clip is not None:
                values = values.clamp(*part.clip)
            if part.gate is not None:
                values = torch.where(raw[part.gate] > 0, values, 0.0)
            total = total + part.weight * values
        return total, raw | below
