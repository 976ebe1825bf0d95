from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kleash.checks import outcome_checks
from kleash.checks.gates import Check, check_report
from kleash.checks.outcome_checks import Agreement, SampledBy
from kleash.checks.sample_stats import Excess, Responses, Samples
from kleash.evals.preference_report import preference_report
from kleash.evals.probes import PROBES, probe_report

DATA = Responses(
    lengths=(8, 9, 10, 11, 12) * 20, ended=(True,) * 100, repetition=(0.0, 0.1) * 50, controls=(False,) * 100
)
HEALTHY = Samples(
    lengths=(8, 9, 10, 11) * 16,
    ended=(True,) * 60 + (False,) * 4,
    repetition=(0.0, 0.1) * 32,
    controls=(False,) * 64,
    differ=(True,) * 30 + (False,) * 2,
    distinct=0.9,
    entropy=1.0,
    vocabulary=1000,
    limit=16,
)


def sft(samples: Samples = HEALTHY, **changes: Any) -> dict[str, Check]:
    settings: dict[str, Any] = {
        "before": 2.0,
        "after": 1.0,
        "rows": 40,
        "effect": np.full(40, 5.0),
        "samples": samples,
        "demonstrations": DATA,
    }
    return {check.name: check for check in outcome_checks.sft(**settings | changes)}


def failed(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if check.passed is False]


def test_a_healthy_sft_model_passes_every_check() -> None:
    assert all(check.passed is True for check in sft().values())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"ended": (False,) * 64}, "responses end"),
        ({"repetition": (0.7, 0.8) * 32}, "no loops"),
        ({"controls": (True,) * 16 + (False,) * 48}, "no control tokens inside"),
        ({"lengths": (1, 2) * 32}, "as long as the data"),
        ({"differ": (False,) * 32, "distinct": 1 / 64}, "something to compare"),
    ],
)
def test_each_fault_of_samples_fails_its_own_check_and_no_other(changes: dict[str, Any], name: str) -> None:
    checks = sft(replace(HEALTHY, **changes))
    assert failed(checks) == [name]
    assert checks[name].advice


def test_responses_that_heed_no_prompt_are_likelier_after_their_own_half_of_the_time() -> None:
    drawn = np.random.default_rng(0).normal(size=100)
    assert failed(sft(effect=drawn)) == ["uses the prompt"]


def test_a_loss_that_rose_fails() -> None:
    assert failed(sft(after=2.5)) == ["learned"]


def test_too_few_samples_leave_a_check_unknown_and_do_not_fail_it() -> None:
    few = replace(HEALTHY, ended=(True, False, False, False), lengths=(1, 9, 1, 2), differ=(True, False), repetition=())
    checks = sft(few, effect=np.array([1.0, -1.0]))
    assert failed(checks) == []
    assert {name for name, check in checks.items() if check.passed is None} >= {"responses end", "uses the prompt"}


def test_demonstrations_too_long_to_be_sampled_leave_ends_unknown() -> None:
    long = replace(DATA, lengths=(400,) * 100)
    checks = sft(replace(HEALTHY, ended=(False,) * 64, lengths=(16,) * 64), demonstrations=long)
    assert checks["responses end"].passed is None


def test_what_was_not_sampled_is_said() -> None:
    checks = sft(samples=None, unsampled="gate_prompts is 0")  # type: ignore[arg-type]
    assert checks["samples"].finding == "not sampled: gate_prompts is 0"


def test_samples_that_labellers_agree_about_like_coins_are_not_worth_comparing() -> None:
    assert outcome_checks.agrees(Agreement(0.7, 0.65, 200)).passed
    assert outcome_checks.agrees(Agreement(0.51, 0.5001, 10_000)).passed is False
    assert outcome_checks.agrees(Agreement(0.6, 0.45, 40)).passed is False


def test_random_weights_are_noise() -> None:
    assert outcome_checks.not_empty(HEALTHY).passed
    assert outcome_checks.not_empty(replace(HEALTHY, entropy=6.8)).passed is False


# --- reward models ---------------------------------------------------------------------------------------------------


