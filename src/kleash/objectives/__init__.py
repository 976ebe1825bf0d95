"""Losses and estimators as pure functions: tensors in, tensors out.

Every loss is returned unreduced, with its metrics as detached tensors; the caller divides by the count of the whole
step.
"""

from __future__ import annotations

from kleash.objectives import kl
from kleash.objectives.advantage import (
    gae,
    group_centred,
    group_deviation,
    group_standardised,
    leave_one_out,
    token_rewards,
)
from kleash.objectives.bradley_terry import pair_loss, ranking_loss
from kleash.objectives.logprobs import token_logprobs
from kleash.objectives.policy import clipped_surrogate, truncated_importance
from kleash.objectives.preference import (
    LOSSES,
    PairLoss,
    dpo_loss,
    implicit_rewards,
    ipo_loss,
    length_normalised_dpo_loss,
    plackett_luce_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed_dpo_loss,
)
from kleash.objectives.reduce import Metrics, Normalisation, masked_mean, masked_sum, masked_whiten, token_weights
from kleash.objectives.value import clipped_value_loss, explained_variance

__all__ = [
    "LOSSES",
    "Metrics",
    "Normalisation",
    "PairLoss",
    "clipped_surrogate",
    "clipped_value_loss",
    "dpo_loss",
    "explained_variance",
    "gae",
    "group_centred",
    "group_deviation",
    "group_standardised",
    "implicit_rewards",
    "ipo_loss",
    "kl",
    "leave_one_out",
    "length_normalised_dpo_loss",
    "masked_mean",
    "masked_sum",
    "masked_whiten",
    "pair_loss",
    "plackett_luce_loss",
    "ranking_loss",
    "robust_dpo_loss",
    "simpo_loss",
    "smoothed_dpo_loss",
    "token_logprobs",
    "token_rewards",
    "token_weights",
    "truncated_importance",
]
