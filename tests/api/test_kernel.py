"""In a notebook's kernel: one line for a mistake and an interruption, the page served beside the kernel's own loop."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # of the libraries that run the kernel

SECONDS = 120


@pytest.fixture
def cell(base: Path, tmp_path: Path) -> Any:
    """Runs code in a kernel and returns what it shows; `until` interrupts it once there is a file of that pattern."""
    manager = pytest.importorskip("jupyter_client.manager", reason="the extra `dev` is not installed")
    kernel, client = manager.start_new_kernel(kernel_name="python3", cwd=str(tmp_path), env=dict(os.environ))

    def interrupt_when(pattern: str) -> None:
        if any(tmp_path.glob(pattern)):
            kernel.interrupt_kernel()
        else:
            again = Timer(0.2, interrupt_when, [pattern])
            again.daemon = True
            again.start()

    def run(code: str, *, until: str | None = None) -> str:
        identity = client.execute(code)
        if until is not None:
            interrupt_when(until)
        texts: list[str] = []
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            message = client.get_iopub_msg(timeout=SECONDS)
            content = message["content"]
            if message["parent_header"].get("msg_id") != identity:
                continue
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                return "\n".join(texts)
            texts += [*content.get("traceback", []), content.get("text", ""), str(content.get("data", ""))]
        raise TimeoutError(f"after {SECONDS} s the cell still runs: {code}")

    yield run
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


def test_mistakes_and_interruptions_are_one_line_and_the_page_is_served(cell: Any) -> None:
    cell("import kleash\nrows = [{'prompt': 'a', 'response': 'b c'}] * 40")
    shown = cell("kleash.sft(model='base', data=rows, out='sft', num_train_epochs=3)")
    assert "ConfigError: kleash.sft: unknown key 'num_train_epochs'; it is 'epochs' here" in shown
    assert "Traceback" not in shown
    train = "run = kleash.sft(model='base', data=rows, out='sft', max_steps={}, batch_size=4, save_every=1)"
    shown = cell(train.format(100_000), until="sft/checkpoints/step-*")
    assert "KeyboardInterrupt: sft: interrupted; finished work is kept, and the same call goes on from it" in shown
    assert "Traceback" not in shown
    assert "stopped (interrupted)" in cell("kleash.open_run('sft')")
    pairs = "[{'prompt': 'a', 'responses': ['b', 'c']}]"
    label = f"kleash.label(data={pairs}, store='labels.db', port=0)\nprint('the next line')"
    served = cell(label, until="labels.db.links")
    assert "/join/" in served and "the next line" in served and "Traceback" not in served
