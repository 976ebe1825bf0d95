from __future__ import annotations

import json
from math import comb, exp, log, sqrt

import numpy as np
import pytest
import torch
from scipy import stats

from kleash.errors import DataError
from kleash.evals.intervals import sign_test, wilson
from kleash.evals.preference_report import ceiling_bounds, preference_report
from kleash.evals.report_values import as_json


def random_pairs(n: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)), rng.choice([0.0, 1.0, 0.5, 0.8], size=n), rng.integers(1, 30, size=(n, 2))


def report(scores, p, lengths=None, **options):
    scores = np.asarray(scores, dtype=float)
    lengths = np.ones_like(scores) if lengths is None else np.asarray(lengths)
    return preference_report(scores, np.asarray(p, dtype=float), lengths, **options)


def test_accuracy_counts_score_ties_one_half_and_leaves_label_ties_out():
    figures = report([[2, 1], [1, 2], [3, 3], [5, 0]], [1, 1, 0, 0.5])  # hit, miss, tie in score, tie in label
    assert figures.accuracy == pytest.approx(1.5 / 3)
    assert (figures.pairs, figures.label_ties, figures.score_ties) == (4, 1, 1)


def test_wilson_is_scipys_where_scipy_has_one():
    for hits, n in [(0, 1), (1, 1), (7, 10), (60, 100), (1400, 1400)]:
        expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_log_loss_by_hand_against_soft_labels():
    def loss(margin, p):
        return -p * log(1 / (1 + exp(-margin))) - (1 - p) * log(1 / (1 + exp(margin)))

    figures = report([[2, 0.5], [0, 1], [4, 4]], [0.8, 1, 0.5])
    assert figures.log_loss == pytest.approx((loss(1.5, 0.8) + loss(-1, 1) + log(2)) / 3)


def test_log_loss_does_not_overflow():
    assert report([[0, 5000], [5000, 0]], [1, 1]).log_loss == pytest.approx(2500)


def test_ece_by_hand_with_one_pair_a_bin():
    figures = report([[1, 0], [0, 2]], [1, 1])  # confidences σ(1) with outcome 1 and σ(2) with outcome 0
    sigma = lambda x: 1 / (1 + exp(-x))  # noqa: E731
    assert figures.ece == pytest.approx(((1 - sigma(1)) + sigma(2)) / 2)
    assert [row.pairs for row in figures.reliability] == [1, 1]


def test_ece_is_small_for_a_calibrated_model_and_large_for_an_overconfident_one():
    rng = np.random.default_rng(0)
    margin = rng.normal(size=20_000)
    p = (rng.random(20_000) < 1 / (1 + np.exp(-margin))).astype(float)
    scores = np.stack([margin, np.zeros_like(margin)], 1)
    assert report(scores, p).ece < 0.015
    assert report(4 * scores, p).ece > 0.15
    assert all(1900 < row.pairs < 2100 for row in report(scores, p).reliability)  # equal mass


def test_every_figure_survives_a_change_of_columns_and_of_rows():
    scores, p, lengths = random_pairs(200)
    turned = np.random.default_rng(1).random(200) < 0.5
    order = np.random.default_rng(2).permutation(200)
    swap = lambda x: np.where(turned[:, None], x[:, ::-1], x)[order]  # noqa: E731
    q = np.random.default_rng(3).random(200)
    plain = report(scores, p, lengths, label_probability=q)
    flip = lambda x: np.where(turned, 1 - x, x)[order]  # noqa: E731
    other = report(swap(scores), flip(p), swap(lengths), label_probability=flip(q))
    one, two = as_json(plain), as_json(other)
    for figures in (one, two):
        figures |= figures.pop("against_length")  # type: ignore[arg-type]
    for name, value in one.items():
        if name != "reliability":
            assert two[name] == (pytest.approx(value) if not isinstance(value, str) else value), name
    assert len(plain.reliability) == len(other.reliability)


