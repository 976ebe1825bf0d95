"""A function as a reward is the one in the file that identifies the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleash.content import reward_hash
from kleash.data.group import Group, Response
from kleash.errors import ConfigError
from kleash.rewards.function import FunctionReward

GROUPS = [Group("x", (Response("a b"),))]


def module(folder: Path, value: float, name: str = "marks") -> None:
    """A module of one function that gives every completion the same score."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(
        f"def mark(prompts, completions, **columns):\n    return [{value}] * len(completions)\n"
    )


def test_a_module_of_the_same_name_imported_from_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, value in (("one", 1.0), ("other", 2.0)):
        module(tmp_path / place, value)
    monkeypatch.chdir(tmp_path / "one")
    assert FunctionReward("marks:mark")(GROUPS).tolist() == [[1.0]]
    first = reward_hash("marks:mark")
    monkeypatch.chdir(tmp_path / "other")
    assert reward_hash("marks:mark") != first
    with pytest.raises(ConfigError, match=r"already imported 'marks' from .*one/marks\.py, not from .*other/marks\.py"):
        FunctionReward("marks:mark")


def test_a_function_in_a_package_of_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path / "scoring" / "inner", 3.0)
    monkeypatch.chdir(tmp_path)
    assert FunctionReward("scoring.inner.marks:mark")(GROUPS).tolist() == [[3.0]]
    assert FunctionReward("kleash.lab.world:gold").function is not None
