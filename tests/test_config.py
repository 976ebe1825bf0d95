from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

import kleash
from kleash.config import DATA, MEASURE, MODEL, Config, DataRef, MeasureRef, ModelRef, read_yaml
from kleash.errors import ConfigError
from kleash.stages import STAGES
from kleash.stages.data_configs import JudgeConfig


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
    with pytest.raises(ConfigError, match="'model' is missing; give the model to start from"):
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
    [("a: [1", "line 1: invalid YAML"), ("- a\n- b", "holds list, but should be a mapping"), ("", "holds NoneType")],
)
def test_a_file_that_is_no_mapping_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\nb: 2\na: 3", "'a' is there twice (first in line 1)"),
        ('a: 1\n"a": 1', "'a' is there twice"),
        ("x:\n  - {text: T1,\n     text: T2}", "line 3: invalid YAML: 'text' is there twice (first in line 2)"),
        ("x: {1: a, 0x1: b}", "'0x1' is there twice"),
        ("x: {yes: a, on: b}", "'on' is there twice"),
        ("x: &x {a: 1}\ny: {<<: *x, <<: *x}", "'<<' is there twice"),
    ],
)
def test_a_key_that_is_there_twice_is_an_error_that_names_it(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(key)) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_a_merged_key_may_be_given_again(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("x: {b: &b {<<: {k: 1, l: 1}, k: 2}}\ny: {<<: *b, l: 3}\n")
    values = read_yaml(path)
    assert values["x"] == {"b": {"k": 2, "l": 1}} and values["y"]["l"] == 3


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
        unread = (
            set(STAGES[stage].config.model_fields) - read - {"preset", "save_dtype", "elo"}
        )  # read while validating, and from run.json
        assert not unread, f"{stage}: {unread} is read by nothing"


def test_every_field_of_every_stage_has_a_help_text() -> None:
    for stage in STAGES:
        for name, field in STAGES[stage].config.model_fields.items():
            assert field.description, f"{stage}: {name} has no docstring"


REWARD_MODULE = "kleash.stages.reward_ensemble"

TEXT = {"accept_changed", "annotators", "device", "endpoint", "store", "response_column", "push_to_hub"}
TEXT |= {"run_name", "tracker_project", "tracker_tags", "metric", "stop", "by"}
"""Fields of stage configs that are text and name no file: a device, an address, a label store, a column, names."""


def test_every_field_that_names_a_file_says_so_by_its_type() -> None:
    """What has no kind is not hashed, so that a run would go on with another file (F11)."""
    for stage, row in STAGES.items():
        kinds = row.config.kinds()
        for name, field in row.config.model_fields.items():
            parts = {part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)}
            assert name in kinds or name in TEXT or not {str, Path} & parts or name == "out", (
                f"{stage}: {name} is text; give it ModelRef, RewardRef, MeasureRef, DataRef or ConstitutionRef"
            )


def test_kinds_are_found_through_optional_fields_and_tuples() -> None:
    class Kinds(Config):
        """An example."""

        model: ModelRef
        """A model."""
        gold: MeasureRef | None = None
        """A reward."""
        data: tuple[DataRef, ...] = ()
        """Rows."""
        text: str | None = None
        """Nothing."""

    assert Kinds.kinds() == {"model": MODEL, "gold": MEASURE, "data": DATA}
    assert Kinds(model="m", data=("d",)).references().keys() == {"model"}, "several are no reference"
    assert Kinds(model="m", gold="g").references()["gold"] == (MEASURE, "g")


def test_models_and_rewards_are_parents_and_measuring_rewards_are_not() -> None:
    parents = {name for name, kind in STAGES["ppo"].config.kinds().items() if kind.parent}
    assert parents == {"model", "reference", "reward"}


def test_every_stage_runs_its_own_module() -> None:
    for name, stage in STAGES.items():
        module = import_module(f"kleash.stages.{name.replace('-', '_')}" if name != "reward" else REWARD_MODULE)
        assert callable(module.run), name
        assert stage.example.startswith(f"kleash {name} "), name


def every_config() -> list[type[Config]]:
    """Every config of kleash: those of the stages and all others, their base classes too."""
    for module in ("rewards.composition", "rewards.judge_score", "web.label.serve", "stages"):
        import_module(f"kleash.{module}")
    configs: list[type[Config]] = []
    rest = [Config]
    while rest:
        rest += (one := rest.pop()).__subclasses__()
        configs += [one] if one.__module__.startswith("kleash.") else []
    return configs


NUMBERS = [
    (config, name)
    for config in every_config()
    for name, field in config.model_fields.items()
    if "float" in str(field.annotation).replace("float32", "")
]

NAMED = {"model": "m", "data": "d", "out": "o", "reward": "r", "gold": "g", "constitution": "c", "store": "s"}
"""Values of required fields."""


@pytest.mark.parametrize(("config", "name"), NUMBERS, ids=[f"{c.__name__}.{n}" for c, n in NUMBERS])
@given(data=st.data())
@settings(max_examples=12)
def test_a_number_that_cannot_work_is_refused_in_one_line_that_names_its_option(
    config: type[Config], name: str, data: st.DataObject
) -> None:
    impossible = st.sampled_from(["inf", "-inf", "nan", "1e400", "Infinity", "1e39", "1e-39", "-1e39"])
    value = data.draw(impossible | st.floats(min_value=3.5e38) | st.floats(max_value=-3.5e38))
    many = "tuple" in str(config.model_fields[name].annotation)
    required = {key: NAMED.get(key, "x") for key, field in config.model_fields.items() if field.is_required()}
    with pytest.raises(ConfigError) as caught:
        config.make(required | {name: [value, value] if many else value})
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_price_below_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="price"):
        JudgeConfig.make({"model": "m", "data": "d", "out": "o", "price": (-1, 2)})