def test_F16_a_short_last_batch_changes_nothing():
    scores, p, lengths = random_pairs(33)
    hits = [0.5 + 0.5 * np.sign(s[0] - s[1]) * np.sign(q - 0.5) for s, q in zip(scores, p, strict=True) if q != 0.5]
    assert report(scores, p, lengths).accuracy == pytest.approx(sum(hits) / len(hits))


def test_F16_all_that_a_reward_model_must_show_is_there_and_is_json():
    scores, p, lengths = random_pairs(50)
    figures = as_json(report(scores, p, lengths, votes=np.full((50, 2), 3)))
    json.loads(json.dumps(figures, allow_nan=False))
    wanted = "accuracy accuracy_interval log_loss ece length_slope noise_ceiling score_ties against_length chance"
    assert set(wanted.split()) <= set(figures)


def test_shift_of_all_scores_changes_nothing():
    scores, p, lengths = random_pairs(60)
    a, b = report(scores, p, lengths), report(scores + 64, p, lengths)  # 64: exact enough in binary
    assert a.log_loss == pytest.approx(b.log_loss) and a.accuracy == b.accuracy


def test_length_slope_is_the_regression_that_the_docs_state():
    scores, p, lengths = random_pairs(300)
    margin, longer = scores[:, 0] - scores[:, 1] + 0.1 * (lengths[:, 0] - lengths[:, 1]), lengths[:, 0] - lengths[:, 1]
    figures = report(np.stack([margin, 0 * margin], 1), p, lengths)
    # A second way: least squares over every pair and its mirror image, with an intercept, on standardised variables.
    x, y = np.r_[longer, -longer], np.r_[margin, -margin]
    line = stats.linregress(x / x.std(), y / y.std())
    assert figures.length_slope == pytest.approx(line.slope)
    assert figures.length_slope_raw == pytest.approx(stats.linregress(x, y).slope)
    label = stats.linregress(x / x.std(), np.r_[2 * p - 1, 1 - 2 * p] / np.r_[2 * p - 1, 1 - 2 * p].std())
    assert figures.label_length_slope == pytest.approx(label.slope)


def test_length_slope_standard_error_covers_the_truth():
    rng, inside = np.random.default_rng(0), 0
    truth = 0.5 / np.sqrt(0.25 + 1 + 1)  # y = .5x + noise whose spread grows with |x|: E[x²e²] is not E[x²]E[e²]
    for _ in range(300):
        x = rng.normal(size=200)
        y = 0.5 * x + rng.normal(size=200) * np.sqrt(1 + x * x)
        figures = report(np.stack([y, 0 * y], 1), np.ones(200), np.stack([x, 0 * x], 1))
        inside += abs(figures.length_slope - truth) < 1.96 * figures.length_slope_se
    assert 0.90 < inside / 300 < 0.99


def test_length_slope_and_its_standard_error_by_hand():
    figures = report([[2, 0], [3, 0]], [1, 1], [[2, 1], [4, 2]])  # x = 1, 2 and y = 2, 3
    slope, scale = (1 * 2 + 2 * 3) / (1 + 4), sqrt(5 / 13)  # 1.6; residuals .4 and −.2
    assert figures.length_slope == pytest.approx(slope * scale)
    assert figures.length_slope_se == pytest.approx(sqrt(1 * 0.4**2 + 4 * 0.2**2) / 5 * scale)


def test_no_difference_in_length_has_no_slope_and_half_the_accuracy():
    figures = report([[1, 0], [1, 0]], [1, 1], [[3, 3], [4, 4]])
    assert figures.length_slope is None and figures.length_accuracy == 0.5