def pairs(n: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """Quality and length apart; labels follow quality with noise."""
    rng = np.random.default_rng(seed)
    quality, lengths = rng.normal(size=(n, 2)), rng.integers(5, 50, size=(n, 2))
    wins = rng.random(n) < 1 / (1 + np.exp(-2 * (quality[:, 0] - quality[:, 1])))
    return {"quality": quality, "lengths": lengths, "p": wins.astype(float)}


def reward(scores: np.ndarray, p: np.ndarray, lengths: np.ndarray, **settings: Any) -> dict[str, Check]:
    report = preference_report(scores, p, lengths, train_lengths=lengths, train_p=p)
    return {check.name: check for check in outcome_checks.reward_model(report, **settings)}


def test_a_healthy_reward_model_passes_every_check() -> None:
    data = pairs()
    checks = reward(2 * data["quality"], data["p"], data["lengths"])
    assert all(check.passed is True for check in checks.values()), checks


def test_shuffled_labels_fail_as_no_better_than_a_coin() -> None:
    data = pairs()
    noise = np.random.default_rng(1).integers(0, 2, 400).astype(float)
    assert "above a coin" in failed(reward(2 * data["quality"], noise, data["lengths"]))


def test_flipped_labels_are_named() -> None:
    data = pairs()
    check = reward(-2 * data["quality"], data["p"], data["lengths"])["above a coin"]
    assert check.passed is False
    assert "flipped" in check.advice


def test_a_model_that_is_length_fails_however_accurate() -> None:
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
    assert {"above a coin", "scores differ"} <= set(failed(checks))
    tiny = reward(1e-4 * data["quality"], data["p"], data["lengths"])
    assert failed(tiny) == ["scores differ"], "it ranks well and says nothing"


def test_a_model_surer_than_right_is_told_and_fails_where_a_coin_does_better() -> None:
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
        mean, spread = outcome_checks.chance_ece(report["reliability"], 300)
        errors.append(report["ece"])
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
    report = preference_report(2 * data["quality"], data["p"], data["lengths"]) | {"probes": probe_report(scores)}
    return {check.name: check for check in outcome_checks.reward_model(report)}


def test_a_reward_model_that_likes_silence_better_than_good_answers_fails() -> None:
    assert failed(probed()) == []
    checks = probed(empty=0.96)
    assert failed(checks) == ["words beat silence"]
    assert "96%" in checks["words beat silence"].finding
    assert probed(empty=0.55)["words beat silence"].passed, "within what chance gives"


def test_other_probes_that_please_are_named_and_fail_nothing() -> None:
    checks = probed(repeated=0.76, run_on=0.1, off_topic=0.52)
    assert failed(checks) == []
    assert checks["not easily fooled"].passed is None
    assert "repeated 76%" in checks["not easily fooled"].finding
    assert "off topic" not in checks["not easily fooled"].finding


def test_responses_of_the_parent_fail_and_other_peoples_do_not() -> None:
    own, foreign = Excess(0.01, 0.02), Excess(0.9, 0.02)
    assert outcome_checks.on_policy(SampledBy(own)).passed
    assert outcome_checks.on_policy(SampledBy(foreign)).passed is None
    assert outcome_checks.on_policy(SampledBy(foreign, Excess(0.8, 0.02), "base")).passed is None
    check = outcome_checks.on_policy(SampledBy(foreign, Excess(0.02, 0.02), "base"))
    assert check.passed is False
    assert "base" in check.finding


# --- policies --------------------------------------------------------------------------------------------------------


def rollouts(n: int = 30, **last: float) -> list[dict[str, float]]:
    first = {"kl": 0.0, "end_rate": 1.0, "entropy": 1.0, "length": 20.0, "reward": 0.0}
    noise = np.random.default_rng(0).normal(size=(n, 8)) * 0.01
    return [
        {k: float(v + (last.get(k, v) - v) * i / (n - 1) + noise[i, j]) for j, (k, v) in enumerate(full.items())}
        for full in [first | {k: 0.0 for k in last if k not in first}]
        for i in range(n)
    ]


def policy(kl_budget: float | None = None, **last: float) -> dict[str, Check]:
    return {c.name: c for c in outcome_checks.policy(rollouts(**last), kl_budget=kl_budget, advice="end them")}


def test_a_calm_policy_passes_and_what_was_not_logged_is_not_judged() -> None:
    checks = policy(kl=3.0, reward=1.0)
    assert set(checks) == {"responses end", "entropy left", "length kept"}
    assert all(check.passed for check in checks.values())


def test_a_policy_fails_beyond_its_budget_without_ends_or_where_the_validation_reward_fell() -> None:
    assert failed(policy(kl_budget=5.0, kl=9.0)) == ["within the KL budget"]
    assert failed(policy(end_rate=0.2)) == ["responses end"]
    assert failed(policy(reward=1.0, validation_reward=-1.0)) == ["validation reward model agrees"]
    assert failed(policy(reward=1.0, validation_reward=1.0)) == []
    assert failed(policy(reward=-1.0, validation_reward=-1.0)) == [], "a run that got worse on both was not hacked"
    assert failed(policy(outside=0.9)) == ["within the reward model's range"]


def test_entropy_and_length_alone_are_said_and_decide_nothing() -> None:
    checks = policy(entropy=0.02, length=90.0)
    assert failed(checks) == []
    assert checks["entropy left"].passed is None and checks["entropy left"].advice
    assert checks["length kept"].passed is None and checks["length kept"].advice


def test_a_verdict_is_told_by_the_first_check_that_failed() -> None:
    checks = [
        Check(name="a", passed=True, finding="fine"),
        Check(name="b", passed=None, finding="who knows"),
        Check(name="c", passed=False, finding="bad", advice="mend it", figures={"x": 1}),
    ]
    found = check_report(checks)
    assert (found["passed"], found["advice"], found["figures"]) == (False, "mend it", {"x": 1})
    assert found["finding"] == "bad (1 ok, 1 failed, 1 unknown)"
    assert check_report(checks[:2])["passed"] is True
    assert [check["name"] for check in found["checks"]] == ["a", "b", "c"]
