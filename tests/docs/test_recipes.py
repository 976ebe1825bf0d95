"""Every recipe runs by the commands in its head."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.conftest import Open
from tests.docs.pages import ROOT

RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if path.name != "sums.yaml"]
"""README runs sums.yaml."""

COMMAND = re.compile(r"^# {5}(kleash .+?)(?:  +# (.*))?$", re.MULTILINE)


@pytest.mark.docs
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_as_its_head_says(recipe: Path, open_workspace: Open) -> None:
    text = recipe.read_text()
    commands = COMMAND.findall(text)
    assert commands, f"{recipe.name}: its head gives no command"
    workspace = open_workspace(text)
    shutil.copy(recipe, workspace.folder)
    for command, comment in commands:
        code = re.search(r"ends with code (\d+)", comment)
        problem = workspace.execute(["bash", "-c", command], exit_code=int(code[1]) if code else 0)
        assert not problem, f"{recipe.name}: {command}\n{problem}"


@pytest.mark.docs
def test_the_reward_of_README_scores_texts_and_turns_alike(open_workspace: Open) -> None:
    workspace = open_workspace("")
    turn = "[{'role': 'assistant', 'content': 'b c'}]"
    code = f"from my_rewards import brief; assert brief(['a', 'a'], ['b c', {turn}]) == [-0.02, -0.02]"
    assert not workspace.execute(["python", "-c", code])
