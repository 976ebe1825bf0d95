"""A composition of rewards from YAML: a weighted sum whose parts may be clipped or gated.

    parts:
      - reward: math
      - reward: my_rewards:brief
        weight: 0.1
        clip: [-1, 0]
        gate: math            # brevity counts only where the answer is right
      - reward: regex
        pattern: <think>.*</think>.*    # an option of a verifier: answer, pattern, schema, fences

score = Σ weight · clip(part), over the parts whose gate is open. Each part is logged separately, before clip, gate and
weight: the sum does not show which of its parts the policy optimises.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from kleash.config import Config, is_possible_path, read_yaml
from kleash.data.group import Group
from kleash.errors import ConfigError
from kleash.rewards.reward import Parts, Reward, check_rows, explain
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import BadRowError, verifiers


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

    answer: str = ""
    """Column of the expected value, where the reward is a verifier; empty: the verifier's own (`answer`, …)."""
    pattern: str | None = None
    """Of `regex`: the pattern of every row; null: each row has its own."""
    json_schema: str | bool | dict[str, Any] | None = Field(None, alias="schema")
    """Of `json-schema`, as `schema`: the schema of every row; null: each row has its own."""
    fences: bool = False
    """Of `json-schema`: whether the JSON may stand in a fence of Markdown."""

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

    @model_validator(mode="after")
    def _options_fit(self) -> Part:
        """Refuse an option of a verifier beside another reward, which would not read it."""
        for key, reward in (("pattern", "regex"), ("schema", "json-schema"), ("fences", "json-schema")):
            if getattr(self, "json_schema" if key == "schema" else key) not in (None, False) and self.reward != reward:
                raise ValueError(
                    f"'{key}' is an option of {reward}, and the reward here is {self.reward}; leave it out"
                )
        if self.answer and self.reward not in verifiers():
            raise ValueError(f"'answer' is an option of verifiers, and {self.reward} is not one; leave it out")
        return self

    def verifier(self) -> VerifierReward:
        """Its reward, where that is a verifier.

        Raises:
            ConfigError: the pattern or the schema cannot be read.
        """
        expected = self.pattern if self.pattern is not None else self.json_schema
        options = {"fences": True} if self.fences else {}
        try:
            return VerifierReward(
                verifiers()[self.reward], column=self.answer or None, expected=expected, options=options
            )
        except BadRowError as error:
            raise ConfigError(f"'{self.title}': {error}") from None

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
