"""Losses and estimators as pure functions: tensors in, tensors out.

Every loss comes back unreduced, with its metrics as detached tensors; who reduces it divides by what the whole step
holds.
"""

from __future__ import annotations

from kleash.objectives import kl
from kleash.objectives.advantage import gae, group_centred, group_standardised, leave_one_out, token_rewards
from kleash.objectives.bradley_terry import pair_loss, ranking_loss
from kleash.objectives.logprobs import token_logprobs
from kleash.objectives.policy import clipped_surrogate, truncated_importance
from kleash.objectives.reduce import Metrics, Normalisation, masked_mean, masked_sum, masked_whiten, token_weights
from kleash.objectives.value import clipped_value_loss, explained_variance

__all__ = [
    "Metrics",
    "Normalisation",
    "clipped_surrogate",
    "clipped_value_loss",
    "explained_variance",
    "gae",
    "group_centred",
    "group_standardised",
    "kl",
    "leave_one_out",
    "masked_mean",
    "masked_sum",
    "masked_whiten",
    "pair_loss",
    "ranking_loss",
    "token_logprobs",
    "token_rewards",
    "token_weights",
    "truncated_importance",
]
