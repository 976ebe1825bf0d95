"""KL(π ‖ π_ref), the quantity of the KL penalty: three estimators from samples, the exact value, and the controller of
β.

Every figure names its estimator; figures of different estimators are never compared (F14).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.objectives.reduce import masked_sum


def k1(
    policy: Float[Tensor, "*S"], reference: Float[Tensor, "*S"], *, mask: Bool[Tensor, "*S"] | None = None
) -> Float[Tensor, "*S"]:
    """The log-ratio: unbiased, of either sign.

    In the *reward* its policy gradient is the exact gradient of KL(π ‖ π_ref). As a *loss* it does nothing: its
    gradient is the score function, of mean zero.

    Args:
        policy: log π of tokens sampled from π.
        reference: log π_ref of the same tokens.
        mask: True where a token counts; None counts all.

    Returns:
        log π − log π_ref of each token, not reduced; 0 where masked.

    References:
        J. Schulman, Approximating KL divergence, 2020 (joschu.net/blog/kl-approx.html).
    """
    return _log_ratio(policy, reference, mask)


def k2(
    policy: Float[Tensor, "*S"], reference: Float[Tensor, "*S"], *, mask: Bool[Tensor, "*S"] | None = None
) -> Float[Tensor, "*S"]:
    """Half the squared log-ratio: never negative, biased.

    Its value is biased, its gradient as a *loss* is not: log-ratio · ∇log π is in expectation over fresh samples the
    exact gradient of KL(π ‖ π_ref) — of one token, or of a whole response if the log-probabilities are summed *before*
    the call. Summed after it, the gradient of a token ignores its effect on later tokens.

    Args:
        policy: log π of tokens sampled from π.
        reference: log π_ref of the same tokens.
        mask: True where a token counts; None counts all.

    Returns:
        ½ (log π − log π_ref)² of each token, not reduced; 0 where masked.

    References:
        J. Schulman, Approximating KL divergence, 2020 (joschu.net/blog/kl-approx.html); on its gradient, Liu et al.
        2025 (arXiv:2510.01555).
    """
    return _log_ratio(policy, reference, mask).square() / 2


def k3(
    policy: Float[Tensor, "*S"], reference: Float[Tensor, "*S"], *, mask: Bool[Tensor, "*S"] | None = None
) -> Float[Tensor, "*S"]:
    """The log-ratio with a control variate: unbiased, never negative, and heavy-tailed where π_ref ≫ π.

    Unbiased as a *number*. As a *loss* (the GRPO paper's use) it minimises another divergence: its gradient, (1 −
    π_ref/π) ∇log π, is in expectation that of the forward KL(π_ref ‖ π).

    Args:
        policy: log π of tokens sampled from π.
        reference: log π_ref of the same tokens.
        mask: True where a token counts; None counts all.

    Returns:
        π_ref/π − 1 − log(π_ref/π) of each token, not reduced; 0 where masked.

    References:
        J. Schulman, Approximating KL divergence, 2020 (joschu.net/blog/kl-approx.html); Shao et al. 2024
        (arXiv:2402.03300) eq. 4; on its gradient, Tang & Munos 2025 (arXiv:2506.09477).
    """
    ratio = _log_ratio(policy, reference, mask)
    return torch.expm1(-ratio) + ratio  # expm1: near π = π_ref the ones cancel and ratio²/2 remains


def k2_of_responses(
    policy: Float[Tensor, "*R T"], reference: Float[Tensor, "*R T"], *, mask: Bool[Tensor, "*R T"] | None = None
) -> Float[Tensor, "*R T"]:
    """`k2` of whole responses, distributed over their tokens: the loss whose gradient is that of the reverse KL of
    responses.

    With d_t the log-ratio of a token and D = Σ_t d_t, the tokens' shares ½ d_t D sum to ½ D², whose gradient D ∇log
    π(y) is in expectation over fresh samples exactly ∇KL(π ‖ π_ref). `k2` or `k3` of single tokens ignores the effect
    on later tokens, and `k3` minimises another divergence as well.

    Args:
        policy: log π of tokens sampled from π, with gradient.
        reference: log π_ref of the same tokens.
        mask: True where a token counts; None counts all.

    Returns:
        ½ d_t D of each token, of either sign, not reduced; 0 where masked. Weights that are constant within a response
        keep the gradient's direction for it.

    References:
        Liu et al. 2025 (arXiv:2510.01555) on k2 as a loss; Tang & Munos 2025 (arXiv:2506.09477) on responses.
    """
    ratio = _log_ratio(policy, reference, mask)
    return ratio * ratio.sum(-1, keepdim=True) / 2


def exact(policy_logits: Float[Tensor, "*S V"], reference_logits: Float[Tensor, "*S V"]) -> Float[Tensor, "*S"]:
    """KL(π ‖ π_ref) at each position, summed over the whole vocabulary: no sampling noise of the token.

    A sequence's KL is the expectation *over prefixes sampled from π* of the sum of these.

    Args:
        policy_logits: logits of π; those that are −inf are tokens that π never takes, and count 0.
        reference_logits: logits of π_ref. Gradients flow to both; detach the fixed one.

    Returns:
        Σ_v π(v) log(π(v)/π_ref(v)) of each position, not reduced, in float32 or wider.
    """
    policy, reference = (
        logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        for logits in (policy_logits, reference_logits)
    )
    probability = policy.exp()
    return (probability * torch.where(probability > 0, policy - reference, 0)).sum(-1)


def per_sequence(x: Float[Tensor, "*R T"], mask: Bool[Tensor, "*R T"]) -> Float[Tensor, "*R"]:
    """Sum over the tokens of each response: log π(y|x) is a sum, so the KL of responses is one too, and not a mean.

    Args:
        x: a number for each token, such as `k1`.
        mask: True where a token counts.

    Returns:
        One sum per response; 0 for a fully masked response.
    """
    return masked_sum(x, mask, dim=-1)


def adapt_beta(beta: float, kl: float, *, target: float, horizon: float, samples: int) -> float:
    """One step of the controller that adapts β so that the KL reaches a target.

    Args:
        beta: the price of a nat so far, > 0.
        kl: mean KL of the responses just sampled, in nats a response (k1, per sequence).
        target: the target KL, in nats a response, > 0.
        horizon: samples over which a full error would change β by its own size. Smaller reacts faster.
        samples: responses the KL was measured on, fewer than 5 horizons.

    Returns:
        β (1 + clip(kl/target − 1, ±0.2) · samples/horizon).

    Raises:
        ValueError: the KL is not a number, or with so many samples β could become zero, where it would stay.

    References:
        Ziegler et al. 2019 (arXiv:1909.08593) §2.2; the horizon is that of the released code.
    """
    if math.isnan(kl):
        raise ValueError("beta cannot be adapted to a KL that is not a number; look for NaN in the log-probabilities")
    if samples >= 5 * horizon:
        raise ValueError(f"{samples} samples a step need a horizon above {samples / 5:g}, got {horizon:g}; raise it")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * samples / horizon)


def _log_ratio(policy: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return policy - reference
    return torch.where(mask, policy, 0) - torch.where(mask, reference, 0)
