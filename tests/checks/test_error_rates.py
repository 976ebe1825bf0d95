"""How often each check is wrong: at its threshold it passes or fails by accident as rarely as its 95 % interval says, a
healthy artifact passes and a broken one fails. Cheap figures, many repetitions, fixed seeds.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kleash import checks as checks_package
from kleash.checks import data_checks, policy_checks, reward_behaviour, reward_checks, sft_checks
from kleash.checks.artifact import votes_agree
from kleash.checks.check import Check
from kleash.checks.judge_checks import judge_checks, stop_above
from kleash.checks.reward_checks import OnPolicyExcess
from kleash.checks.sample_stats import ExcessNLL, Responses, Samples
from kleash.data.group import Group, Preference, Response
from kleash.errors import GateError
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


def against_length(rng: np.random.Generator, right: float) -> list[Check]:
    """A model that is right about this share of 300 pairs whatever their lengths, where the longer one is right about
    0.6: at 0.6 neither is better.
    """
    scores = np.stack([np.where(rng.random(300) < right, 1.0, -1.0), np.zeros(300)], 1)
    lengths = np.where((rng.random(300) < 0.6)[:, None], [[20, 10]], [[10, 20]])
    return [reward_checks.beyond_length(preference_report(scores, np.ones(300), lengths))]


def fooled(rng: np.random.Generator, above: float) -> list[Check]:
    """A reward model that prefers one kind of probe, other than the empty one, to this share of the responses."""
    scores = np.zeros((200, len(PROBES) + 1))
    scores[:, 1:] = -1.0
    scores[:, -1] = np.where(rng.random(200) < above, 1.0, -1.0)
    return [reward_checks._not_fooled(probe_report(scores))]


def longer_wins(rng: np.random.Generator, share: float) -> list[Check]:
    """200 pairs whose longer response is the better one in this share."""
    rows = []
    for row in range(200):
        pair = (Response(f"a longer {row}"), Response(f"b {row}"))
        rows.append(Group(f"q {row}", pair if rng.random() < share else pair[::-1], Preference()))
    return [data_checks._balanced(rows)]


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
    Case("beyond length", against_length, 0.6, 0.8, 0.4),
]

NOTES = [
    Case("not easily fooled", fooled, 0.5, 0.3, 0.7),
    Case("not only length", longer_wins, 0.8, 0.5, 0.95),
]
"""Checks that never fail: beyond their threshold they are unknown."""

ELSEWHERE = {"about the policy's samples", "calibrated", "labels agree", "scores differ", "uses the prompt",
             "right above wrong", "worth comparing"}  # fmt: skip
"""Checks with a test of their own below."""

CERTAIN = {
    "answers": "counts all pairs",
    "comparisons": "there are some or none",
    "enough pairs": "the width of an interval, and never fails",
    "entropy left": "never fails: a note",
    "finite": "of every weight",
    "finite weights": "of every weight",
    "length kept": "never fails: a note",
    "many prompts": "counts all rows",
    "measured": "says that nothing was",
    "pad is not an end": "one fact",
    "pairs are decided": "counts all rows",
    "plain transformers agrees": "the same numbers or not",
    "prompts": "counts",
    "responses differ": "counts all rows",
    "rows differ": "counts all rows",
    "rows end": "counts all rows",
    "samples": "says that there are none",
    "template": "one fact",
    "the run is finished": "one fact",
}
"""Checks that rest on no sample, so that they cannot be wrong by chance."""


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


def test_every_check_has_its_rates_or_the_reason_why_there_are_none() -> None:
    names = set()
    for file in Path(str(checks_package.__path__[0])).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            values: list[ast.expr | None] = []
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("answer", "Check"):
                values = [*node.args[:1], *(word.value for word in node.keywords if word.arg == "name")]
            elif isinstance(node, ast.Assign):  # `name = …`, handed on
                for target in node.targets:
                    targets = target.elts if isinstance(target, ast.Tuple) else [target]
                    sources = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                    pairs = zip(targets, sources, strict=False)
                    values += [value for to, value in pairs if isinstance(to, ast.Name) and to.id == "name"]
            names |= {one.value for one in values if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    known = {case.name for case in (*CASES, *NOTES)} | ELSEWHERE | CERTAIN.keys()
    assert names == known, names ^ known


@pytest.mark.parametrize("case", NOTES, ids=lambda case: case.name)
def test_a_note_is_seldom_left_out_or_made_by_chance(case: Case) -> None:
    for truth, least, most in ((case.threshold, 0.0, 0.15), (case.healthy, 0.9, 1.0), (case.broken, 0.0, 0.0)):
        passed, failed = rates(case, truth, 4, REPETITIONS)
        assert failed == 0 and (1 - passed if case.name == "not easily fooled" and truth == 0.5 else passed) <= most
        assert passed >= least


def exact_rates(check: Callable[[int, int], bool | None], n: int, truth: float) -> tuple[float, float]:
    """Probability that a check of n rows is ok and that it is failed, summed over all numbers of rows that count."""
    results = np.array([check(count, n) for count in range(n + 1)], dtype=object)
    chances = stats.binom.pmf(np.arange(n + 1), n, truth)
    return float(chances[results == True].sum()), float(chances[results == False].sum())  # noqa: E712


def own_prompt(count: int, n: int) -> bool | None:
    return sft_checks.uses_prompt(np.where(np.arange(n) < count, 1.0, -1.0)).passed


def worth_comparing(count: int, n: int) -> bool | None:
    return votes_agree([1] * n, [1] * count + [0] * (n - count)).passed


@pytest.mark.parametrize(
    ("check", "n", "nothing", "least", "healthy"),
    [(own_prompt, 40, 0.5, 2 / 3, 0.95), (own_prompt, 128, 0.5, 2 / 3, 0.95),
     (worth_comparing, 200, 0.5, 0.55, 0.65), (worth_comparing, 400, 0.5, 0.55, 0.63)],
)  # fmt: skip
def test_exactly_how_often_a_share_with_two_thresholds_is_wrong(
    check: Callable[[int, int], bool | None], n: int, nothing: float, least: float, healthy: float
) -> None:
    """It is ok only above chance and failed only below what is asked for; between them it may be either."""
    assert exact_rates(check, n, nothing)[0] <= 0.035, "what is chance passes"
    assert exact_rates(check, n, least)[1] <= 0.035, "what is as asked for fails"
    assert exact_rates(check, n, healthy)[0] >= 0.9 and exact_rates(check, n, healthy)[1] < 1e-3
    assert exact_rates(check, n, nothing - 0.15)[1] >= 0.95, "what is worse than chance"


def seldom_mistaken(count: int, n: int) -> bool | None:
    return reward_behaviour._verdict("false positives", count, n, "wrong responses score as right").passed


@pytest.mark.parametrize("n", [60, 100, 400])
def test_exactly_how_often_a_rewards_mistakes_are_judged_wrongly(n: int) -> None:
    """Of false positives, false negatives, and wrong responses that are paid as right ones."""
    passed, failed = exact_rates(seldom_mistaken, n, reward_behaviour.MOST_MISTAKEN)
    assert passed <= 0.06 and failed <= 0.06
    assert exact_rates(seldom_mistaken, n, 0.0)[0] == 1 or n == 60
    assert exact_rates(seldom_mistaken, n, 0.25)[1] >= 0.95


@pytest.mark.parametrize(("scale", "passes", "fails"), [(1.0, (0.9, 1.0), (0.0, 0.0)), (8.0, (0.0, 0.0), (0.9, 1.0))])
def test_a_calibrated_model_is_seldom_accused_and_an_overconfident_one_caught(
    scale: float, passes: tuple[float, float], fails: tuple[float, float]
) -> None:
    """Labels are as likely as the margins say; then the margins are multiplied."""

    def margins(rng: np.random.Generator, scale: float) -> list[Check]:
        margin = rng.normal(0, 0.8, 300)
        right = rng.random(300) < 1 / (1 + np.exp(-margin))
        scores = np.stack([scale * margin, np.zeros(300)], 1)
        return reward_checks.reward_model(preference_report(scores, right.astype(float), np.ones((300, 2))))

    passed, failed = rates(Case("calibrated", margins, 1.0, 1.0, 8.0), scale, 5, REPETITIONS)
    assert passes[0] <= passed <= passes[1] and fails[0] <= failed <= fails[1]


def test_constant_scores_are_always_seen_and_small_differences_never_taken_for_them() -> None:
    def report(scores: np.ndarray) -> list[Check]:
        return reward_checks.reward_model(preference_report(scores, np.ones(60), np.ones((60, 2))))

    rng = np.random.default_rng(0)
    for _ in range(REPETITIONS):
        constant = report(np.zeros((60, 2)) + rng.normal())
        differing = report(rng.normal(0, 0.1, size=(60, 2)))
        verdicts = [next(check.passed for check in checks if check.name == "scores differ") for checks in
                    (constant, differing)]  # fmt: skip
        assert verdicts == [False, True]


def test_samples_of_the_parent_are_seen_and_those_of_others_never_taken_for_them() -> None:
    def share_failed(model: float, parent: float) -> float:
        rng = np.random.default_rng([7, int(100 * parent)])
        measured = [
            OnPolicyExcess(ExcessNLL(rng.normal(model, 0.02), 0.02), ExcessNLL(rng.normal(parent, 0.02), 0.02), "base")
            for _ in range(REPETITIONS)
        ]
        return sum(reward_checks.on_policy_check(one).passed is False for one in measured) / REPETITIONS

    assert share_failed(0.3, 0.0) >= 0.75  # the base's own samples
    assert share_failed(0.0, 0.4) == 0.0  # the model's
    assert share_failed(0.9, 0.8) == 0.0  # other people's


@pytest.mark.parametrize(("truth", "most"), [(0.02, 0.05), (0.05, 0.2)])
def test_a_labelling_run_is_seldom_stopped_for_failures_that_it_could_afford(truth: float, most: float) -> None:
    """A tenth may fail; the share is looked at after every 64 rows of 640."""
    stopped = 0
    for repetition in range(REPETITIONS):
        fails = np.random.default_rng([9, repetition]).random(640) < truth
        try:
            for done in range(64, 641, 64):
                stop_above(0.1, int(fails[:done].sum()), done, 640, "reason")
        except GateError:
            stopped += 1
    assert stopped / REPETITIONS <= most
    with pytest.raises(GateError):
        stop_above(0.1, 40, 64, 640, "reason")


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
