"""GRPO's kin against the closed form: with the leash in the reward the optimum is π* ∝ π_ref·exp(r/β)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleash.models.load import load_policy
from kleash.stages import grpo
from tests.stages import enumerable
from tests.stages.test_ppo_closed_form import TableReward


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rloo", "dr-grpo"])
def test_the_leash_in_the_reward_leads_to_the_closed_form_optimum(preset: str, tmp_path: Path) -> None:
    enumerable.write(tmp_path, enumerable.model())
    rewards = enumerable.reward_table()
    reference = enumerable.log_policy(load_policy(tmp_path / "model")[0])
    target = enumerable.optimum(reference, rewards, beta=0.5)
    assert enumerable.divergence(reference, target) > 0.05, "far from the optimum, or the test says nothing"

    settings = {
        "model": str(tmp_path / "model"), "data": str(tmp_path / "prompts.jsonl"), "reward": "the enumerable table",
        "out": tmp_path / "grpo", "preset": preset, "beta": 0.5, "max_steps": 120, "batch_size": 16, "group_size": 16,
        "minibatches": 4, "max_new_tokens": enumerable.LONGEST, "learning_rate": 3e-3, "schedule": "linear",
        "warmup_steps": 40,
    }  # fmt: skip
    grpo.run(grpo.GRPOConfig.make(settings), reward=TableReward(rewards))

    trained = enumerable.log_policy(load_policy(tmp_path / "grpo")[0])
    assert enumerable.divergence(trained, target) < 0.02
