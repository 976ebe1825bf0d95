"""A constitution: the written list of principles that an AI labeller critiques and compares by.

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
comparison; here with probability proportional to its weight, by a key, so that the same row has the same principle in
every run.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import accumulate
from pathlib import Path

from pydantic import Field, field_validator

from kleash.config import Config, read_yaml
from kleash.errors import ConfigError

SHIPPED = Path(__file__).parent / "constitutions"


class Example(Config):
    """Two responses to a prompt that a principle tells apart: shown to the labeller before it is asked."""

    prompt: str
    """What was asked."""
    better: str
    """The response that the principle prefers; a revision of the other one."""
    worse: str
    """The response that violates it."""
    why: str = ""
    """What is wrong with the worse one, as a critique would say it."""


class Principle(Config):
    """One rule, with what it asks of a comparison, of a critique and of a revision."""

    name: str = Field(min_length=1)
    """What reports and rows call it."""
    text: str = Field(min_length=1)
    """The instruction to compare by: "Choose the response that …"."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How often it is drawn and how much it counts in an average, relative to the others."""
    category: str = ""
    """What it is about, to report by: harmlessness, honesty, …."""
    critique: str = ""
    """The instruction to criticise by; empty: made from `text`."""
    revision: str = ""
    """The instruction to revise by; empty: to mend what the critique found."""
    examples: tuple[Example, ...] = ()
    """Shown before the question."""


class Constitution(Config):
    """Principles, drawn by weight."""

    name: str = ""
    """What reports call it."""
    principles: tuple[Principle, ...] = Field(min_length=1)
    """At least one, each with a name of its own."""

    @field_validator("principles")
    @classmethod
    def _names_differ(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        name, count = Counter(principle.name for principle in principles).most_common(1)[0]
        if count > 1:
            raise ValueError(f"principles with a name of their own each; {count} are called '{name}'")
        return principles

    @classmethod
    def load(cls, path: str | Path) -> Constitution:
        """Read a YAML file, or one that kleash ships, by its name (`assistant`).

        Raises:
            ConfigError: naming the file, the key and what would be right.
        """
        path = cls.find(path)
        values = read_yaml(path)
        listed = values.get("principles")
        if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
            raise ConfigError(f"{path}: should hold 'principles', a list of 'name: …' and 'text: …' at least")
        principles = [Principle.make(item, source=f"{path}: principle {n}") for n, item in enumerate(listed, start=1)]
        return cls.make({"name": path.stem} | values | {"principles": principles}, source=str(path))

    @staticmethod
    def find(path: str | Path) -> Path:
        """The file that a path or a shipped name stands for."""
        shipped = SHIPPED / f"{path}.yaml"
        return shipped if not Path(path).exists() and shipped.exists() else Path(path)

    def draw(self, key: object) -> Principle:
        """One principle, with probability proportional to its weight; the same for the same key (by its `repr`)."""
        bounds = list(accumulate(principle.weight for principle in self.principles))
        return random.Random(f"constitution/{key!r}").choices(self.principles, cum_weights=bounds)[0]

    def without(self, name: str) -> Constitution:
        """The same without one principle: what is its effect?

        Raises:
            ConfigError: there is no such principle, or no other.
        """
        left = tuple(principle for principle in self.principles if principle.name != name)
        if len(left) == len(self.principles) or not left:
            names = ", ".join(principle.name for principle in self.principles)
            raise ConfigError(f"principle '{name}' cannot be taken out of {self.name or 'the constitution'}: {names}")
        return Constitution(name=self.name, principles=left)
