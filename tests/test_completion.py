"""Completion in real shells: what a person is offered after Tab."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kleash.cli import COMMANDS, _run
from tests.programs import needs

Complete = Callable[[str, list[str]], list[set[str]]]

BASH = """
eval "$(kleash completion bash)"
for line; do
    COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9
    $(complete -p kleash | sed 's/.*-F \\([^ ]*\\) .*/\\1/') kleash
    printf '%s\\n' "${COMPREPLY[@]}" =
done
"""

FISH = """
kleash completion fish | source
for line in $argv; complete -C "$line"; echo =; end
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A `kleash` on the path, in an empty home."""
    program = tmp_path / "bin" / "kleash"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kleash "$@"\n')
    program.chmod(0o755)
    paths = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}
    return os.environ | paths


@pytest.fixture
def offered(environment: dict[str, str], tmp_path: Path) -> Complete:
    """What a shell offers for each of some lines."""

    def in_shell(shell: str, lines: list[str]) -> list[set[str]]:
        program = str(needs(shell))
        if shell == "zsh":
            return [_in_zsh(program, line, environment, tmp_path) for line in lines]
        options = {"bash": ["--norc", "-c", BASH, "bash"], "fish": ["--no-config", "-c", FISH]}[shell]
        done = subprocess.run(
            [program, *options, *lines], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        answers = [text.splitlines() for text in done.stdout.split("=\n")]
        return [{row.split("\t")[0].strip() for row in rows if row.strip()} for rows in answers]

    return in_shell


def _in_zsh(program: str, line: str, environment: dict[str, str], folder: Path) -> set[str]:
    """Zsh completes only for a terminal, so it gets one."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(program, [program, "-f", "-i"], environment | {"COLUMNS": "300"})
    setup = "PS1=; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D"
    os.write(terminal, f'{setup}; eval "$(kleash completion zsh)"; LISTMAX=1000; echo rea""dy\n'.encode())
    _read(terminal, "ready\r")
    os.write(terminal, f"{line}\t\t".encode())
    shown = _read(terminal, None)
    os.close(terminal)
    os.waitpid(process, 0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x07", " ", shown)
    return set(re.split(r"[\s]+", plain))


def _read(terminal: int, until: str | None) -> str:
    """What a terminal shows until a text, or until it is quiet."""
    text, end = "", time.monotonic() + 60
    while time.monotonic() < end and (until is None or until not in text):
        if not select.select([terminal], [], [], 5)[0]:
            break
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


@pytest.mark.parametrize(
    "shell", ["bash", pytest.param("fish", marks=pytest.mark.slow), pytest.param("zsh", marks=pytest.mark.slow)]
)
def test_commands_options_and_values_are_completed(offered: Complete, shell: str, tmp_path: Path) -> None:
    (tmp_path / "runs-of-mine").mkdir()
    lines = ["kleash s", "kleash grpo --kl", "kleash grpo --kl-in ", "kleash sft --model runs-"]
    commands, options, values, files, *_ = offered(shell, lines)
    assert commands >= {"sft", "score"}
    assert options >= {"--kl-in", "--kl-budget"}
    assert values >= {"reward", "loss-k3", "loss-k2-response"}
    assert any("runs-of-mine" in word for word in files)


def test_every_command_is_completed_and_nothing_heavy_is_imported(environment: dict[str, str]) -> None:
    code = (
        "import os, sys, atexit\n"
        "slow = {'torch', 'transformers', 'datasets', 'numpy'}\n"
        "os._exit = lambda code: print(sorted(slow & sys.modules.keys()))\n"  # argcomplete ends with it
        "from kleash.cli import main\n"
        "main()\n"
    )
    line = "kleash "
    asked = environment | {
        "_ARGCOMPLETE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_IFS": "\n",
    }
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(Path(environment["HOME"]) / "answer")
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[:1] == ["[]"], done.stdout + done.stderr
    answer = Path(asked["_ARGCOMPLETE_STDOUT_FILENAME"]).read_text().split("\n")
    assert {word.strip() for word in answer} >= set(COMMANDS)


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "kleash: there is no completion for 'tcsh'; choose from bash, zsh, fish\n"
