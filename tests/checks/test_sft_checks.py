from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kleash.checks import sft_checks
from kleash.checks.check import Check
from kleash.checks.sample_stats import Responses, Samples
from kleash.checks.sft_checks import Agreement

DATA = Responses(
    lengths=(8, 9, 10, 11, 12) * 20, ended=(True,) * 100, repetition=(0.0, 0.1) * 50, controls=(False,) * 100
)
HEALTHY = Samples(
    lengths=(8, 9, 10, 11) * 32,
    ended=(True,) * 120 + (False,) * 8,
    repetition=(0.0, 0.1) * 64,
    controls=(False,) * 128,
    differ=(True,) * 60 + (False,) * 4,
    distinct=0.9,
    entropy=1.0,
    entropy_interval=(0.9, 1.1),
    vocabulary=1000,
    limit=16,
)


def gain(nats: float, *, rows: int = 40, spread: float = 0.5) -> np.ndarray:
    """Held-out rows of ten tokens that became likelier by some nats a token, give or take the spread."""
    tokens = np.full(rows, 10.0)
    return np.stack([tokens * (nats + spread * np.tile([-1.0, 1.0], rows // 2)), tokens], 1)


def sft(samples: Samples = HEALTHY, **changes: Any) -> dict[str, Check]:
    settings: dict[str, Any] = {
        "before": 2.0,
        "after": 1.0,
        "gain": gain(1.0),
        "rows": 40,
        "effect": np.full(40, 5.0),
        "samples": samples,
        "demonstrations": DATA,
    }
    return {check.name: check for check in sft_checks.sft(**settings | changes)}


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.passed is False]


def test_a_healthy_sft_model_passes_every_check() -> None:
    assert all(check.passed is True for check in sft().values())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"ended": (False,) * 128}, "responses end"),
        ({"repetition": (0.7, 0.8) * 64}, "no loops"),
        ({"controls": (True,) * 32 + (False,) * 96}, "no control tokens inside"),
        ({"lengths": (1, 2) * 64, "repetition": ()}, "as long as the data"),
        ({"differ": (False,) * 64, "distinct": 1 / 128}, "something to compare"),
    ],
)
def test_each_fault_of_samples_fails_its_own_check_and_no_other(changes: dict[str, Any], name: str) -> None:
    checks = sft(replace(HEALTHY, **changes))
    assert failed(checks) == [name]
    assert checks[name].advice


def test_responses_independent_of_the_prompt_are_likelier_after_their_own_half_of_the_time() -> None:
    drawn = np.random.default_rng(0).normal(size=100)
    assert failed(sft(effect=drawn)) == ["uses the prompt"]


def test_a_loss_that_rose_fails_and_one_that_may_have_risen_is_unknown() -> None:
    assert failed(sft(after=2.5, gain=gain(-0.5))) == ["learned"]
    assert sft(after=2.05, gain=gain(-0.05))["learned"].passed is None
    assert sft(after=1.5, gain=gain(0.5, rows=2))["learned"].passed is None, "two rows"


def test_too_few_samples_leave_a_check_unknown_and_do_not_fail_it() -> None:
    few = replace(
        HEALTHY, ended=(True, False, False, False), lengths=(1, 9, 1, 2), differ=(True, False), repetition=(),
        controls=(False,) * 4,
    )  # fmt: skip
    checks = sft(few, effect=np.array([1.0, -1.0]))
    assert failed(checks) == []
    assert {name for name, check in checks.items() if check.passed is None} >= {"responses end", "uses the prompt"}


def test_demonstrations_too_long_to_be_sampled_leave_ends_unknown() -> None:
    long = replace(DATA, lengths=(400,) * 100)
    checks = sft(replace(HEALTHY, ended=(False,) * 128, lengths=(16,) * 128), demonstrations=long)
    assert checks["responses end"].passed is None


def test_the_reason_for_missing_samples_is_reported() -> None:
    checks = sft(samples=None, unsampled="gate_prompts is 0")  # type: ignore[arg-type]
    assert checks["samples"].finding == "not sampled: gate_prompts is 0"


def test_samples_with_chance_agreement_are_not_worth_comparing() -> None:
    assert sft_checks.agrees(Agreement(0.7, 0.65, 0.75, 200)).passed
    assert sft_checks.agrees(Agreement(0.51, 0.5001, 0.52, 10_000)).passed is False
    assert sft_checks.agrees(Agreement(0.6, 0.45, 0.75, 40)).passed is None


def test_random_weights_are_noise() -> None:
    assert sft_checks.not_empty(HEALTHY).passed
    assert sft_checks.not_empty(replace(HEALTHY, entropy=6.8, entropy_interval=(6.7, 6.9))).passed is False
    assert sft_checks.not_empty(replace(HEALTHY, entropy=5.2, entropy_interval=(5.1, 5.3))).passed is None
