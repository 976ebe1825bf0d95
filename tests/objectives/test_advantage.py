from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kleash.objectives import gae, group_centred, group_deviation, group_standardised, leave_one_out, token_rewards

T, F = True, False


def double(x):
    return torch.tensor(x, dtype=torch.float64)


# F3. The end token of each row has id 2, which is also the pad token; a row may stop at 9 instead. What is real is
# known from the mask alone, so each row's score must land on its last True and nowhere else.
ROWS = {
    "ended, pad is the end token": ([5, 6, 2, 2, 2], [T, T, T, F, F], 2),
    "ended at once": ([2, 2, 2, 2, 2], [T, F, F, F, F], 0),
    "stopped at a token of its own": ([5, 9, 2, 2, 2], [T, T, F, F, F], 1),
    "cut off": ([5, 6, 7, 8, 5], [T, T, T, T, T], 4),
    "the end token inside, then on": ([5, 2, 6, 2, 2], [T, T, T, T, F], 3),
    "padded on the left": ([2, 2, 5, 6, 2], [F, F, T, T, T], 4),
    "padded on both sides": ([2, 5, 6, 2, 2], [F, T, T, F, F], 2),
    "forced tokens inside": ([5, 7, 7, 6, 2], [T, F, F, T, T], 4),
    "a forced token before the last": ([5, 6, 7, 2, 2], [T, T, F, T, F], 3),
    "forced tokens at the end": ([5, 6, 7, 7, 2], [T, T, F, F, F], 1),
}


@pytest.mark.parametrize("row", ROWS)
def test_F3_the_score_lands_on_the_last_token_of_the_policy(row):
    _, mask, last = ROWS[row]
    rewards = token_rewards(double([10.0]), double([[1.0, 2.0, 3.0, 4.0, 5.0]]), beta=0.1, mask=torch.tensor([mask]))
    expected = [-0.1 * (t + 1) * mask[t] + 10.0 * (t == last) for t in range(5)]
    assert rewards[0].tolist() == pytest.approx(expected)


def test_F3_all_rows_in_one_batch_and_the_return_of_the_first_token_is_the_score():
    mask = torch.tensor([mask for _, mask, _ in ROWS.values()])
    scores = torch.arange(1.0, 1.0 + len(ROWS), dtype=torch.float64)
    nothing = torch.zeros(mask.shape, dtype=torch.float64)
    rewards = token_rewards(scores, nothing, beta=0.1, mask=mask)
    assert torch.equal(rewards.sum(-1), scores)
    assert rewards.argmax(-1).tolist() == [last for _, _, last in ROWS.values()]
    advantages, returns = gae(rewards, nothing, gamma=1.0, lam=0.9, mask=mask)
    assert torch.equal(advantages, returns)
    first = mask.long().argmax(-1)
    one_step_less = 0.9 ** (mask.sum(-1) - 1)
    torch.testing.assert_close(advantages[torch.arange(len(ROWS)), first], scores * one_step_less)


def test_a_row_without_a_token_of_the_policy_has_no_reward():
    rewards = token_rewards(double([10.0, 7.0]), double([[1.0], [1.0]]), beta=0.5, mask=torch.tensor([[F], [T]]))
    assert rewards.tolist() == [[0.0], [6.5]]


def test_F4_a_score_of_zero_is_a_score():
    mask = torch.tensor([[T, T, F]])
    values = double([[0.5, 0.25, 9.0]])
    rewards = token_rewards(double([0.0]), torch.zeros(1, 3, dtype=torch.float64), beta=0.1, mask=mask)
    advantages, returns = gae(rewards, values, gamma=1.0, lam=1.0, mask=mask)
    assert advantages.tolist() == [[-0.5, -0.25, 0.0]]
    assert returns.tolist() == [[0.0, 0.0, 0.0]]


