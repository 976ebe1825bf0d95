from __future__ import annotations

from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM

from kleash.data.group import Group
from kleash.stages import grpo

PRESETS = ("grpo", "dr-grpo", "rloo", "dapo")


class CountZ:
    """More of the letter z is better; a response without any scores exactly 0.0."""

    def __call__(self, groups: list[Group]) -> Float[Tensor, "P K"]:
        return torch.tensor([[float(r.text.split().count("z")) for r in group.responses] for group in groups])


def config(base: Path, data: Path, **changes: object) -> grpo.GRPOConfig:
    values: dict[str, object] = {
        "model": str(base), "data": str(data), "reward": "count_z:reward", "out": base.parent / "grpo", "max_steps": 2,
        "batch_size": 4, "group_size": 4, "max_new_tokens": 6, "inner_epochs": 2, "minibatches": 2,
        "learning_rate": 1e-3,
    }  # fmt: skip
    return grpo.GRPOConfig.make(values | changes)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_reward_is_climbed(preset: str, base: Path, prompts: Path) -> None:
    folder = grpo.run(
        config(
            base, prompts, preset=preset, max_steps=20, batch_size=8, group_size=8, learning_rate=5e-3, beta=0.0,
            warmup_steps=0, eval_every=20,
        ),
        reward=CountZ(),
    )  # fmt: skip
    rows = folder.metrics()
    assert rows[0]["step"] == 0 and "eval_reward" in rows[0]
    assert rows[-1]["reward"] > rows[1]["reward"] + 1
    AutoModelForCausalLM.from_pretrained(folder.path)
