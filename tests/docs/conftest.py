"""A hub of tiny models, a chat model behind an endpoint, and a fresh working directory for each page."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.docs.hub import GOOD, tiny_hub, write_data
from tests.docs.pages import ROOT, blocks
from tests.docs.workspace import Workspace, environment, is_written, needs, prepare

Open = Callable[[str], Workspace]

MY_REWARDS = next(block.text for block in blocks(ROOT / "README.md") if block.text.startswith("# my_rewards.py"))
"""The reward of README, which other pages name."""


def answers(body: Mapping[str, Any]) -> tuple[str, Mapping[str, float]]:
    """A chat model that prefers, and rates higher, the response with more good things in it."""
    from tests.chat.loopback import shown

    first = body["messages"][0]["content"]
    if "Reply with 1." in first:
        return "1", {"1": 0.99}
    if not body.get("logprobs"):
        return "The first names what the animal eats; the second does not.", {}
    if "<response 1" not in first:
        good = sum(first.count(word) for word in GOOD)
        return ("Y", {"Y": 0.5, "N": 0.5}) if "The criterion" in first else ("5", {str(1 + min(good, 8)): 1.0})
    a, b = (sum(text.count(word) for word in GOOD) for text in shown(body))
    p = 0.5 if a == b else 0.9 if a > b else 0.1
    return "1" if p > 0.5 else "2", {"1": p, "2": 1 - p}


@pytest.fixture(scope="session")
def endpoint() -> Iterator[int]:
    """The port of a chat model."""
    pytest.importorskip("starlette", reason="the extra `feedback` is not installed")
    from tests.chat.loopback import Server

    with Server(answers) as server:
        yield server.port


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory, endpoint: int) -> Workspace:
    """The data, and the runs that pages read without making them; processes of one test run share nothing."""
    folder = tmp_path_factory.mktemp("shelf")
    hub = folder / "hub"
    tiny_hub(hub)
    data = folder / "data"
    data.mkdir()
    write_data(data)
    return Workspace(data, environment(folder, hub, endpoint))


@pytest.fixture
def open_workspace(shelf: Workspace, tmp_path: Path) -> Open:
    """Open the directory in which a page that holds some text runs."""

    def open_for(text: str) -> Workspace:
        folder = tmp_path / "page"
        folder.mkdir()
        with (shelf.folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in needs(text):
                shutil.copytree(prepare(shelf, name), folder / name)
        for file in shelf.folder.iterdir():
            if file.is_file() and not is_written(text, file.name):
                shutil.copy(file, folder)
        (folder / "recipes").symlink_to(ROOT / "recipes")
        (folder / "my_rewards.py").write_text(MY_REWARDS)
        return Workspace(folder, shelf.env)

    return open_for
