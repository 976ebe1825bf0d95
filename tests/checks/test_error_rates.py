"""How often each check is wrong: at its threshold it passes or fails by accident as rarely as its 95 % interval says, a
healthy artifact passes and a broken one fails. Cheap figures, many repetitions, fixed seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from kleash.checks import data_checks, policy_checks, reward_checks, sft_checks
from kleash.checks.check import Check
from kleash.checks.judge_checks import judge_checks
from kleash.checks.reward_checks import OnPolicyExcess
from kleash.checks.sample_stats import ExcessNLL, Responses, Samples
from kleash.data.group import Group, Preference, Response
from kleash.evals.estimates import Mean, Share, Slope
from kleash.evals.judging import JudgeReport, PeopleReport, same_again
from kleash.evals.preference_report import preference_report
from kleash.evals.probes import PROBES, probe_report
from kleash.evals.report_values import MeanSE
from kleash.labels.judge_summary import Failures

REPETITIONS = 50
Draw = Callable[[np.random.Generator, float], list[Check]]


@dataclass(frozen=True)
class Case:
    """A check, with the true figure at its threshold, of a healthy artifact and of a broken one."""

    name: str
    draw: Draw
    threshold: float
    healthy: float
    broken: float


def comparison_report(rng: np.random.Generator, accuracy: float, *, n: int = 100) -> list[Check]:
    """A reward model that is right about this share of the pairs, whatever their lengths."""
    right = np.where(rng.random(n) < accuracy, 1.0, -1.0)
    scores = np.stack([right * rng.uniform(0.2, 1.0, n), np.zeros(n)], 1)
    report = preference_report(scores, np.ones(n), rng.integers(5, 50, size=(n, 2)))
    return reward_checks.reward_model(report)


def implicit_rewards(rng: np.random.Generator, accuracy: float) -> list[Check]:
    right = np.where(rng.random(100) < accuracy, 1.0, -1.0)
    scores = np.stack([right * rng.uniform(0.2, 1.0, 100), np.zeros(100)], 1)
    report = preference_report(scores, np.ones(100), rng.integers(5, 50, size=(100, 2)))
    return policy_checks.direct(report, kl=MeanSE(mean=1.0, se=0.1))


def moved(rng: np.random.Generator, kl: float) -> list[Check]:
    """64 responses whose log-ratios have this mean; the margins are too small to tell."""
    ratios = rng.normal(kl, 0.02, 64)
    margins = 1e-3 * rng.normal(size=(40, 2))
    report = preference_report(margins, np.ones(40), np.ones((40, 2)))
    kl_figure = MeanSE(mean=float(ratios.mean()), se=float(ratios.std(ddof=1)) / 8)
    return policy_checks.direct(report, kl=kl_figure)


def labels_agree(rng: np.random.Generator, agreement: float, pairs: int) -> Check:
    """Of pairs labelled twice."""
    rows = []
    for row in range(pairs):
        a, b = Response(f"a {row}"), Response(f"b {row}")
        again = (a, b) if rng.random() < agreement else (b, a)
        rows += [Group(f"q {row}", (a, b), Preference()), Group(f"q {row}", again, Preference())]
    return next(check for check in data_checks.comparisons(rows) if check.name == "labels agree")


def samples(rng: np.random.Generator, **shares: float) -> list[Check]:
    """Two samples to each of 64 prompts; those of a prompt are alike in half of the prompts."""
    prompts = 64

    def drawn(share: float) -> np.ndarray:
        both = rng.random((prompts, 2)) < share
        return np.where(rng.random((prompts, 1)) < 0.5, both[:, :1], both).ravel()

    data = Responses(lengths=(8, 9, 10, 11) * 20, ended=(True,) * 80, repetition=(0.0,) * 80, controls=(False,) * 80)
    inside = drawn(shares.get("inside", 0.9))
    repeats = drawn(shares.get("repeats", 0.02))
    entropies = rng.normal(shares.get("entropy", 0.2), 0.05, prompts) * np.log(1000)
    error = 2 * float(entropies.std(ddof=1)) / prompts**0.5
    fresh = Samples(
        lengths=tuple(np.where(inside, 10, 100).tolist()),
        ended=tuple(drawn(shares.get("ends", 0.95)).tolist()),
        repetition=tuple(repeats.astype(float).tolist()),
        controls=tuple(drawn(shares.get("controls", 0.01)).tolist()),
        differ=tuple((rng.random(prompts) < shares.get("differs", 0.9)).tolist()),
        distinct=0.9,
        entropy=float(entropies.mean()),
        entropy_interval=(float(entropies.mean()) - error, float(entropies.mean()) + error),
        vocabulary=1000,
        limit=128,
    )
    return [*sft_checks.sampled(fresh, data), sft_checks.not_empty(fresh)]


def learned(rng: np.random.Generator, nats: float) -> list[Check]:
    """40 held-out rows of unequal length that became likelier by so many nats a token in the mean."""
    tokens = rng.integers(5, 40, 40).astype(float)
    gain = np.stack([tokens * rng.normal(nats, 0.3, 40), tokens], 1)
    return sft_checks.sft(
        before=2.0, after=2.0 - nats, gain=gain, rows=40, effect=None, samples=None, demonstrations=None
    )


def prompt_use(rng: np.random.Generator, share: float) -> list[Check]:
    effect = np.where(rng.random(128) < share, 1.0, -1.0)
    return [sft_checks.uses_prompt(effect)]


def rollouts(rng: np.random.Generator, **figures: float) -> list[Check]:
    """A run of 64 prompts a rollout."""
    count = 64
    rows = []
    for row in range(20):
        late = row / 19
        rows.append(
            {
                "kl": float(rng.normal(figures.get("kl", 4.0), 0.5)),
                "kl_se": 0.5,
                "end_rate": rng.binomial(count, figures.get("ends", 0.95)) / count,
                "reward": float(rng.normal(late, 0.02)),
                "validation_reward": float(rng.normal(figures.get("validation", 0.5) * (row >= 10), 0.2)),
                "outside": rng.binomial(count, 0.6 if row == 0 else figures.get("outside", 0.6)) / count,
            }
        )
    return policy_checks.policy(rows, prompts=count, kl_budget=4.0, advice="")


def judged(rng: np.random.Generator, *, agrees: float = 0.8, flips: float = 0.2, sure: float = 0.9) -> list[Check]:
    """A judge of 100 pairs with five votes an order, of which some are ties."""
    agreement = Share.of(rng.random(100) < agrees)
    chances = (sure, (1 - sure) / 2, (1 - sure) / 2)
    again = [same_again(votes.tolist()) for votes in rng.multinomial(5, chances, size=100)]
    report = JudgeReport(
        labels=100, ties=0, flips=Share.of(rng.random(100) < flips), first_before=agreement, first_after=agreement,
        order_effect=Mean(0.0, 0.01), self_consistency=Mean.of(np.array(again, dtype=float)),
        length_slope=Slope(None, None),
        people=PeopleReport(100, agreement, agreement, agreement, 0.0, [], 0.5, 0.7, None, None),
    )  # fmt: skip
    return judge_checks(report, Failures(100, 0, 0, []), max_failures=0.1)


def silence(rng: np.random.Generator, above: float) -> list[Check]:
    scores = np.zeros((100, len(PROBES) + 1))
    scores[:, 1:] = np.where(rng.random((100, len(PROBES))) < above, 1.0, -1.0)
    n = 200
    right = np.where(rng.random(n) < 0.8, 1.0, -1.0)
    report = preference_report(np.stack([right, 0 * right], 1), np.ones(n), np.ones((n, 2)))
    return reward_checks.reward_model(report, probes=probe_report(scores))


def excess(rng: np.random.Generator, nats: float) -> list[Check]:
    return [reward_checks.on_policy_check(OnPolicyExcess(ExcessNLL(float(rng.normal(nats, 0.02)), 0.02)))]


# 0.1 + 0.9·p agrees with itself: σ² + 2((1−σ)/2)² = 0.6 at σ = 0.7549
SAME = 0.7549
CASES = [
    Case("better than chance", comparison_report, 0.5, 0.7, 0.3),
    Case("better than chance", implicit_rewards, 0.5, 0.7, 0.3),
    Case("moved from the reference", moved, 0.01, 0.03, 0.0),
    Case("learned", learned, 0.0, 0.3, -0.3),
    Case("responses end", lambda rng, share: samples(rng, ends=share), 0.5, 0.8, 0.2),
    Case("no loops", lambda rng, share: samples(rng, repeats=share), 0.2, 0.03, 0.5),
    Case("no control tokens inside", lambda rng, share: samples(rng, controls=share), 0.1, 0.01, 0.3),
    Case("as long as the data", lambda rng, share: samples(rng, inside=share), 0.5, 0.8, 0.2),
    Case("something to compare", lambda rng, share: samples(rng, differs=share), 0.2, 0.6, 0.02),
    Case("no noise", lambda rng, share: samples(rng, entropy=share), 0.75, 0.2, 0.95),
    Case("responses end", lambda rng, share: rollouts(rng, ends=share), 0.5, 0.8, 0.2),
    Case("within the KL budget", lambda rng, kl: rollouts(rng, kl=kl), 5.0, 3.0, 8.0),
    Case("within the reward model's range", lambda rng, share: rollouts(rng, outside=share), 0.8, 0.5, 0.98),
    Case("validation reward model agrees", lambda rng, by: rollouts(rng, validation=by), 0.0, 1.5, -1.5),
    Case("agrees with people", lambda rng, share: judged(rng, agrees=share), 0.5, 0.7, 0.3),
    Case("judges the response and not its place", lambda rng, share: judged(rng, flips=share), 0.5, 0.3, 0.7),
    Case("says the same again", lambda rng, sure: judged(rng, sure=sure), SAME, 0.9, 0.5),
    Case("words beat silence", silence, 0.5, 0.3, 0.7),
]


def rates(case: Case, truth: float, seed: int, repetitions: int) -> tuple[float, float]:
    """In what share of the repetitions the check is ok and is failed."""
    rng = np.random.default_rng([seed, len(case.name)])
    results = []
    for _ in range(repetitions):
        results.append(next(check.passed for check in case.draw(rng, truth) if check.name == case.name))
    return results.count(True) / repetitions, results.count(False) / repetitions


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.threshold:g}")
def test_a_check_is_wrong_as_rarely_as_its_interval_says_and_finds_what_it_is_for(case: Case) -> None:
    passed, failed = rates(case, case.threshold, 0, REPETITIONS)
    assert passed <= 0.12 and failed <= 0.12, "at the threshold, each one time in forty"
    passed, failed = rates(case, case.healthy, 1, REPETITIONS)
    assert failed == 0 and passed >= 0.75, "a healthy one"
    passed, failed = rates(case, case.broken, 2, REPETITIONS)
    assert passed == 0 and failed >= 0.75, "a broken one"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.threshold:g}")
def test_at_the_threshold_a_check_seldom_passes_or_fails(case: Case) -> None:
    """One time in forty by its interval; up to twice as often where the share is of a few dozen prompts."""
    passed, failed = rates(case, case.threshold, 3, 1000)
    assert passed <= 0.07 and failed <= 0.07


@pytest.mark.parametrize("pairs", [2, 30, 100])
@pytest.mark.parametrize("accuracy", [0.6, 0.65])
def test_a_healthy_reward_model_is_not_failed_for_want_of_pairs(pairs: int, accuracy: float) -> None:
    rng = np.random.default_rng(pairs)
    failed = 0
    for _ in range(REPETITIONS):
        checks = comparison_report(rng, accuracy, n=pairs)
        failed += any(check.passed is False for check in checks if check.name == "better than chance")
    assert failed <= 1


def test_a_reward_model_that_knows_nothing_rarely_passes_with_rankings_of_nine() -> None:
    rng = np.random.default_rng(0)
    i, j = np.triu_indices(9, 1)
    passed = 0
    for _ in range(REPETITIONS):
        scores = rng.normal(size=(30, 9))
        both = np.stack([scores[:, i].ravel(), scores[:, j].ravel()], 1)
        prompts = np.repeat(np.arange(30), len(i))
        report = preference_report(both, np.ones(len(both)), np.ones((len(both), 2)), prompts=prompts)
        passed += bool(reward_checks.reward_model(report)[0].passed)
    assert passed <= 4  # 2.5 %; over pairs 10 to 12 %


@pytest.mark.parametrize(("agreement", "wrong"), [(0.5, True), (0.63, False)])
@pytest.mark.parametrize("pairs", [1, 10, 100])
def test_repeated_labels_of_coins_and_of_people_are_rarely_taken_for_the_other(
    agreement: float, wrong: bool, pairs: int
) -> None:
    rng = np.random.default_rng(pairs)
    taken = 0
    for _ in range(40):
        taken += labels_agree(rng, agreement, pairs).passed is wrong
    assert taken <= 5


def test_responses_of_the_model_itself_are_its_own_and_a_wide_error_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    own = [excess(rng, 0.0)[0].passed for _ in range(REPETITIONS)]
    foreign = [excess(rng, 0.9)[0].passed for _ in range(REPETITIONS)]
    assert own.count(True) >= 0.95 * REPETITIONS and False not in own
    assert not any(foreign)
    wide = reward_checks.on_policy_check(OnPolicyExcess(ExcessNLL(0.05, 0.3)))
    assert wide.passed is None and "does not tell" in wide.finding
