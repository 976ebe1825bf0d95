from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kleash.checks import reward_checks
from kleash.checks.check import Check
from kleash.checks.reward_checks import OnPolicyExcess
from kleash.checks.sample_stats import ExcessNLL
from kleash.evals.preference_report import preference_report
from kleash.evals.probes import PROBES, probe_report
from kleash.training.after_training import Skipped


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.passed is False]


def pairs(n: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """Quality and length apart; labels follow quality with noise."""
    rng = np.random.default_rng(seed)
    quality, lengths = rng.normal(size=(n, 2)), rng.integers(5, 50, size=(n, 2))
    wins = rng.random(n) < 1 / (1 + np.exp(-2 * (quality[:, 0] - quality[:, 1])))
    return {"quality": quality, "lengths": lengths, "p": wins.astype(float)}


def reward(scores: np.ndarray, p: np.ndarray, lengths: np.ndarray, **settings: Any) -> dict[str, Check]:
    report = preference_report(scores, p, lengths, train_lengths=lengths, train_p=p)
    return {check.name: check for check in reward_checks.reward_model(report, **settings)}


def test_a_healthy_reward_model_passes_every_check() -> None:
    data = pairs()
    checks = reward(2 * data["quality"], data["p"], data["lengths"])
    assert all(check.passed is True for check in checks.values()), checks


def test_shuffled_labels_are_not_better_than_chance() -> None:
    data = pairs()
    right = np.arange(400) % 2  # every other one
    noise = np.where(
        right, data["quality"][:, 0] > data["quality"][:, 1], data["quality"][:, 0] < data["quality"][:, 1]
    )
    check = reward(2 * data["quality"], noise.astype(float), data["lengths"])["better than chance"]
    assert check.passed is None and "one half" in check.advice


@pytest.mark.parametrize(("n", "right"), [(2, 2), (30, 20), (30, 14)])
def test_few_pairs_leave_accuracy_unknown(n: int, right: int) -> None:
    scores = np.where(np.arange(n) < right, 1.0, -1.0)[:, None] * np.array([[0.5, -0.5]])
    check = reward(scores, np.ones(n), np.arange(2 * n).reshape(n, 2))["better than chance"]
    assert check.passed is None


def test_flipped_labels_are_named() -> None:
    data = pairs()
    check = reward(-2 * data["quality"], data["p"], data["lengths"])["better than chance"]
    assert check.passed is False
    assert "flipped" in check.advice


def test_a_model_that_follows_only_length_fails_at_any_accuracy() -> None:
    data = pairs()
    by_length = (data["lengths"][:, 0] > data["lengths"][:, 1]).astype(float)
    checks = reward(0.3 * data["lengths"].astype(float), by_length, data["lengths"])
    assert failed(checks) == ["beyond length"]
    rough = 0.3 * data["lengths"] + np.random.default_rng(2).normal(size=(400, 2)) * 2
    assert failed(reward(rough, by_length, data["lengths"])) == ["beyond length"]


def test_a_model_that_mostly_follows_length_and_is_better_for_the_rest_passes() -> None:
    rng = np.random.default_rng(4)
    lengths = rng.permuted(np.tile([10, 30], (400, 1)), axis=1)
    longer = (lengths[:, 0] > lengths[:, 1]).astype(float)
    exception = np.arange(400) % 10 == 0  # in a tenth of the pairs the shorter one is better, and the model knows it
    p = np.where(exception, 1 - longer, longer)
    assert not failed(reward(np.stack([4 * p, 4 * (1 - p)], 1), p, lengths))


def test_few_pairs_do_not_fail_against_length_but_say_how_many_it_takes() -> None:
    data = pairs(24, seed=3)
    check = reward(2 * data["quality"], data["p"], data["lengths"])["beyond length"]
    assert check.passed is not False


def test_equal_scores_fail_as_constant() -> None:
    data = pairs()
    checks = reward(np.zeros((400, 2)), data["p"], data["lengths"])
    assert {"better than chance", "scores differ"} <= set(failed(checks))
    tiny = reward(1e-4 * data["quality"], data["p"], data["lengths"])
    assert failed(tiny) == ["scores differ"], "it ranks well and says nothing"


def test_an_overconfident_model_is_reported_and_fails_where_chance_is_better() -> None:
    data = pairs()
    assert reward(4 * data["quality"], data["p"], data["lengths"])["calibrated"].passed is None
    assert reward(40 * data["quality"], data["p"], data["lengths"])["calibrated"].passed is False


def test_the_calibration_error_of_a_calibrated_model_is_what_chance_gives() -> None:
    rng = np.random.default_rng(0)
    errors, expected, spreads = [], [], []
    for _ in range(200):
        margin = rng.normal(size=300)
        p = (rng.random(300) < 1 / (1 + np.exp(-margin))).astype(float)
        report = preference_report(np.stack([margin, 0 * margin], 1), p, np.ones((300, 2)))
        mean, spread = reward_checks.chance_ece(report.reliability, 300)
        errors.append(report.ece)
        expected.append(mean)
        spreads.append(spread)
    assert np.mean(errors) == pytest.approx(np.mean(expected), rel=0.1)
    assert np.std(errors) == pytest.approx(np.mean(spreads), rel=0.2)


def probed(**above: float) -> dict[str, Check]:
    """Checks of a healthy model whose probes score above the better response in these shares of 100 pairs."""
    data = pairs()
    scores = np.zeros((100, len(PROBES) + 1))
    for place, name in enumerate(PROBES, start=1):
        scores[:, place] = np.where(np.arange(100) < 100 * above.get(name.replace(" ", "_"), 0.1), 1.0, -1.0)
    report = preference_report(2 * data["quality"], data["p"], data["lengths"])
    checks = reward_checks.reward_model(report, probes=probe_report(scores))
    return {check.name: check for check in checks}


def test_a_reward_model_that_scores_the_empty_response_highest_fails() -> None:
    assert failed(probed()) == []
    checks = probed(empty=0.96)
    assert failed(checks) == ["words beat silence"]
    assert "96%" in checks["words beat silence"].finding
    assert probed(empty=0.55)["words beat silence"].passed is None, "within what chance gives"


def test_other_probes_that_score_above_are_named_and_do_not_fail() -> None:
    checks = probed(repeated=0.76, run_on=0.1, off_topic=0.52)
    assert failed(checks) == []
    assert checks["not easily fooled"].passed is None
    assert "repeated 76%" in checks["not easily fooled"].finding
    assert "off topic" not in checks["not easily fooled"].finding


def test_responses_of_the_parent_fail_and_other_peoples_do_not() -> None:
    own, foreign = ExcessNLL(0.01, 0.02), ExcessNLL(0.9, 0.02)
    assert reward_checks.on_policy_check(OnPolicyExcess(own)).passed
    assert reward_checks.on_policy_check(OnPolicyExcess(foreign)).passed is None
    assert reward_checks.on_policy_check(OnPolicyExcess(foreign, ExcessNLL(0.8, 0.02), "base")).passed is None
    check = reward_checks.on_policy_check(OnPolicyExcess(foreign, ExcessNLL(0.02, 0.02), "base"))
    assert check.passed is False
    assert "base" in check.finding


def test_skipped_measurements_are_reported_and_do_not_fail() -> None:
    data = pairs()
    report = preference_report(2 * data["quality"], data["p"], data["lengths"])
    none = Skipped("no prompt leaves room")
    checks = {check.name: check for check in reward_checks.reward_model(report, probes=none, on_policy=none)}
    assert failed(checks) == []
    for name in ("words beat silence", "about the policy's samples"):
        assert checks[name].passed is None and "no prompt leaves room" in checks[name].finding
