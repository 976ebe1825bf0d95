"""The package as it is shipped, and the guard that all other tests run under."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module, metadata
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from network_guard import NetworkRefusedError

import kleash
from kleash.stages import STAGES

ROOT = Path(__file__).parent.parent


def test_one_version_everywhere() -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert kleash.__version__ == written == metadata.version("kleash")
    assert f"## {written}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", getattr(kleash, "__all__", ["__doc__"]))
def test_public_names_exist_and_are_documented(name: str) -> None:
    public = getattr(kleash, name)
    if callable(public):
        assert public.__doc__, f"kleash.{name} has no docstring"


def test_every_stage_is_a_function_and_its_config_is_public() -> None:
    for name, stage in STAGES.items():
        assert getattr(kleash, name.replace("-", "_")).__name__ == name.replace("-", "_")
        assert getattr(kleash, stage.config.__name__) is stage.config


def test_the_api_page_lists_exactly_the_public_names() -> None:
    table = (ROOT / "docs" / "api.md").read_text().split("## Public names")[1]
    listed = [
        name.strip("` ")
        for line in table.splitlines()
        if line.startswith("| `")
        for name in line.split("|")[1].split(",")
    ]
    assert sorted(listed) == sorted(kleash.__all__)


def test_every_module_is_imported_without_side_effects_on_the_terminal() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        for path in sorted((ROOT / "src" / "kleash").rglob("*.py"))
        if path.name not in {"__init__.py", "__main__.py", "env.py"}  # alembic runs env.py, and nobody imports it
    ]
    imports = "; ".join(f"import {module}" for module in modules)
    done = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_shapes_are_checked_in_the_whole_test_run() -> None:
    reduce = import_module("kleash.objectives.reduce")
    with pytest.raises(Exception, match=r"type-check|Type-check|violates"):
        reduce.masked_mean(torch.ones(2, 3), torch.ones(3, 2, dtype=torch.bool))
    assert isinstance(torch.ones(2, 3), Float[torch.Tensor, "A B"])


def test_F17_a_connection_beyond_this_machine_is_refused_and_remembered(network) -> None:
    import socket

    with pytest.raises(NetworkRefusedError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(NetworkRefusedError):
        socket.getaddrinfo("example.invalid", 80)
    assert len(network.attempts()) == 2
    network.forgive()


def test_F17_a_swallowed_refusal_is_remembered_even_of_another_process(network) -> None:
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), timeout=1)\nexcept Exception: pass"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert network.attempts() == ["socket.getaddrinfo 192.0.2.1"]
    network.forgive()


def test_F17_local_sockets_are_allowed() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


@pytest.mark.slow
def test_the_wheel_holds_templates_types_and_licence(tmp_path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*") if path.is_file()}
    shipped = {name for name in shipped if "__pycache__" not in name}
    assert shipped <= names
    assert "kleash/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)
