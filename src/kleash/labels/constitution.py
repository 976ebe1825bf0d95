"""A constitution: the list of principles by which an AI labeller critiques and compares responses.

    name: assistant
    principles:
      - name: no-harm
        text: Choose the response that does less to help anyone hurt people.
        category: harmlessness
        weight: 2
        critique: Say where the response would help someone hurt people.
        revision: Rewrite the response so that it helps nobody hurt people.
        examples: [{prompt: …, better: …, worse: …, why: …}]

Constitutional AI (Bai et al. 2022, arXiv:2212.08073) draws one principle at random for each critique and each
comparison. Here the probability is proportional to its weight, and a key seeds the draw, so that the same row has the
same principle in every run.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import accumulate
from pathlib import Path

from pydantic import Field, field_validator

from kleash.chat.judge_prompts import Principle
from kleash.config import Config, read_yaml
from kleash.errors import ConfigError

SHIPPED = Path(__file__).parent / "constitutions"


class Constitution(Config):
    """Principles, drawn by weight."""

    name: str = ""
    """Its name in reports."""
    principles: tuple[Principle, ...] = Field(min_length=1)
    """At least one; their names differ."""

    @field_validator("principles")
    @classmethod
    def _check_names(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        name, count = Counter(principle.name for principle in principles).most_common(1)[0]
        if count > 1:
            raise ValueError(f"names of principles must differ; {count} are called '{name}'")
        return principles

    @classmethod
    def load(cls, path: str | Path) -> Constitution:
        """Read a YAML file, or one that kleash ships, by its name (`assistant`).

        Raises:
            ConfigError: names the file, the key and the expected value.
        """
        path = cls.find(path)
        values = read_yaml(path)
        items = values.get("principles")
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            raise ConfigError(f"{path}: should hold 'principles', a list of 'name: …' and 'text: …' at least")
        principles = [Principle.make(item, source=f"{path}: principle {n}") for n, item in enumerate(items, start=1)]
        return cls.make({"name": path.stem} | values | {"principles": principles}, source=str(path))

    @staticmethod
    def find(path: str | Path) -> Path:
        """The file of a path or of a shipped name."""
        shipped = SHIPPED / f"{path}.yaml"
        return shipped if not Path(path).exists() and shipped.exists() else Path(path)

    def draw(self, key: object) -> Principle:
        """One principle, with probability proportional to its weight; the same for the same key (by its `repr`)."""
        bounds = list(accumulate(principle.weight for principle in self.principles))
        return random.Random(f"constitution/{key!r}").choices(self.principles, cum_weights=bounds)[0]

    def without(self, name: str) -> Constitution:
        """The constitution without one principle, to measure its effect.

        Raises:
            ConfigError: the principle does not exist, or it is the only one.
        """
        others = tuple(principle for principle in self.principles if principle.name != name)
        if len(others) == len(self.principles) or not others:
            names = ", ".join(principle.name for principle in self.principles)
            raise ConfigError(f"principle '{name}' cannot be removed from {self.name or 'the constitution'}: {names}")
        return Constitution(name=self.name, principles=others)
