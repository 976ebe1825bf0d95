"""The functions as an editor and a type checker see them, in step with the configs."""

from __future__ import annotations

import ast
import inspect

import pytest

import kleash
from kleash.api import functions, stub
from kleash.errors import ConfigError
from kleash.option_names import PEERS
from kleash.stages import STAGES

NAMES = tuple(kleash._STAGES)


def test_every_stage_has_a_function() -> None:
    assert {name.replace("-", "_") for name in STAGES} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_are_the_fields_of_the_config(name: str) -> None:
    function, config = getattr(kleash, name), functions.config_of(name)
    parameters = inspect.signature(function).parameters
    assert set(parameters) == set(config.model_fields) | set(functions.beside_of(name))
    for field, info in config.model_fields.items():
        assert (parameters[field].default is inspect.Parameter.empty) == info.is_required()
        assert f"\n    {field}: " in function.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_what_a_stage_takes_besides_is_what_its_run_takes(name: str) -> None:
    parameters = set(inspect.signature(functions._run_of(name)).parameters) - {"config"}
    fields = set(functions.config_of(name).model_fields)
    assert set(functions.beside_of(name)) == parameters - fields, "a live reward goes where its name does"


def test_the_stub_is_written_anew() -> None:
    assert stub.FILE.read_text() == stub.stub(), "run `python -m kleash.api.stub`"


def test_the_stub_names_all_public_names() -> None:
    module = ast.parse(stub.stub())
    names = {alias.asname for node in module.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.name for node in module.body if isinstance(node, ast.FunctionDef)} | {"__version__"}
    assert set(kleash.__all__) <= names


def test_an_editor_completes_the_arguments() -> None:
    jedi = pytest.importorskip("jedi", reason="the extra `dev` is not installed")
    code = "import kleash\nkleash.grpo(group_s"
    assert "group_size=" in [each.name for each in jedi.Script(code).complete()]
    code = "import kleash\nrun = kleash.sft(model='m', data=[], out='o')\nrun.tok"
    assert [each.name for each in jedi.Script(code).complete()] == ["tokenizer"]


@pytest.mark.parametrize(
    "peer", [peer for peer in PEERS if "." not in peer.name and peer.ours], ids=lambda peer: peer.name
)
def test_names_of_other_libraries_are_explained(peer: object) -> None:
    name, field = peer.name, next((field for field in peer.ours if field in kleash.GRPOConfig.model_fields), None)  # type: ignore[attr-defined]
    if field is None or field == name:
        return
    with pytest.raises(ConfigError, match=f"unknown key '{name}'; it is '{field}' here"):
        kleash.grpo(model="m", data="d.jsonl", reward="ended", out="o", **{name: 1})  # type: ignore[call-overload]
