"""F4: masked values have no effect, whatever they are, in any function that takes a mask."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil

import pytest
import torch

import kleash.objectives
from kleash.objectives import (
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    gae,
    group_centred,
    group_deviation,
    group_standardised,
    kl,
    leave_one_out,
    masked_mean,
    masked_sum,
    masked_whiten,
    token_rewards,
    token_weights,
    truncated_importance,
)

MASK = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
ROWS = MASK.any(-1)  # a response without a token has no place for its score


def tokens(n):
    return tuple(
        torch.randn(MASK.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(n)
    )


def with_metrics(result):
    loss, metrics = result
    return loss, *metrics.values()


def one(result):
    return (result,)


# name: (function of the inputs, its inputs)
CASES = {
    "masked_sum": (lambda x: one(masked_sum(x, MASK)), tokens(1)),
    "masked_sum of rows": (lambda x: one(masked_sum(x, MASK, -1)), tokens(1)),
    "masked_mean": (lambda x: one(masked_mean(x, MASK)), tokens(1)),
    "masked_mean of rows": (lambda x: one(masked_mean(x, MASK, -1)), tokens(1)),
    "masked_whiten": (lambda x: one(masked_whiten(x, MASK)), tokens(1)),
    "masked_whiten, mean kept": (lambda x: one(masked_whiten(x, MASK, shift_mean=False)), tokens(1)),
    "k1": (lambda a, b: one(kl.k1(a, b, mask=MASK)), tokens(2)),
    "k2": (lambda a, b: one(kl.k2(a, b, mask=MASK)), tokens(2)),
    "k2_of_responses": (lambda a, b: one(kl.k2_of_responses(a, b, mask=MASK)), tokens(2)),
    "token_weights": (lambda: one(token_weights(MASK, "sequence", longest=6)), ()),
    "truncated_importance": (lambda a, b: one(truncated_importance(a, b, mask=MASK)), tokens(2)),
    "k3": (lambda a, b: one(kl.k3(a, b, mask=MASK)), tokens(2)),
    "per_sequence": (lambda x: one(kl.per_sequence(x, MASK)), tokens(1)),
    "clipped_surrogate": (lambda a, b, c: with_metrics(clipped_surrogate(a, b, c, clip=0.2, mask=MASK)), tokens(3)),
    "clipped_value_loss": (lambda a, b, c: with_metrics(clipped_value_loss(a, b, c, clip=0.2, mask=MASK)), tokens(3)),
    "clipped_value_loss, free": (
        lambda a, b, c: with_metrics(clipped_value_loss(a, b, c, clip=None, mask=MASK)),
        tokens(3),
    ),
    "explained_variance": (lambda a, b: one(explained_variance(a, b, mask=MASK)), tokens(2)),
    "token_rewards": (
        lambda scores, x: one(token_rewards(scores, x, beta=0.1, mask=MASK)),
        (torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64), *tokens(1)),
    ),
    "group_centred": (lambda scores: one(group_centred(scores, mask=MASK)), tokens(1)),
    "group_deviation": (lambda scores: one(group_deviation(scores, mask=MASK)), tokens(1)),
    "group_standardised": (lambda scores: one(group_standardised(scores, mask=MASK)), tokens(1)),
    "leave_one_out": (lambda scores: one(leave_one_out(scores, mask=MASK)), tokens(1)),
    "gae": (lambda r, v: gae(r, v, gamma=0.9, lam=0.8, mask=MASK), tokens(2)),
    "a whole step": (
        lambda scores, new, old, ref, v: one(
            clipped_surrogate(
                new,
                old,
                masked_whiten(
                    gae(
                        token_rewards(scores, kl.k1(old, ref, mask=MASK), beta=0.1, mask=MASK),
                        v,
                        gamma=1.0,
                        lam=0.95,
                        mask=MASK,
                    )[0],
                    MASK,
                ),
                clip=0.2,
                mask=MASK,
            )[0]
        ),
        (torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64), *tokens(4)),
    ),
}


def run(function, inputs):
    """Results, and the gradient of all that has one; weights tell positions apart."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    results = function(*inputs)
    weighted = [(r * torch.arange(1.0, r.numel() + 1).view_as(r)).sum() for r in results if r.requires_grad]
    if not weighted:
        return [r.detach() for r in results], [None] * len(inputs)
    gradients = torch.autograd.grad(sum(weighted), inputs, allow_unused=True)
    return [r.detach() for r in results], gradients


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", CASES)
def test_F4_poison_at_masked_positions_changes_neither_values_nor_gradients(name, poison):
    function, inputs = CASES[name]
    values, gradients = run(function, inputs)
    assert all(torch.isfinite(value).all() for value in values)
    for i, clean in enumerate(inputs):
        poisoned = torch.where(MASK if clean.dim() == 2 else ROWS, clean, poison)
        assert not torch.isfinite(poisoned).all()
        theirs, their_gradients = run(function, (*inputs[:i], poisoned, *inputs[i + 1 :]))
        for value, other in zip(values, theirs, strict=True):
            assert torch.equal(value, other), f"input {i}"
        for j, (gradient, other) in enumerate(zip(gradients, their_gradients, strict=True)):
            assert (gradient is None) == (other is None)
            if gradient is not None:
                assert torch.equal(gradient, other), f"input {i}, gradient of {j}"
                assert not gradient[~(MASK if gradient.dim() == 2 else ROWS)].any()


def test_F4_every_function_that_takes_a_mask_is_tried_above():
    masked = set()
    for info in pkgutil.iter_modules(kleash.objectives.__path__):
        module = importlib.import_module(f"kleash.objectives.{info.name}")
        for name, member in vars(module).items():
            own = inspect.isfunction(member) and member.__module__ == module.__name__ and not name.startswith("_")
            if own and "mask" in inspect.signature(member).parameters:
                masked.add(name)
    assert masked == {name.split(",")[0].split(" ")[0] for name in CASES} - {"a"}
