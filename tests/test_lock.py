"""One process at a time writes an output; a second one is told which."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kleash.errors import InputError
from kleash.lock import lock

HOLDER = """
import sys
from pathlib import Path
from kleash.lock import lock
held = lock(Path(sys.argv[1]), Path(sys.argv[2]))
held.note(12.5)
print("held", flush=True)
sys.stdin.read()
"""


def holder(file: Path) -> subprocess.Popen[str]:
    """Another process that has the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file), "runs/x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has no locks."""

    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("has_flock", [True, False])
def test_a_second_process_is_told_and_the_next_one_after_a_kill_is_not(
    has_flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".lock"
    process = holder(file)
    if not has_flock:
        without_flock(monkeypatch)
    message = rf"^runs/x is being written by process {process.pid} on {socket.gethostname()}; .*choose another --out"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            lock(file, Path("runs/x"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    taken = lock(file, Path("runs/x"))
    assert taken.seconds == 12.5, "how long the killed process had been at it"
    taken.release()
    assert not file.exists()


def test_a_process_may_open_its_own_output_again_and_lets_go_of_it_with_the_last_user(tmp_path: Path) -> None:
    first = lock(tmp_path / ".lock", tmp_path)
    second = lock(tmp_path / ".lock", tmp_path)
    assert first is second
    del first, second
    gc.collect()
    holder(tmp_path / ".lock").communicate()


def test_an_owner_that_removes_the_file_while_another_opens_it_leaves_one_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / ".lock"
    flock = fcntl.flock
    handles: list[int] = []

    def remove_first(handle: int, operation: int) -> None:
        handles.append(handle)
        if len(handles) == 1:
            file.unlink()
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    held = lock(file, tmp_path)
    assert len(handles) == 2 and file.exists()
    held.release()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"99999999999999999999 elsewhere x\n", b"1 2"])
def test_rubbish_in_the_file_is_no_owner(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(monkeypatch)
    (tmp_path / ".lock").write_bytes(content)
    assert lock(tmp_path / ".lock", tmp_path).seconds == 0
