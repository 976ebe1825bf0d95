from __future__ import annotations

import numpy as np
import pytest

from kleash.errors import DataError
from kleash.evals.overoptimization import best_of_n_kl_curve, checkpoints_curve, choosing_prompts, spaced_checkpoints


def test_whether_a_prompt_chooses_does_not_depend_on_the_others() -> None:
    names = [f"p{number}" for number in range(200)]
    chosen = choosing_prompts(names, share=0.5, seed=1)
    assert chosen.sum() == 100 and not np.array_equal(chosen, choosing_prompts(names, share=0.5, seed=2))
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(choosing_prompts([names[i] for i in order], share=0.5, seed=1), chosen[order])
    with pytest.raises(DataError, match="at least 4"):
        choosing_prompts(names[:3], share=0.5, seed=1)


def test_samples_of_a_run_give_its_curve_and_responses_to_one_prompt_are_averaged() -> None:
    rows = [
        {"step": step, "prompt": prompt, "score": 10 * step + k, "gold": step - k, "kl": step * 2.0}
        for step in (5, 0)
        for prompt in "ab"
        for k in (0, 1)
    ]
    made = checkpoints_curve(rows)
    assert made.points == (0, 5) and made.prompts == ("a", "b")
    np.testing.assert_allclose(made.gold, [[-0.5, -0.5], [4.5, 4.5]])
    np.testing.assert_allclose(made.proxy, [[0.5, 0.5], [50.5, 50.5]])
    with pytest.raises(DataError, match="step 5 was measured on other prompts than step 0"):
        checkpoints_curve([row for row in rows if (row["step"], row["prompt"]) != (5, "a")])
    with pytest.raises(DataError, match="1 checkpoint"):
        checkpoints_curve(rows[:4])


def test_pools_give_the_curve_of_best_of_n() -> None:
    rng = np.random.default_rng(0)
    proxy = rng.normal(0, 1, (50, 12))
    made = best_of_n_kl_curve([str(p) for p in range(50)], proxy * 2, proxy)
    assert made.points == (1, 2, 4, 8, 12)
    np.testing.assert_allclose(made.proxy[-1], proxy.max(1))
    np.testing.assert_allclose(made.gold, 2 * made.proxy)
    np.testing.assert_allclose(made.kl[0], 0, atol=1e-12)
    assert (np.diff(made.kl.mean(1)) > 0).all()


def test_checkpoints_are_spaced_evenly_in_root_kl_and_the_first_and_last_are_in() -> None:
    steps = list(range(10, 1010, 10))
    kl = {step: (step / 1000) ** 4 * 16 for step in steps}  # √KL = 4 (step/1000)²: slow at first
    taken = spaced_checkpoints(steps, kl, 6)
    assert len(taken) == 6 and taken[0] == 10 and taken[-1] == 1000
    np.testing.assert_allclose(np.diff([np.sqrt(kl[step]) for step in taken]), 0.8, atol=0.09)
    assert spaced_checkpoints(steps, {}, 4) == [10, 340, 670, 1000]
    assert spaced_checkpoints([5, 10], {}, 6) == [5, 10]
    level = spaced_checkpoints(steps, dict.fromkeys(steps, 1.0), 5)
    assert len(level) == 5 and {10, 1000} <= set(level)