def test_gae_by_hand_on_rows_of_unequal_length():
    """γ = ½, λ = ½. The second row is padded on the left, the third has a hole, the fourth nothing."""
    mask = torch.tensor([[T, T, T], [F, F, T], [T, F, T], [F, F, F]])
    rewards = double([[1.0, 2.0, 4.0], [9.0, 9.0, 3.0], [1.0, 9.0, 4.0], [9.0, 9.0, 9.0]])
    values = double([[2.0, 4.0, 8.0], [9.0, 9.0, 1.0], [2.0, 9.0, 8.0], [9.0, 9.0, 9.0]])
    advantages, returns = gae(rewards, values, gamma=0.5, lam=0.5, mask=mask)
    # row 0: δ = (1 + 2 − 2, 2 + 4 − 4, 4 + 0 − 8) = (1, 2, −4); A = (1 + ¼·1, 2 + ¼·(−4), −4) = (1.25, 1, −4)
    # row 2: δ = (1 + ½·8 − 2, 4 − 8) = (3, −4); A = (3 − 1, −4) = (2, −4)
    assert advantages.tolist() == [[1.25, 1.0, -4.0], [0.0, 0.0, 2.0], [2.0, 0.0, -4.0], [0.0, 0.0, 0.0]]
    assert returns.tolist() == [[3.25, 5.0, 4.0], [0.0, 0.0, 3.0], [4.0, 0.0, 4.0], [0.0, 0.0, 0.0]]


def slow_gae(rewards, values, gamma, lam):
    """Eq. 16 as printed: A_t = Σ_l (γλ)^l δ_{t+l}, over a list without holes."""
    after = [*values, 0.0][1:]
    deltas = [r + gamma * v_next - v for r, v, v_next in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, len(deltas))) for t in range(len(deltas))]


@st.composite
def rollouts(draw):
    rows, width = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    cells = st.lists(st.lists(st.floats(-5, 5), min_size=width, max_size=width), min_size=rows, max_size=rows)
    flags = st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=rows, max_size=rows)
    reshaped = lambda x, dtype: torch.tensor(x, dtype=dtype).reshape(rows, width)  # noqa: E731
    return reshaped(draw(cells), torch.float64), reshaped(draw(cells), torch.float64), reshaped(draw(flags), torch.bool)