def test_length_baseline_takes_its_sign_from_training_pairs():
    scores, p, lengths = [[1, 0]] * 4, [1] * 4, [[1, 9]] * 4  # here shorter wins
    assert report(scores, p, lengths).length_accuracy == 1.0
    assert report(scores, p, lengths).length_fitted_on == "these pairs"
    fitted = report(scores, p, lengths, train_lengths=np.array([[9, 1]] * 3), train_p=np.ones(3))  # longer won
    assert fitted.length_accuracy == 0.0
    assert (fitted.length_prefers, fitted.length_fitted_on) == ("longer", "training pairs")


def test_paired_test_against_length_is_mcnemars_exact():
    lengths = [[2, 1]] * 10  # longer is right in rows 1 to 10 where column 0 is chosen: all but the last two
    scores = [[1, 0]] * 7 + [[0, 1]] + [[0, 1]] * 2
    figures = report(scores, [1] * 8 + [0] * 2, lengths)
    assert figures.against_length.wins == 2 and figures.against_length.losses == 1
    tail = sum(comb(3, k) for k in (2, 3)) / 2**3
    assert figures.against_length.p_value == pytest.approx(min(1, 2 * tail))
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 6) == pytest.approx(2 / 2**6)


def test_noise_ceiling_is_the_accuracy_of_the_best_predictor():
    rng = np.random.default_rng(0)
    q = rng.beta(2, 2, size=50_000)
    p = (rng.random(50_000) < q).astype(float)
    best = report(np.stack([q - 0.5, 0 * q], 1), p, label_probability=q)
    assert best.noise_ceiling == pytest.approx(np.maximum(q, 1 - q).mean())
    assert best.accuracy == pytest.approx(best.noise_ceiling, abs=0.01)
    assert best.expected_accuracy == pytest.approx(best.noise_ceiling)
    worst = report(np.stack([0.5 - q, 0 * q], 1), p, label_probability=q)
    assert worst.expected_accuracy == pytest.approx(1 - worst.noise_ceiling)


def test_noise_ceiling_is_unknown_without_repeated_or_probabilistic_labels():
    figures = report([[1, 0]], [1])
    assert figures.noise_ceiling == figures.noise_ceiling_bounds == "unknown"
    assert ceiling_bounds(np.array([[1, 0], [0, 1]])) == "unknown"


def test_repeated_labels_bound_the_ceiling():
    rng = np.random.default_rng(0)
    for q in (np.full(40_000, 0.7), rng.random(40_000), rng.choice([0.0, 1.0, 0.5], size=40_000)):
        votes = rng.binomial(3, q)
        low, high = ceiling_bounds(np.stack([votes, 3 - votes], 1))
        assert low - 0.01 <= np.maximum(q, 1 - q).mean() <= high + 0.01
    assert ceiling_bounds(np.array([[2, 0], [0, 2]])) == (1.0, 1.0)


def test_torch_and_numpy_agree_in_any_precision():
    scores, p, lengths = random_pairs(40)
    scores = torch.tensor(scores).to(torch.bfloat16)
    from_torch = preference_report(scores.requires_grad_(), torch.tensor(p), torch.tensor(lengths))
    assert from_torch == preference_report(scores.detach().double().numpy(), p, lengths)


@pytest.mark.parametrize(
    ("scores", "p", "words"),
    [
        ([[1, 0], [float("nan"), 0]], [1, 1], "pair 2"),
        ([[1, 0]], [1.5], "between 0 and 1"),
        ([[1, 0]], [float("nan")], "between 0 and 1"),
        (np.zeros((0, 2)), np.zeros(0), "at least one"),
    ],
)
def test_impossible_measurements_are_an_error_of_one_line(scores, p, words):
    with pytest.raises(DataError, match=words) as raised:
        report(scores, p)
    assert "\n" not in str(raised.value)


def test_only_ties_has_no_accuracy_but_a_log_loss():
    figures = report([[1, 0], [2, 0]], [0.5, 0.5], label_probability=np.array([0.5, 0.5]))
    assert figures.accuracy is None and figures.log_loss > log(2)
    json.dumps(as_json(figures), allow_nan=False)
