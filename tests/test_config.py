from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from pydantic import Field

import kleash
from kleash.config import Config, read_yaml
from kleash.errors import ConfigError
from kleash.recipe import STAGES, stage_config


class Example(Config):
    """An example."""

    beta: float = Field(0.1, ge=0)
    """Price of a nat."""
    model: str
    """The model to start from. A folder."""


def test_an_unknown_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"my.yaml: unknown key 'bta'; did you mean 'beta'\?"):
        Example.make({"model": "m", "bta": 1}, source="my.yaml")


def test_a_missing_key_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="'model' is missing; give The model to start from"):
        Example.make({})


def test_a_wrong_type_shows_the_value() -> None:
    with pytest.raises(ConfigError, match="'beta' is 'much', but should be a valid number"):
        Example.make({"model": "m", "beta": "much"})


def test_numbers_may_be_text_as_yaml_and_the_command_line_give_them() -> None:
    assert Example.make({"model": "m", "beta": "1e-5"}).beta == 1e-5


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Example.make({"model": "m"}).beta = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "line 1: not YAML"), ("- a\n- b", "holds list, but should be a mapping"), ("", "holds NoneType")],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_F10_every_config_field_is_read_by_the_code_that_runs() -> None:
    """A knob that is documented, computed and never applied is worse than none."""
    source = Path(kleash.__file__).parent
    read: set[str] = set()
    for path in source.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            # fields that are read by name: settings.py hands the optimiser's over in a tuple of strings
            if isinstance(node, ast.Tuple) and path.name in ("settings.py", "artifacts.py"):
                read |= {e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
    for stage in STAGES:
        unread = set(stage_config(stage).model_fields) - read - {"preset"}  # preset: read while validating
        assert not unread, f"{stage}: {unread} is read by nothing"


def test_every_field_of_every_stage_has_a_help_text() -> None:
    for stage in STAGES:
        for name, field in stage_config(stage).model_fields.items():
            assert field.description, f"{stage}: {name} has no docstring"


def test_every_stage_module_has_run() -> None:
    assert all(callable(importlib.import_module(module).run) for module, _ in STAGES.values())
