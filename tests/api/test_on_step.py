"""`on_step`: it sees every step, ends a run in order, and its faults cost nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import kleash
from kleash.errors import OnStepError
from tests.api.conftest import SMALL, Rows

Run = Callable[..., kleash.Run]

STAGES = ("sft", "reward", "dpo", "ppo", "grpo")


@pytest.fixture
def stage(base: Path, rows: Rows, prompt_rows: Rows, comparisons: Path, tmp_path: Path) -> Run:
    """A stage by name, on its own data."""

    def run(name: str, **arguments: Any) -> kleash.Run:
        data = {"sft": rows, "reward": comparisons, "dpo": comparisons}.get(name, prompt_rows)
        settings: dict[str, Any] = {**SMALL, "model": base, "data": data, "out": tmp_path / name}
        if name != "sft":
            del settings["gate_prompts"]
        if name in ("ppo", "grpo"):
            settings |= {"reward": "ended", "max_new_tokens": 4}
        if name == "reward":
            settings["centre_samples"] = 0
        if name == "dpo":
            settings["kl_samples"] = 0
        return getattr(kleash, name)(**settings | {"max_steps": 5} | arguments)

    return run


@pytest.mark.parametrize("name", STAGES)
def test_stop_ends_a_run_in_order(name: str, stage: Run) -> None:
    seen: list[int] = []

    def on_step(step: int, figures: dict[str, float]) -> Any:
        seen.append(step)
        assert all(isinstance(value, float) for value in figures.values())
        assert "step" not in figures and len(figures) > 2
        return "stop" if step == 2 else None

    run = stage(name, on_step=on_step)
    assert seen == [1, 2] == [row["step"] for row in run.metrics]
    assert run.finished and run.results["ended"] == "on_step asked to stop"
    assert any(key.startswith("eval_") for key in run.metrics[-1]), "the last step is measured"
    assert run.model is not None
    assert stage(name, on_step=on_step).metrics == run.metrics and seen == [1, 2], "it is finished"


def test_an_exception_keeps_the_state_and_reaches_the_caller(stage: Run, tmp_path: Path) -> None:
    class Odd(Exception):
        pass

    def on_step(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise Odd("no more\nof this")

    with pytest.raises(
        OnStepError, match=r"on_step raised Odd: no more of this after step 3; the state is saved"
    ) as caught:
        stage("sft", on_step=on_step)
    assert isinstance(caught.value.__cause__, Odd)
    stopped = kleash.open_run(tmp_path / "sft")
    assert stopped.record["status"] == "stopped" and stopped.record["stopped"]["error"] == "OnStepError"
    steps: list[int] = []
    run = stage("sft", on_step=lambda step, figures: steps.append(step))
    assert steps == [4, 5], "it goes on after the step"
    alone = stage("sft", out=tmp_path / "alone")
    assert run.metrics == alone.metrics
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name])


def test_an_interruption_is_one_line_and_the_run_goes_on(stage: Run, tmp_path: Path) -> None:
    def on_step(step: int, figures: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match="interrupted; finished work is kept, and the same call goes on from it"
    ) as caught:
        stage("sft", on_step=on_step, save_every=1)
    assert caught.value._render_traceback_() == [f"KeyboardInterrupt: {caught.value}"]
    assert kleash.open_run(tmp_path / "sft").record["status"] == "stopped"
    assert [row["step"] for row in stage("sft", save_every=1).metrics] == [1, 2, 3, 4, 5]