@settings(deadline=None, max_examples=200)
@given(rollouts(), st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_slow_sum_over_the_tokens_of_the_policy(rollout, gamma, lam):
    rewards, values, mask = rollout
    advantages, returns = gae(rewards, values, gamma=gamma, lam=lam, mask=mask)
    for row in range(len(mask)):
        kept = mask[row]
        expected = slow_gae(rewards[row][kept].tolist(), values[row][kept].tolist(), gamma, lam)
        assert advantages[row][kept].tolist() == pytest.approx(expected, abs=1e-9)
        assert (returns - values)[row][kept].tolist() == pytest.approx(expected, abs=1e-9)
        assert not advantages[row][~kept].any()
        assert not returns[row][~kept].any()


@settings(deadline=None)
@given(rollouts(), st.floats(0, 1))
def test_at_lambda_1_advantages_are_returns_minus_values(rollout, gamma):
    rewards, values, mask = rollout
    advantages, returns = gae(rewards, values, gamma=gamma, lam=1.0, mask=mask)
    for row in range(len(mask)):
        later = 0.0
        for t in reversed(range(mask.shape[1])):
            if mask[row, t]:
                later = rewards[row, t].item() + gamma * later
                assert returns[row, t].item() == pytest.approx(later, abs=1e-9)
                assert advantages[row, t].item() == pytest.approx(later - values[row, t].item(), abs=1e-9)


@settings(deadline=None)
@given(rollouts(), st.integers(0, 3), st.integers(0, 3))
def test_F3_padding_on_either_side_changes_nothing(rollout, left, right):
    rewards, values, mask = rollout
    pad = lambda x: torch.nn.functional.pad(x, (left, right))  # noqa: E731
    plain = gae(rewards, values, gamma=0.9, lam=0.8, mask=mask)
    padded = gae(pad(rewards), pad(values), gamma=0.9, lam=0.8, mask=pad(mask))
    torch.testing.assert_close(padded, tuple(pad(x) for x in plain))
    scores = torch.arange(len(mask), dtype=torch.float64)
    torch.testing.assert_close(
        token_rewards(scores, pad(rewards), beta=0.3, mask=pad(mask)),
        pad(token_rewards(scores, rewards, beta=0.3, mask=mask)),
    )


def test_advantages_and_returns_are_targets_without_gradient():
    values = torch.randn(2, 3, requires_grad=True)
    advantages, returns = gae(torch.randn(2, 3), values, gamma=1.0, lam=0.95, mask=torch.ones(2, 3, dtype=torch.bool))
    assert not advantages.requires_grad
    assert not returns.requires_grad


# Scores 0 0 3 and 5 5 5. Means 1 and 5; deviations with K − 1: √((1 + 1 + 4)/2) = √3 and 0; means of the others of
# each: 1.5, 1.5, 0.
GROUPS = double([[0.0, 0.0, 3.0], [5.0, 5.0, 5.0]])
ROOT = 3**0.5 + 1e-4


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        (group_centred, [-1.0, -1.0, 2.0]),
        (group_standardised, [-1.0 / ROOT, -1.0 / ROOT, 2.0 / ROOT]),
        (leave_one_out, [-1.5, -1.5, 3.0]),
    ],
)
def test_group_advantages_by_hand(advantage, expected):
    assert advantage(GROUPS)[0].tolist() == pytest.approx(expected)
    assert advantage(GROUPS)[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("advantage", [group_centred, group_standardised, leave_one_out])
def test_a_group_of_equal_scores_has_no_advantage_at_all_whatever_the_score_rounds_to(advantage):
    for score in (0.1, 1e6 + 0.1, -0.7, 1e-30):
        assert not advantage(torch.full((2, 7), score)).any()


@pytest.mark.parametrize("advantage", [group_centred, group_standardised, leave_one_out])
def test_a_score_added_to_a_whole_group_changes_nothing(advantage):
    torch.testing.assert_close(advantage(GROUPS + double([[8.0], [-2.0]])), advantage(GROUPS))
    torch.testing.assert_close(advantage(GROUPS).sum(-1), double([0.0, 0.0]), atol=1e-12, rtol=0)


def test_standardising_gives_groups_of_any_spread_equal_weight_and_centring_does_not():
    wide = GROUPS[:1] * 100
    torch.testing.assert_close(group_standardised(wide), group_standardised(GROUPS[:1]), rtol=1e-3, atol=0)
    torch.testing.assert_close(group_centred(wide), 100 * group_centred(GROUPS[:1]))


ADVANTAGES = [group_centred, group_standardised, leave_one_out]


@pytest.mark.parametrize("advantage", ADVANTAGES)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_response_without_a_score_is_as_if_it_were_not_in_its_group(advantage, data):
    scores = double(data.draw(st.lists(st.floats(-5, 5), min_size=6, max_size=6)))[None]
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=6, max_size=6))])
    advantages = advantage(torch.where(mask, scores, torch.nan), mask=mask)
    assert not advantages[~mask].any()
    if mask.sum() >= 2:
        torch.testing.assert_close(advantages[mask], advantage(scores[mask][None])[0])
    else:
        assert not advantages.any(), "nobody to compare it with"


def test_the_deviation_of_a_group_is_that_of_the_responses_with_a_score():
    scores = double([[1.0, 3.0, 100.0], [2.0, 2.0, 2.0], [1.0, 9.0, 9.0]])
    mask = torch.tensor([[T, T, F], [T, T, T], [T, F, F]])
    torch.testing.assert_close(group_deviation(scores, mask=mask), double([[2.0**0.5], [0.0], [0.0]]))
    torch.testing.assert_close(group_deviation(scores), scores.std(-1, keepdim=True))
