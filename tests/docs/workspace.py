"""A working directory in which the blocks of a page run in order, as printed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs import people
from tests.docs.pages import ROOT, Block

SECONDS = 240
"""What one block may take."""

PREPARED = {
    "runs/sft": "sft --model HuggingFaceTB/SmolLM2-135M-Instruct --data demonstrations.jsonl",
    "runs/reward": "reward --model runs/sft --data comparisons.jsonl",
    "runs/held-out-reward": "reward --model runs/sft --data comparisons.jsonl --seed 1",
    "runs/better-reward": "reward --model runs/sft --data comparisons.jsonl --seed 2",
    "runs/ppo": "ppo --model runs/sft --data prompts.jsonl --eval-data held-out-prompts.jsonl --reward runs/reward "
    "--max-steps 4 --snapshot-every 1 --max-new-tokens 24 --learning-rate 1e-4 --beta 0.01",
}
"""What a page may read without having made it, and the command that makes it."""

READ_YAML = """
import sys
from pathlib import Path
import yaml
path = Path("block.yaml")
path.write_text(sys.argv[1])
keys = yaml.safe_load(sys.argv[1]).keys()
if "principles" in keys:
    from kleash.labels.constitution import Constitution
    Constitution.load(path)
else:
    from kleash.rewards.build import build_reward
    build_reward(str(path))
"""
"""Reads a block of YAML, in a process of its own, as what its keys say that it is: a constitution or a reward."""

JUDGES = ("runs/judge", "models/judge")
"""Folders of a chat model that a page may ask in this process."""


@dataclass(frozen=True)
class Workspace:
    """A directory, and the environment of its commands."""

    folder: Path
    env: Mapping[str, str]

    def run(self, block: Block) -> str:
        """Run a block; what went wrong, or an empty text."""
        name = re.match(r"# ([\w/-]+\.(py|yaml))\n", block.text)
        if name:
            (self.folder / name[1]).write_text(block.text)
        if block.language == "yaml":
            command = [sys.executable, "-c", READ_YAML, block.text]
        elif block.language == "python":
            command = [sys.executable, "-c", block.text]
        else:
            command = ["bash", "-euo", "pipefail", "-c", block.text]
        return self.execute(command, exit_code=block.exit_code or 0)

    def execute(self, command: list[str], *, exit_code: int = 0) -> str:
        """Run a command; what went wrong, or an empty text."""
        with subprocess.Popen(
            command, cwd=self.folder, env=dict(self.env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            try:
                out, err = process.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                out, err = process.communicate()
                return f"not done after {SECONDS} s\n{out[-2000:]}\n{err[-4000:]}"
        if process.returncode == exit_code:
            return ""
        return f"exit code {process.returncode}, not {exit_code}\n{out[-2000:]}\n{err[-4000:]}"


def environment(folder: Path, hub: Path, endpoint: int) -> dict[str, str]:
    """The environment of a page's commands: our `kleash` and `python` first, the tiny hub, no network.

    Args:
        folder: where the programs are written.
        hub: HF_HOME.
        endpoint: port that answers for http://localhost:8000.
    """
    programs = folder / "bin"
    programs.mkdir()
    kleash = programs / "kleash"
    kleash.write_text(
        f'#!/bin/sh\nif [ "$1" = label ]; then exec "{sys.executable}" "{people.__file__}" "$@"; fi\n'
        f'exec "{sys.executable}" -m kleash "$@"\n'
    )
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    paths = [ROOT / "tests" / "docs" / "site", ROOT / "tests" / "guard", ROOT / "src"]
    return os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "KLEASH_DOCS_ENDPOINT": str(endpoint),
        "OMP_NUM_THREADS": "1",
    }


def is_written(text: str, name: str) -> bool:
    """Whether a page's commands write a file or folder before they read it."""
    first = re.search(rf"(?P<out>--out |out=\"|out: )?\"?{re.escape(name)}(?![\w-])", text)
    return first is not None and first["out"] is not None


def needs(text: str) -> list[str]:
    """The prepared folders that a page names and does not write."""
    named = [name for name in (*PREPARED, *JUDGES) if re.search(rf"{re.escape(name)}(?![\w-])", text)]
    return [name for name in named if not is_written(text, name)]


def prepare(shelf: Workspace, name: str) -> Path:
    """Make a prepared folder on the shelf unless it is there already."""
    folder = shelf.folder / name
    if folder.exists():
        return folder
    if name in JUDGES:
        (snapshot,) = (Path(shelf.env["HF_HOME"]) / "hub").glob("*-Instruct/snapshots/*")
        shutil.copytree(snapshot, folder)
        return folder
    command = PREPARED[name]
    for parent in PREPARED:
        if re.search(rf"{parent}(?![\w-])", command):
            prepare(shelf, parent)
    problem = shelf.execute(["kleash", *command.split(), "--out", name])
    assert not problem, problem
    return folder
