"""F1, F2: a loss comes unreduced, so that its sum over any micro-batches by the count of the whole is one gradient."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid, pad

from kleash.objectives import (
    Normalisation,
    clipped_surrogate,
    clipped_value_loss,
    dpo_loss,
    ipo_loss,
    kl,
    length_normalised_dpo_loss,
    masked_sum,
    pair_loss,
    plackett_luce_loss,
    ranking_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed_dpo_loss,
    token_logprobs,
    token_weights,
)

ROWS, TOKENS, FEATURES, VOCABULARY, RESPONSES = 8, 5, 3, 7, 3


def make(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


MASK = make(ROWS, TOKENS, seed=9) > -0.4
DATA = {
    "features": make(ROWS, TOKENS, FEATURES, seed=0),
    "old": make(ROWS, TOKENS, seed=1),
    "target": make(ROWS, TOKENS, seed=2),
    "ids": torch.randint(VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(3)),
    "mask": MASK,
}
PROMPTS = {
    "features": make(ROWS, RESPONSES, FEATURES, seed=4),
    "ranks": torch.randint(0, 3, (ROWS, RESPONSES), generator=torch.Generator().manual_seed(5)),
    "p": torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(6)),
    "margin": torch.rand(ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(7)),
    "reference": make(ROWS, RESPONSES, seed=10),
    "lengths": torch.randint(1, 9, (ROWS, RESPONSES), generator=torch.Generator().manual_seed(11)),
    "order": make(ROWS, RESPONSES, seed=12).argsort(-1),
}


def predicted(batch, weight):
    return batch["features"] @ weight[0] / 3


def surrogate(batch, weight):
    near = predicted(batch, weight)
    loss, _ = clipped_surrogate(near, near.detach() - batch["old"] / 4, batch["target"], clip=0.2, mask=batch["mask"])
    return masked_sum(loss, batch["mask"])


def value(clip):
    def total(batch, weight):
        loss, _ = clipped_value_loss(
            predicted(batch, weight), batch["old"], batch["target"], clip=clip, mask=batch["mask"]
        )
        return masked_sum(loss, batch["mask"])

    return total


def weighted(batch, weight):
    """The surrogate in a normalisation: the weights were made for the whole step and cut with the rows."""
    near = predicted(batch, weight)
    loss, _ = clipped_surrogate(near, near.detach() - batch["old"] / 4, batch["target"], clip=0.2, mask=batch["mask"])
    return (torch.where(batch["mask"], batch["weights"], 0) * loss).sum()


def likelihood(batch, weight):
    kept = batch["mask"]
    logprobs, _ = token_logprobs(lambda x: x @ weight.T, batch["features"][kept], batch["ids"][kept], chunk_size=3)
    return -logprobs.sum()


def divergence(estimator):
    return lambda batch, weight: masked_sum(
        estimator(predicted(batch, weight), batch["old"], mask=batch["mask"]), batch["mask"]
    )


TOKENWISE = {
    "clipped_surrogate": surrogate,
    "clipped_value_loss": value(0.2),
    "clipped_value_loss, free": value(None),
    "token_logprobs": likelihood,
    "k1": divergence(kl.k1),
    "k2": divergence(kl.k2),
    "k3": divergence(kl.k3),
}


def preference(loss, **settings):
    """A loss of policy, then reference or lengths or both, then label."""

    def total(batch, weight):
        given = {name: batch[name][:, :2] for name in ("reference", "lengths") if name in taken}
        return loss(predicted(batch, weight)[:, :2], **given, **settings, p=batch["p"])[0].sum()

    taken = inspect.signature(loss).parameters
    return total


PROMPTWISE = {
    "dpo_loss": preference(dpo_loss, beta=0.5),
    "smoothed_dpo_loss": preference(smoothed_dpo_loss, beta=0.5, label_smoothing=0.1),
    "robust_dpo_loss": preference(robust_dpo_loss, beta=0.5, label_smoothing=0.1),
    "ipo_loss": preference(ipo_loss, beta=0.5),
    "simpo_loss": preference(simpo_loss, beta=2.0, gamma=1.0),
    "length_normalised_dpo_loss": preference(length_normalised_dpo_loss, beta=5.0),
    "plackett_luce_loss": lambda batch, weight: plackett_luce_loss(
        predicted(batch, weight), batch["reference"], batch["order"], beta=0.5
    )[0].sum(),
    "pair_loss": lambda batch, weight: pair_loss(
        predicted(batch, weight)[:, :2], p=batch["p"], margin=batch["margin"], centring=0.1
    )[0].sum(),
    "ranking_loss": lambda batch, weight: ranking_loss(predicted(batch, weight), batch["ranks"], centring=0.1)[0].sum(),
}


def gradient(total, batches, count):
    weight = make(VOCABULARY, FEATURES, seed=8).requires_grad_()
    for batch in batches:
        (total(batch, weight) / count).backward()
    return weight.grad


@st.composite
def splits(draw):
    """Rows in any order, cut anywhere."""
    order = draw(st.permutations(range(ROWS)))
    cuts = sorted(draw(st.sets(st.integers(1, ROWS - 1))))
    return [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, ROWS], strict=True)]


def padded(batch, left, right):
    """More columns that nobody may read; what the loss is handed there is NaN, what the model reads is a number."""
    nan = float("nan")
    junk = {"features": 5.0, "old": nan, "target": nan, "weights": nan, "ids": 0, "mask": False}
    sides = {name: (0, 0) * (x.dim() - 2) + (left, right) for name, x in batch.items()}
    return {name: pad(x, sides[name], value=junk[name]) for name, x in batch.items()}


@pytest.mark.parametrize("name", TOKENWISE)
@settings(deadline=None, max_examples=25)
@given(split=splits(), data=st.data())
def test_F1_any_microbatches_and_any_padding_give_one_gradient(name, split, data):
    total, count = TOKENWISE[name], MASK.sum()
    batches = [
        padded({key: x[rows] for key, x in DATA.items()}, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
        for rows in split
    ]
    whole = gradient(total, [DATA], count)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(gradient(total, batches, count), whole, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("normalisation", get_args(Normalisation))
@settings(deadline=None, max_examples=25)
@given(split=splits(), data=st.data())
def test_F1_any_microbatches_give_one_gradient_in_every_normalisation(normalisation, split, data):
    step = DATA | {"weights": token_weights(MASK, normalisation, longest=TOKENS).double()}
    batches = [
        padded({key: x[rows] for key, x in step.items()}, data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
        for rows in split
    ]
    whole = gradient(weighted, [step], 1)
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close(gradient(weighted, batches, 1), whole, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", PROMPTWISE)
@settings(deadline=None, max_examples=25)
@given(split=splits())
def test_F1_any_microbatches_of_prompts_give_one_gradient(name, split):
    total = PROMPTWISE[name]
    batches = [{key: x[rows] for key, x in PROMPTS.items()} for rows in split]
    whole = gradient(total, [PROMPTS], ROWS)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(gradient(total, batches, ROWS), whole, rtol=1e-6, atol=1e-12)


def test_F1_the_mean_of_microbatch_means_is_another_number():
    """What the tests above must be able to see: rows of unequal length, averaged one by one."""
    rows = [{key: x[i : i + 1] for key, x in DATA.items()} for i in range(ROWS)]
    count = MASK.sum()
    wrong = sum(gradient(surrogate, [row], max(int(row["mask"].sum()), 1)) for row in rows) / ROWS
    assert (wrong - gradient(surrogate, [DATA], count)).norm() > 0.01 * wrong.norm()


def test_F2_reduced_losses_of_rows_of_unequal_length_by_hand():
    """Three tokens and one: per token the mean is (1 + 2 + 3 + 10)/4, whatever the rows."""
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = -torch.tensor([[1.0, 2.0, 3.0], [10.0, 50.0, 60.0]])
    loss, _ = clipped_surrogate(torch.zeros(2, 3), torch.zeros(2, 3), advantages, clip=0.2, mask=mask)
    assert masked_sum(loss, mask).item() / mask.sum().item() == 4.0
    scores = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    pair, _ = pair_loss(scores, p=torch.ones(2, dtype=torch.float64))
    expected = -(logsigmoid(torch.tensor(1.0)) + logsigmoid(torch.tensor(-3.0))).item() / 2
    assert pair.mean().item() == pytest.approx(expected)


# Three responses of 3, 1 and 0 tokens, losses 1 2 3 | 10 | none; at most 5 tokens. By hand:
BY_HAND = {
    "token": (1 + 2 + 3 + 10) / 4,
    "sequence": ((1 + 2 + 3) / 3 + 10 + 0) / 3,  # a response without a token is counted, its loss is 0
    "constant": (1 + 2 + 3 + 10) / (3 * 5),
}


@pytest.mark.parametrize("normalisation", get_args(Normalisation))
def test_F2_every_normalisation_of_rows_of_unequal_length_by_hand(normalisation):
    mask = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])
    loss = torch.tensor([[1.0, 2.0, 3.0], [50.0, 10.0, 60.0], [70.0, 80.0, 90.0]])
    weights = token_weights(mask, normalisation, longest=5)
    assert (weights * loss).sum().item() == pytest.approx(BY_HAND[normalisation])
    assert not weights[~mask].any()


def test_F2_a_step_without_a_token_weighs_nothing():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert not any(token_weights(nothing, name, longest=5).any() for name in get_args(Normalisation))
