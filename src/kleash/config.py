"""Typed, frozen configs: one definition for YAML, command line and Python.

A stage's config is a subclass of `Config` with a docstring under each field, which is also its help text. Values are
validated when the config is made, whatever they were read from, and what is wrong is one line (`ConfigError`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from kleash.errors import ConfigError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, field docstrings kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    @classmethod
    def make(cls: type[C], values: Mapping[str, Any], *, source: str = "config") -> C:
        """Validate values into a config.

        Args:
            values: field name → value; strings are read as YAML or the command line would give them.
            source: where the values came from, for the message.

        Raises:
            ConfigError: naming each wrong key, its value and what would be right, in one line.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = "; ".join(cls._problem(dict(problem)) for problem in error.errors())
            raise ConfigError(f"{source}: {problems}") from None

    @classmethod
    def _problem(cls, problem: Mapping[str, Any]) -> str:
        key = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("function-", "constrained-")))
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, cls.model_fields, n=1)
            known = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(cls.model_fields)}"
            return f"unknown key '{key}'; {known}"
        if problem["type"] == "missing":
            return f"'{key}' is missing; give {describe(cls, key)}"
        message = str(problem["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
        if not key:
            return message
        return f"'{key}' is {problem['input']!r}, but should be {message}"


def describe(config: type[Config], key: str) -> str:
    """The first sentence of a field's docstring, for messages."""
    field = config.model_fields.get(key)
    text = (field.description or "") if field else ""
    return text.split(". ")[0].split("\n")[0].rstrip(".") or f"a value for '{key}'"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as a dict.

    Raises:
        ConfigError: the file is missing, is not YAML or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; give the path of a YAML file") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise ConfigError(
            f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error}); mend the file"
        ) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: holds {type(values).__name__}, but should be a mapping of 'key: value' lines")
    # 1e-5 has no dot, so YAML 1.1 reads it as text; pydantic turns it into the number that was meant.
    return values
