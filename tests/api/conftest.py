"""Rows in memory, and the settings of runs of two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kleash
from tests.conftest import letters

Rows = list[dict[str, Any]]

SMALL = {
    "max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "measure_share": 0.01, "gate_prompts": 0, "force": True,
}  # fmt: skip


@pytest.fixture
def rows() -> Rows:
    return [{"prompt": letters(i, 1 + i % 4), "response": letters(i + 1, 1 + i % 7)} for i in range(24)]


@pytest.fixture
def prompt_rows() -> Rows:
    return [{"prompt": letters(i, 1 + i % 5), "number": i} for i in range(12)]


@pytest.fixture
def sft(base: Path, rows: Rows, tmp_path: Path) -> Callable[..., kleash.Run]:
    """A run of two steps, with other arguments."""

    def run(**arguments: Any) -> kleash.Run:
        return kleash.sft(**{"model": base, "data": rows, "out": tmp_path / "sft", **SMALL, **arguments})

    return run


@pytest.fixture
def grpo(base: Path, prompt_rows: Rows, tmp_path: Path) -> Callable[..., kleash.Run]:
    """A run of two rollouts, with other arguments."""
    settings = {name: value for name, value in SMALL.items() if name != "gate_prompts"}

    def run(**arguments: Any) -> kleash.Run:
        return kleash.grpo(**{
            "model": base, "data": prompt_rows, "reward": "ended", "out": tmp_path / "grpo", "group_size": 2,
            "max_new_tokens": 4, **settings, **arguments,
        })  # fmt: skip

    return run
