from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash.objectives import pair_loss, ranking_loss

score = st.floats(-20, 20)
probability = st.floats(0, 1)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def test_pair_by_hand():
    scores = double([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    loss, metrics = pair_loss(scores, p=double([1.0, 0.5, 0.0, 1.0]))
    right, wrong = -math.log(sigmoid(1)), -math.log(sigmoid(-1))
    assert loss.tolist() == pytest.approx([right, (right + wrong) / 2, wrong, math.log(2)])
    assert metrics["margin"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert metrics["accuracy"].tolist() == [1.0, 0.5, 0.0, 0.5]  # a tie, of labels or scores, counts one half


def test_margin_by_hand():
    scores = double([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]])
    loss, metrics = pair_loss(scores, p=double([1.0, 1.0, 0.0]), margin=double([1.0, 3.0, 3.0]))
    assert loss.tolist() == pytest.approx([math.log(2), -math.log(sigmoid(-2)), -math.log(sigmoid(-4))])
    assert metrics["margin"].tolist() == [1.0, 1.0, 1.0]  # what was learnt, not what was asked
    constant, _ = pair_loss(scores, p=double([1.0, 1.0, 0.0]), margin=3.0)
    assert constant.tolist()[1:] == loss.tolist()[1:]


def test_centring_by_hand():
    scores = double([[2.0, 1.0], [-3.0, 3.0]])
    with_centring, _ = pair_loss(scores, p=double([1.0, 1.0]), centring=0.1)
    without, _ = pair_loss(scores, p=double([1.0, 1.0]))
    assert (with_centring - without).tolist() == pytest.approx([0.1 * 3**2, 0.0])


@settings(deadline=None)
@given(score, score, probability, st.floats(0, 5), st.floats(0, 1))
def test_swapping_the_columns_and_the_label_changes_nothing(a, b, p, margin, centring):
    one, metrics = pair_loss(double([[a, b]]), p=double([p]), margin=margin, centring=centring)
    other, mirrored = pair_loss(double([[b, a]]), p=double([1 - p]), margin=margin, centring=centring)
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(metrics["margin"], -mirrored["margin"])
    if abs(p - 0.5) > 1e-9:
        torch.testing.assert_close(metrics["accuracy"], mirrored["accuracy"])


@settings(deadline=None)
@given(score, score, probability, st.floats(-50, 50))
def test_C3_a_constant_added_to_both_scores_changes_neither_loss_nor_gradient(a, b, p, shift):
    results = []
    for constant in (0.0, shift):
        scores = double([[a + constant, b + constant]]).requires_grad_()
        loss, _ = pair_loss(scores, p=double([p]), margin=0.3)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), scores)[0]))
        assert results[-1][1].sum().abs() < 1e-12  # the gradient moves the difference alone
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_C3_a_constant_added_to_a_prompt_changes_no_ranking_loss():
    scores, ranks = torch.randn(4, 5, dtype=torch.float64), torch.randint(0, 4, (4, 5))
    shift = double([[-30.0], [0.5], [7.0], [100.0]])
    torch.testing.assert_close(ranking_loss(scores, ranks)[0], ranking_loss(scores + shift, ranks)[0])


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.8, 0.99])
def test_C4_the_loss_is_least_where_the_margin_is_the_log_odds_of_the_label(p):
    scores = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    precision = {"tolerance_grad": 1e-12, "tolerance_change": 1e-15}
    optimizer = torch.optim.LBFGS([scores], max_iter=200, line_search_fn="strong_wolfe", **precision)

    def closure():
        optimizer.zero_grad()
        loss = pair_loss(scores, p=double([p]))[0].sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    learnt = (scores[0, 0] - scores[0, 1]).item()
    assert learnt == pytest.approx(math.log(p / (1 - p)), abs=1e-5)


def test_votes_of_a_population_are_as_good_as_their_mean():
    """Ten labellers, seven for column 0: the sum of their losses and ten soft ones have one gradient."""
    scores = double([[0.4, -0.3]]).requires_grad_()
    votes = pair_loss(scores.expand(10, 2), p=double([1.0] * 7 + [0.0] * 3))[0].sum()
    soft = pair_loss(scores, p=double([0.7]))[0].sum() * 10
    torch.testing.assert_close(votes, soft)
    torch.testing.assert_close(torch.autograd.grad(votes, scores), torch.autograd.grad(soft, scores))


