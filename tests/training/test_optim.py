"""The learning rate's course and Adam's settings, against a second implementation."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from kleash.errors import ConfigError
from kleash.io import read_jsonl
from kleash.stages import STAGES
from kleash.training.optim import Optimizer, learning_rate_at


def rates(steps: int, **settings: Any) -> list[float]:
    return [learning_rate_at(step, steps, peak=1.0, **settings) for step in range(steps + 1)]


@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({"schedule": "linear"}, 0.0),
        ({"schedule": "linear", "end": 0.25}, 0.25),
        ({"schedule": "cosine"}, 0.1),
        ({"schedule": "cosine", "end": 0.0}, 0.0),
        ({"schedule": "cosine", "end": 0.5}, 0.5),
        ({"schedule": "constant"}, 1.0),
    ],
)
def test_a_schedule_rises_over_the_warm_up_and_falls_to_its_end(settings: dict[str, Any], end: float) -> None:
    course = rates(40, warmup_steps=10, **settings)
    assert course[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert course[10] == pytest.approx(1.0) and course[-1] == pytest.approx(end)
    assert all(later <= earlier for earlier, later in pairwise(course[10:]))
    if settings["schedule"] == "cosine":  # half way down at half the time
        assert course[25] == pytest.approx((1 + end) / 2)


@pytest.mark.parametrize(("ratio", "steps", "warmup"), [(0.1, 100, 10), (0.1, 25, 3), (0.0, 10, 0), (1.0, 7, 7)])
def test_a_warm_up_ratio_is_a_share_of_all_steps_rounded_up(ratio: float, steps: int, warmup: int) -> None:
    model = torch.nn.Linear(2, 2)
    by_ratio = Optimizer(model, steps=steps, learning_rate=1.0, warmup_ratio=ratio)
    assert by_ratio.warmup_steps == warmup == math.ceil(ratio * steps)


def test_the_betas_are_adams() -> None:
    torch.manual_seed(0)
    ours, plain = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    plain.load_state_dict(ours.state_dict())
    settings: dict[str, Any] = {"learning_rate": 0.1, "schedule": "constant", "max_grad_norm": None}
    optimizer = Optimizer(ours, steps=5, adam_betas=(0.5, 0.7), **settings)
    adam = torch.optim.AdamW(plain.parameters(), lr=0.1, betas=(0.5, 0.7), weight_decay=0.0)
    for step in range(5):
        row = torch.full((1, 3), float(step + 1))
        optimizer.backward(ours(row).square().sum())
        optimizer.step()
        adam.zero_grad()
        plain(row).square().sum().backward()
        adam.step()
    torch.testing.assert_close(ours.weight, plain.weight)


def make(**values: Any) -> Any:
    return STAGES["grpo"].config.make({"model": "m", "data": "d.jsonl", "out": "o", "reward": "math", **values})


def test_settings_that_contradict_each_other_are_refused_and_a_preset_gives_way() -> None:
    with pytest.raises(ConfigError, match="warmup_ratio stands in place of 'warmup_steps'; give one of them"):
        make(warmup_ratio=0.1, warmup_steps=3)
    with pytest.raises(ConfigError, match="min_lr_ratio is where a schedule ends"):
        make(min_lr_ratio=0.1, schedule="constant")
    for wrong in ([0.9], [0.9, 1.0], [-0.1, 0.9], "0.9"):
        with pytest.raises(ConfigError, match="'adam_betas"):
            make(adam_betas=wrong)
    for wrong in (True, "a/b/c", "a/../b", "a--b", ".a/b", "a/b-", "a b", "", "a/", "ä/b"):
        with pytest.raises(ConfigError, match=r"push_to_hub.*, but should be the name of a repository, OWNER/NAME"):
            make(push_to_hub=wrong)
    assert make(push_to_hub="some-body/a_model-1.5").push_to_hub and make(push_to_hub="model").push_to_hub
    dapo = make(preset="dapo", warmup_ratio=0.1)
    assert (dapo.warmup_steps, dapo.warmup_ratio) == (0, 0.1) and make(preset="dapo").warmup_steps == 320


def test_the_course_is_part_of_a_run_and_where_it_goes_is_not() -> None:
    plain = make().identity()
    for values in ({"warmup_ratio": 0.1}, {"adam_betas": (0.9, 0.95)}, {"min_lr_ratio": 0.2}):
        assert make(**values).identity() != plain
    elsewhere = {"trackers": ["tensorboard"], "run_name": "x", "tracker_project": "y", "tracker_tags": ["z"]}
    assert make(push_to_hub="a/b", **elsewhere).identity() == plain


def test_a_stage_follows_the_course_that_was_asked_for(base: Path, demonstrations: Path) -> None:
    values = {"model": base, "data": demonstrations, "out": base.parent / "out", "max_steps": 10, "batch_size": 4}
    changes = {"warmup_ratio": 0.2, "min_lr_ratio": 0.5, "learning_rate": 1.0e-3, "gate_prompts": 0}
    folder = STAGES["sft"].run(STAGES["sft"].config.make(values | changes))
    course = [row["learning_rate"] for row in read_jsonl(Path(getattr(folder, "path")) / "metrics.jsonl")]  # noqa: B009
    expected = [learning_rate_at(i, 10, peak=1e-3, schedule="linear", warmup_steps=2, end=0.5) for i in range(10)]
    assert course == pytest.approx(expected) and course[0] == pytest.approx(5e-4)
