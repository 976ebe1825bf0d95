"""Preference losses without a reward model: the policy's log-ratio to its reference is an implicit reward.

At the optimum π* ∝ π_ref·exp(r/β) the reward is r = β log(π*/π_ref) + β log Z(x). In a comparison Z cancels, so
Bradley–Terry on the *implicit rewards* β log(π/π_ref) trains the policy directly (Rafailov et al. 2023,
arXiv:2305.18290, eq. 4 to 7).

Every loss takes the log-probabilities of whole responses, summed over their tokens, and is returned unreduced, one per
prompt. Metrics of a pair, all detached: `chosen_reward` and `rejected_reward`, the implicit rewards of the response
that the label favours (column 0 at a tie) and of the other; `margin`, the one minus the other; `accuracy`, 1 where the
implicit rewards order the pair as the label does, 0 where they reverse it, ½ where either says tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kleash.objectives.bradley_terry import pair_loss, ranking_loss
from kleash.objectives.reduce import Metrics


def implicit_rewards(
    policy: Float[Tensor, "P K"],
    reference: Float[Tensor, "P K"] | None,
    *,
    beta: float,
    lengths: Int[Tensor, "P K"] | None = None,
) -> Float[Tensor, "P K"]:
    """The reward under which a policy would be optimal, up to a constant of the prompt.

    Args:
        policy: log π(y|x), summed over the response.
        reference: log π_ref(y|x); None for a loss without reference (SimPO).
        beta: price of one nat, > 0.
        lengths: tokens in each sum, to make it a mean; None leaves the sum. A response without a token has reward 0.

    Returns:
        β (log π − log π_ref), over the length where there is one.
    """
    ratio = policy if reference is None else policy - reference
    return beta * (ratio if lengths is None else ratio / lengths.clamp(min=1))


def dpo_loss(
    policy: Float[Tensor, "P 2"], reference: Float[Tensor, "P 2"], *, p: Float[Tensor, " P"], beta: float
) -> tuple[Float[Tensor, " P"], Metrics]:
    """Direct preference optimisation: −p log σ(h) − (1 − p) log σ(−h), h = β (log-ratio of column 0 − of column 1).

    Args:
        policy: log π(y|x), summed over the response.
        reference: log π_ref(y|x), likewise.
        p: probability that column 0 is the better one: 1 for a plain pair, ½ for a tie, between for a soft label.
        beta: the KL penalty, > 0. Larger stays closer to the reference.

    Returns:
        One loss per pair, not reduced, least where h = logit(p): infinite at p = 1. Metrics as in the module's
        docstring.

    References:
        Rafailov et al. 2023 (arXiv:2305.18290) eq. 7.
    """
    return _on_rewards(implicit_rewards(policy, reference, beta=beta), p)


def smoothed_dpo_loss(
    policy: Float[Tensor, "P 2"],
    reference: Float[Tensor, "P 2"],
    *,
    p: Float[Tensor, " P"],
    beta: float,
    label_smoothing: float,
) -> tuple[Float[Tensor, " P"], Metrics]:
    """Conservative DPO: labels are taken to be flipped with probability ε, so no margin is pushed to infinity.

    Args:
        policy, reference, p, beta: as in `dpo_loss`.
        label_smoothing: ε, 0 ≤ ε < ½; 0 is `dpo_loss`.

    Returns:
        `dpo_loss` at p(1 − ε) + (1 − p)ε, least where h is the logit of that: bounded at p = 1.

    References:
        Mitchell 2023, A note on DPO with noisy preferences and relationship to IPO (ericmitchell.ai/cdpo.pdf).
    """
    _check_flips(label_smoothing)
    smoothed = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    return _on_rewards(implicit_rewards(policy, reference, beta=beta), smoothed)


def robust_dpo_loss(
    policy: Float[Tensor, "P 2"],
    reference: Float[Tensor, "P 2"],
    *,
    p: Float[Tensor, " P"],
    beta: float,
    label_smoothing: float,
) -> tuple[Float[Tensor, " P"], Metrics]:
    """Robust DPO: from labels flipped with probability ε, an unbiased estimate of the loss on clean ones.

    Conservative DPO adds noise to the labels, this loss removes it: ((1 − ε) L(p) − ε L(1 − p)) / (1 − 2ε), L
    being `dpo_loss`. The loss of a single hard label has no minimum (it falls without bound as h grows); their mean has
    one.

    Args:
        policy, reference, p, beta: as in `dpo_loss`; p is the probability of the noisy labels.
        label_smoothing: ε, the share of flipped labels, 0 ≤ ε < ½; 0 is `dpo_loss`.

    Returns:
        `dpo_loss` at q = (p − ε)/(1 − 2ε), which is not cut to [0, 1]. Least where h = logit(q) for ε < p < 1 − ε.

    Raises:
        ValueError: ε ≥ ½: such labels carry no information, or are inverted.

    References:
        Chowdhury et al. 2024 (arXiv:2403.00409).
    """
    _check_flips(label_smoothing)
    clean = (p - label_smoothing) / (1 - 2 * label_smoothing)  # L is linear in p
    return _on_rewards(implicit_rewards(policy, reference, beta=beta), clean)


def ipo_loss(
    policy: Float[Tensor, "P 2"], reference: Float[Tensor, "P 2"], *, p: Float[Tensor, " P"], beta: float
) -> tuple[Float[Tensor, " P"], Metrics]:
    """Identity preference optimisation: p (Δ − 1/2β)² + (1 − p) (Δ + 1/2β)², Δ the difference of plain log-ratios.

    Args:
        policy, reference, p: as in `dpo_loss`.
        beta: the paper's τ, > 0.

    Returns:
        One loss per pair, not reduced, least where Δ = (2p − 1)/2β: finite for every label.

    References:
        Azar et al. 2023 (arXiv:2310.12036) eq. 17; a soft label is the mean of both hard ones.
    """
    first, second = (policy - reference).unbind(-1)
    gap, target = first - second, 1 / (2 * beta)
    loss = p * (gap - target).square() + (1 - p) * (gap + target).square()
    return loss, _metrics(implicit_rewards(policy, reference, beta=beta), p)


def simpo_loss(
    policy: Float[Tensor, "P 2"],
    lengths: Int[Tensor, "P 2"],
    *,
    p: Float[Tensor, " P"],
    beta: float,
    gamma: float,
) -> tuple[Float[Tensor, " P"], Metrics]:
    """SimPO: the reward is β times the mean log-probability of a token, without reference, with a margin γ.

    Args:
        policy: log π(y|x), summed over the response.
        lengths: tokens in each sum. A response without a token has reward 0.
        p: as in `dpo_loss`.
        beta: scale of the reward, > 0.
        gamma: γ ≥ 0, in units of reward; with a soft label it is demanded of both sides.

    Returns:
        −p log σ(h − γ) − (1 − p) log σ(−h − γ), one per pair, h the difference of the rewards; `margin` is without γ.

    References:
        Meng et al. 2024 (arXiv:2405.14734) eq. 6.
    """
    return _on_rewards(implicit_rewards(policy, None, beta=beta, lengths=lengths), p, margin=gamma)


def length_normalised_dpo_loss(
    policy: Float[Tensor, "P 2"],
    reference: Float[Tensor, "P 2"],
    lengths: Int[Tensor, "P 2"],
    *,
    p: Float[Tensor, " P"],
    beta: float,
) -> tuple[Float[Tensor, " P"], Metrics]:
    """DPO on the mean log-ratio of a token, so that the reward of a response does not grow with its length.

    Its optimum is no longer π*: with different lengths, the prompt's log Z does not cancel.

    Args:
        policy, reference, p: as in `dpo_loss`.
        lengths: tokens in each sum. A response without a token has reward 0.
        beta: the KL penalty, > 0; larger than DPO's by about the length of a response.

    References:
        Lambert et al. 2024 (arXiv:2411.15124).
    """
    return _on_rewards(implicit_rewards(policy, reference, beta=beta, lengths=lengths), p)


def plackett_luce_loss(
    policy: Float[Tensor, "P K"], reference: Float[Tensor, "P K"], ranks: Int[Tensor, "P K"], *, beta: float
) -> tuple[Float[Tensor, " P"], Metrics]:
    """DPO on whole rankings (Plackett–Luce): the best is chosen from all, the next from the rest, and so on.

    Args:
        policy: log π(y|x), summed over the response.
        reference: log π_ref(y|x), likewise.
        ranks: rank of each of the K ≥ 2 responses, 0 the best; all different.
        beta: the KL penalty, > 0.

    Returns:
        −Σ_k log(exp h_k / Σ_{j ≥ k} exp h_j) of each prompt, h the implicit rewards in order; with K = 2 `dpo_loss`.
        Metrics, one per prompt: `chosen_reward` of the best, `rejected_reward` of the last, `margin` and `accuracy` as
        means over its comparisons.

    Raises:
        ValueError: two responses share a rank; the model has no ties.

    References:
        Rafailov et al. 2023 (arXiv:2305.18290) A.3, eq. 20.
    """
    order = ranks.argsort(dim=-1)
    if not (ranks.gather(-1, order).diff() > 0).all():
        raise ValueError("Plackett–Luce has no ties: two responses of a prompt share a rank; compare them in pairs")
    rewards = implicit_rewards(policy, reference, beta=beta)
    ordered = rewards.gather(-1, order)
    earlier = torch.ones(2 * ordered.shape[-1:], dtype=torch.bool, device=ordered.device).tril(-1)  # [k, j]: j < k
    # Row by row: the gradient of `logcumsumexp` loses digits where rewards lie far apart.
    log_totals = ordered[:, None].masked_fill(earlier, -torch.inf).logsumexp(-1)  # log Σ_{j ≥ k} exp h_j
    scores = ordered.detach()
    metrics = ranking_loss(rewards.detach(), ranks)[1]
    metrics |= {"chosen_reward": scores[:, 0], "rejected_reward": scores[:, -1]}
    return (log_totals - ordered).sum(-1), metrics


def _on_rewards(
    rewards: Float[Tensor, "P 2"], p: Float[Tensor, " P"], *, margin: float = 0.0
) -> tuple[Float[Tensor, " P"], Metrics]:
    """Bradley–Terry on implicit rewards. Linear in p, which `robust_dpo_loss` takes out of [0, 1]."""
    return pair_loss(rewards, p=p, margin=margin)[0], _metrics(rewards, p)


def _metrics(rewards: Float[Tensor, "P 2"], p: Float[Tensor, " P"]) -> Metrics:
    rewards = rewards.detach()
    favoured = (p < 0.5).long()[:, None]
    chosen, rejected = (rewards.gather(-1, column).squeeze(-1) for column in (favoured, 1 - favoured))
    accuracy = pair_loss(rewards, p=p)[1]["accuracy"]
    return {"margin": chosen - rejected, "accuracy": accuracy, "chosen_reward": chosen, "rejected_reward": rejected}


def _check_flips(share: float) -> None:
    if not 0 <= share < 0.5:
        raise ValueError(f"label_smoothing {share:g} is a share of flipped labels; it must lie in [0, ½)")


@dataclass(frozen=True)
class PairLoss:
    """A loss of comparisons, with the properties that a stage needs."""

    function: Callable[..., tuple[Float[Tensor, " P"], Metrics]]
    formula: str
    """Of one pair; log-ratio(y) = log π(y|x) − log π_ref(y|x), summed over the tokens of y."""
    needs_reference: bool = True
    per_length: bool = False
    """Whether its implicit rewards are means over tokens."""
    options: tuple[str, ...] = ()
    """Names of its additional arguments."""

    def __call__(
        self,
        policy: Float[Tensor, "P 2"],
        reference: Float[Tensor, "P 2"],
        lengths: Int[Tensor, "P 2"],
        *,
        p: Float[Tensor, " P"],
        beta: float,
        options: Mapping[str, float],
    ) -> tuple[Float[Tensor, " P"], Metrics]:
        """Call the function with the arguments that it takes; `options` may include those of other losses."""
        tensors = [policy] + [reference] * self.needs_reference + [lengths] * self.per_length
        return self.function(*tensors, p=p, beta=beta, **{name: options[name] for name in self.options})


LOSSES: Mapping[str, PairLoss] = {
    "sigmoid": PairLoss(
        dpo_loss,
        "− p log σ(h) − (1 − p) log σ(−h), h = β (log-ratio(y_0) − log-ratio(y_1));"
        " rankings: − Σ_k log(exp h_k / Σ_{j ≥ k} exp h_j), h_k = β log-ratio(y_k)",
    ),
    "smoothed": PairLoss(
        smoothed_dpo_loss,
        "− q log σ(h) − (1 − q) log σ(−h), q = p (1 − ε) + (1 − p) ε, h = β (log-ratio(y_0) − log-ratio(y_1))",
        options=("label_smoothing",),
    ),
    "robust": PairLoss(
        robust_dpo_loss,
        "− q log σ(h) − (1 − q) log σ(−h), q = (p − ε)/(1 − 2ε), h = β (log-ratio(y_0) − log-ratio(y_1))",
        options=("label_smoothing",),
    ),
    "ipo": PairLoss(ipo_loss, "p (Δ − 1/2β)² + (1 − p) (Δ + 1/2β)², Δ = log-ratio(y_0) − log-ratio(y_1)"),
    "simpo": PairLoss(
        simpo_loss,
        "− p log σ(h − γ) − (1 − p) log σ(−h − γ), h = β (log π(y_0)/|y_0| − log π(y_1)/|y_1|), γ = gamma_ratio · β",
        needs_reference=False,
        per_length=True,
        options=("gamma",),
    ),
    "length-normalised": PairLoss(
        length_normalised_dpo_loss,
        "− p log σ(h) − (1 − p) log σ(−h), h = β (log-ratio(y_0)/|y_0| − log-ratio(y_1)/|y_1|)",
        per_length=True,
    ),
}
"""The losses by their name in `kleash dpo --loss`. A loss is a function above, a record here, and its
name in `DPOConfig.loss`."""