def test_extreme_scores_stay_finite():
    scores = torch.tensor([[-1e4, 1e4], [1e4, -1e4]], requires_grad=True)
    loss, _ = pair_loss(scores, p=torch.ones(2))
    loss.sum().backward()
    assert loss.tolist() == [2e4, 0.0]
    assert scores.grad.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def slow_ranking(scores, ranks, centring):
    """One prompt, comparison by comparison."""
    losses, leads, hits = [], [], []
    for i, j in itertools.combinations(range(len(scores)), 2):
        lead = scores[i] - scores[j]
        if ranks[i] == ranks[j]:
            loss = -0.5 * math.log(sigmoid(lead)) - 0.5 * math.log(sigmoid(-lead))
            hits.append(0.5)
        else:
            lead = lead if ranks[i] < ranks[j] else -lead
            loss = -math.log(sigmoid(lead))
            leads.append(lead)
            hits.append(0.5 if lead == 0 else float(lead > 0))
        losses.append(loss + centring * (scores[i] + scores[j]) ** 2)
    mean = lambda x: sum(x) / len(x) if x else 0.0  # noqa: E731
    return mean(losses), mean(leads), mean(hits)


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(1, 3), st.floats(0, 1), st.data())
def test_ranking_is_the_mean_of_its_comparisons(responses, prompts, centring, data):
    values = st.lists(st.floats(-9, 9), min_size=responses, max_size=responses)
    places = st.lists(st.integers(-1, 3), min_size=responses, max_size=responses)
    scores = data.draw(st.lists(values, min_size=prompts, max_size=prompts))
    ranks = data.draw(st.lists(places, min_size=prompts, max_size=prompts))
    loss, metrics = ranking_loss(double(scores), torch.tensor(ranks), centring=centring)
    slow = [slow_ranking(s, r, centring) for s, r in zip(scores, ranks, strict=True)]
    assert loss.tolist() == pytest.approx([row[0] for row in slow], abs=1e-9)
    assert metrics["margin"].tolist() == pytest.approx([row[1] for row in slow], abs=1e-9)
    assert metrics["accuracy"].tolist() == pytest.approx([row[2] for row in slow], abs=1e-9)


@settings(deadline=None)
@given(score, score, st.sampled_from([(0, 1), (1, 0), (2, 2)]), st.floats(0, 1))
def test_a_ranking_of_two_is_a_pair(a, b, ranks, centring):
    p = {-1: 1.0, 1: 0.0, 0: 0.5}[(ranks[0] > ranks[1]) - (ranks[0] < ranks[1])]
    pair, pair_metrics = pair_loss(double([[a, b]]), p=double([p]), centring=centring)
    ranking, metrics = ranking_loss(double([[a, b]]), torch.tensor([ranks]), centring=centring)
    torch.testing.assert_close(ranking, pair)
    torch.testing.assert_close(metrics["accuracy"], pair_metrics["accuracy"])


def test_the_order_of_the_responses_does_not_matter():
    scores, ranks = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[0, 1, 2, 3], [1, 1, 0, 2], [0, 0, 0, 0]])
    expected = ranking_loss(scores, ranks, centring=0.1)
    for order in itertools.permutations(range(4)):
        torch.testing.assert_close(ranking_loss(scores[:, order], ranks[:, order], centring=0.1), expected)


def test_a_single_response_cannot_be_ranked():
    with pytest.raises(ValueError, match="at least two responses"):
        ranking_loss(torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.long))


def test_metrics_are_detached():
    scores = torch.randn(3, 2, requires_grad=True)
    _, of_pairs = pair_loss(scores, p=torch.ones(3))
    _, of_rankings = ranking_loss(scores, torch.tensor([[0, 1]] * 3))
    for metric in (*of_pairs.values(), *of_rankings.values()):
        assert not metric.requires_grad
