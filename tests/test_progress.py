from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
import torch

from kleash import progress
from kleash.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


def test_short_work_shows_nothing(clock, capsys) -> None:
    with Progress(3, "SFT") as bar:
        clock[0] += 1.9
        bar.update(3, loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys) -> None:
    with Progress(100, "SFT") as bar:
        for step in range(1, 51):
            clock[0] += 0.5
            bar.update(step, loss=2.0 / step, length=7)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "SFT 20/100  0:10, 0:40 left  loss 0.1  length 7",
        "SFT 40/100  0:20, 0:30 left  loss 0.05  length 7",
        "SFT 50/100  0:25  loss 0.04  length 7",
    ]


def test_steps_of_an_earlier_run_do_not_count_for_the_speed(clock, capsys) -> None:
    with Progress(100, "PPO", start=90) as bar:
        clock[0] += 20
        bar.update(91)
        assert capsys.readouterr().err == "PPO 91/100  0:20, 3:00 left\n"


def test_inner_work_shares_the_lines_of_the_work_around_it(clock, capsys) -> None:
    with Progress(4, "PPO") as outer:
        for step in range(4):
            with Progress(2, "sampling") as inner:
                clock[0] += 3
                inner.update(1, tokens=64)
            outer.update(step + 1, kl="1.2")
    assert capsys.readouterr().err.splitlines() == [
        "PPO 3/4 > sampling 1/2  0:03, 0:03 left  tokens 64",
        "PPO 4/4  0:12  kl 1.2",
    ]


def test_a_figure_stays_until_it_is_given_again(clock, capsys) -> None:
    with Progress(2, "SFT") as bar:
        bar.update(1, eval_loss=torch.tensor(1.5), loss=3.0)
        clock[0] += 10
        bar.update(2, loss=2.0)
        assert capsys.readouterr().err == "SFT 2/2  0:10  eval_loss 1.5  loss 2\n"


def test_a_broken_stderr_does_not_stop_the_work(clock, monkeypatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    with Progress(1, "SFT") as bar:
        clock[0] += 11
        bar.update(1)


def test_work_that_fails_closes_its_display(clock, capsys) -> None:
    with pytest.raises(ZeroDivisionError), Progress(2, "SFT"), Progress(2, "eval"):
        raise ZeroDivisionError
    with Progress(1, "PPO") as bar:
        clock[0] += 10
        bar.update(1)
        assert capsys.readouterr().err == "PPO 1/1  0:10\n"


def test_work_left_open_does_not_hide_what_comes_after(clock, capsys) -> None:
    with Progress(2, "SFT"):
        left_open = Progress(2, "reading").__enter__()
    with Progress(1, "PPO") as bar:
        clock[0] += 10
        bar.update(1)
        left_open.__exit__(None, None, None)
    assert capsys.readouterr().err.splitlines()[0] == "PPO 1/1  0:10"


SCRIPT = """
import sys, time
from kleash import progress
progress.SHOW_AFTER = 0.6
with progress.Progress(2, "short"): pass
with progress.Progress(4, "PPO") as outer:
    with progress.Progress(2, "sampling") as inner:
        time.sleep(1.2)
        inner.update(1, tokens=64)
        time.sleep(0.6)
    print("a warning", file=sys.stderr)
    outer.update(3, kl=0.25, first_ratio=1.0)
    print("a result")
"""


def test_a_terminal_gets_bars_and_results_stay_on_stdout() -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True
    )
    os.close(terminal)
    seen = b""
    while True:
        try:
            chunk = os.read(main, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(main)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "a result\n")
    screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"PPO +\S+ +0/4 +0:0\d", screen)
    assert re.search(r"sampling +\S+ +1/2 +0:0\d, 0:0\d left +tokens 64", screen)
    assert "a warning" in screen and "short" not in screen
    assert re.search(r"PPO +\S+ +3/4 +0:0\d +kl 0.25 +first_ratio 1", screen.splitlines()[-1])
