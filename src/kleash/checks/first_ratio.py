"""Check that the ratio π/π_old is 1 before the first update of a rollout (F7).

Dropout, a temperature that is missing on one side, different precisions, responses that were decoded and tokenised
again: none of these raises an error, and all of them show here, at step 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from kleash.data.batch import GroupBatch
from kleash.errors import TrainingError
from kleash.models.forward import response_logprobs

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.25}
"""Largest |log π − log π_old| of a token that rounding explains, by dtype."""


def check_first(
    policy: PreTrainedModel,
    batch: GroupBatch,
    logprobs: Float[Tensor, "R T"],
    old_logprobs: Float[Tensor, "R T"],
    temperature: float,
    dtype: str,
) -> Float[Tensor, ""]:
    """The largest ratio before the first update.

    Args:
        policy: the model being trained.
        batch: groups that were just sampled, of any K.
        logprobs: of the training forward, R = P·K rows.
        old_logprobs: of the rollout.
        temperature: by which training divides the logits.
        dtype: of the computation.

    Raises:
        TrainingError: a token's log-ratio is beyond rounding; the message names the likeliest cause.
    """
    gap = torch.where(batch.mask.flatten(0, 1), (logprobs - old_logprobs).abs(), 0)
    worst = gap.max() if gap.numel() else gap.new_zeros(())
    if not worst <= TOLERANCE[dtype]:
        raise TrainingError(
            f"before the first update log π − log π_old is {float(worst):.3g} for a token, but should be 0: "
            f"{_cause(policy, batch, old_logprobs, temperature)}"
        )
    return worst.exp()


@torch.no_grad()
def _cause(policy: PreTrainedModel, batch: GroupBatch, old_logprobs: Tensor, temperature: float) -> str:
    def gap(divisor: float) -> float:
        again = response_logprobs(policy, batch, temperature=divisor)[0].flatten(0, 1)
        return float(torch.where(batch.mask.flatten(0, 1), (again - old_logprobs).abs(), 0).max())

    same = gap(temperature)
    training = policy.training
    policy.eval()
    try:
        if gap(temperature) < same / 10 or gap(temperature) <= TOLERANCE["float32"] < same:
            return "dropout is active in training; call kleash.models.load.disable_dropout on the model"
        if temperature != 1 and gap(1.0) <= TOLERANCE["float32"]:
            return f"the rollout's log-probabilities lack the temperature {temperature}; divide its logits by it too"
        for other in (0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0):
            if gap(other) <= TOLERANCE["float32"]:
                return (
                    f"the rollout was sampled at temperature {other}, training divides by {temperature}; use the same"
                )
        if gap(temperature) <= TOLERANCE["float32"]:
            return "training computes in another precision than the sampler; give both the same --dtype"
    finally:
        policy.train(training)
    return (
        "the rollout's ids are not what was sampled (decoded and tokenised again?) or the sampler has other weights; "
        "train on the ids as they were sampled, and sync the sampler"
    )
