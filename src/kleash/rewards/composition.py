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
weight: the sum does not show which of its parts the policy optimises. A part that has no opinion of a response adds
nothing, as in TRL; where no part of a weight other than 0 has one, the composition has none. A part of weight 0 is a
monitor: it is scored and logged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor

from kleash.config import BY, Config, is_possible_path, may_nest, read_yaml, routed_text, routes_of
from kleash.data.group import Group
from kleash.errors import ConfigError
from kleash.rewards.reward import FILTER, NO_OPINION, Parts, Reward, explain, faults, no_opinion
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import BadRowError, verifiers


class Part(Config):
    """One reward of a composition."""

    reward: Annotated[str, BeforeValidator(routed_text)] = Field(min_length=1)
    """A verifier, a reward model's folder, `module:function`, a judge's .yaml file, or a mapping that routes rows to
    these."""
    name: str = ""
    """Its name in logs and gates; empty: the value of `reward`, or the column that routes."""
    weight: float = Field(1.0, allow_inf_nan=False)
    """Its weight in the sum; 0: it is logged and adds nothing."""
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
        for name in (routes_of(reward) or {"": reward}).values():
            if not is_possible_path(name):
                raise ValueError("a name that a file could have")
            if may_nest(name):
                raise ValueError("a reward other than a .yaml file; list the parts of that file here")
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
        return self.name or (self.reward if routes_of(self.reward) is None else str(json.loads(self.reward)[BY]))


def read_parts(path: Path) -> tuple[list[Part], str | None]:
    """The parts of a composition's file, and its `filter_on`.

    Raises:
        ConfigError: names the file, the part and the valid values.
    """
    values = read_yaml(path)
    items, filter_on = values.pop("parts", None), values.pop("filter_on", None)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items) or values:
        raise ConfigError(
            f"{path}: should have one key, 'parts': a list of 'reward: …', with weight, clip, gate, name as needed "
            "(and 'filter_on', the name of a part)"
        )
    parts = [Part.make(item, source=f"{path}: part {number}") for number, item in enumerate(items, start=1)]
    titles = [part.title for part in parts]
    for number, part in enumerate(parts, start=1):
        if titles.index(part.title) + 1 != number:
            raise ConfigError(f"{path}: part {number}: another part is '{part.title}' too; give it a 'name'")
        if part.gate is not None and part.gate not in set(titles) - {part.title}:
            raise ConfigError(f"{path}: part {number}: 'gate' is '{part.gate}', but should be another part's name")
    if filter_on is not None and filter_on not in titles:
        raise ConfigError(f"{path}: 'filter_on' is '{filter_on}', but should be one of {', '.join(titles)}")
    return parts, filter_on


class ComposedReward:
    """A weighted sum of rewards."""

    def __init__(self, parts: Sequence[tuple[Part, Reward]], *, filter_on: str | None = None) -> None:
        """Take the parts, each with the reward that it names.

        Args:
            parts: at least one, of different titles.
            filter_on: title of the part whose scores decide whether a group of responses has a spread, is solved, or
                keeps a run alive; None: the sum.
        """
        self.parts, self.filter_on = parts, filter_on

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return self.explain(groups)[0]

    def faults(self, groups: Sequence[Group]) -> Mapping[int, str]:
        """See `reward.faults`; of a row that several parts cannot read, the first one's."""
        bad: dict[int, str] = {}
        for _, reward in self.parts:
            bad = {**faults(reward, groups), **bad}
        return bad

    def explain(self, groups: Sequence[Group]) -> tuple[Float[Tensor, "P K"], Parts]:
        """Scores, and those of each part; see `reward.explain`. The components of a part are named `part/…`."""
        raw: dict[str, Tensor] = {}
        nested: dict[str, Tensor] = {}
        none: dict[str, Tensor] = {}
        for part, reward in self.parts:
            raw[part.title], components = explain(reward, groups)
            none[part.title] = no_opinion(raw[part.title], components)
            nested |= {f"{part.title}/{name}": values for name, values in components.items()}
        total = torch.zeros_like(next(iter(raw.values())))
        counting = [part for part, _ in self.parts if part.weight != 0]  # the others only watch
        for part in counting:
            values = torch.where(none[part.title], 0.0, raw[part.title])
            if part.clip is not None:
                values = torch.where(none[part.title], 0.0, values.clamp(*part.clip))
            if part.gate is not None:
                values = torch.where(raw[part.gate] > 0, values, 0.0)
            total = total + part.weight * values
        silent = torch.stack([none[part.title] for part in counting] or [*none.values()]).all(0)
        if bool(silent.any()):
            total = torch.where(silent, torch.nan, total)
            nested[NO_OPINION] = silent.float()
        if self.filter_on is not None:
            nested[FILTER] = raw[self.filter_on]
        return total, raw | nested
