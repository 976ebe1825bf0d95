"""GRPO, Dr. GRPO, RLOO and DAPO: sample a group of responses per prompt, with the group as baseline.

One file and one loss. The papers differ in five settings: how scores become advantages, how tokens are weighed, where
the KL penalty acts, how far the ratio may move, and how groups of equal scores and overlong responses are treated. A
preset is a set of their values. The KL penalty is part of the reward by default, so that the optimum is π* ∝
π_ref·exp(r/β); a test measures how near this file comes to it. In the loss, as the GRPO paper has it, its weight
changes prompt by prompt once advantages are divided by their group's deviation, and k3 leads to another optimum.

    kleash grpo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/grpo --beta 0.05

Left out: a value network (that is `kleash ppo`); ratios of whole responses (GSPO).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kleash.checks.finish import finish_policy
from kleash.checks.first_ratio import check_first
from kleash.checks.open_run import open_run, records_stop
from kleash.checks.rollout_monitor import RolloutMonitor
from kleash.data.batch import GroupBatch
from kleash.models.forward import Live, response_logprobs
from kleash.models.inference import each_micro_batch
from kleash.objectives import (
    clipped_surrogate,
    group_centred,
    group_deviation,
    group_standardised,
    kl,
    leave_one_out,
    masked_sum,
    token_weights,
    truncated_importance,
)
from kleash.rewards.build import AnyReward
from kleash.rollout import (
    Components,
    HeldOutPrompts,
    Rollout,
    Rollouts,
    advantage_metrics,
    build_components,
    merge,
    minibatches,
    read_prompts,
    refuse_advantages,
    rollout_metrics,
)
from kleash.run import RunFolder, StepMetrics
from kleash.stages.training_configs import GRPOConfig
from kleash.stopping import DegenerateRun, GroupScores, KLBudget, Plateau, StopRules, zero_spread
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.loop import Loop, OnStep, State
from kleash.training.model_folder import save_snapshot
from kleash.training.optim import Optimizer

SHOWN = ("reward", "kl", "entropy", "length", "eval_reward")
"""Figures of the progress bar."""

ADVICE = "raise --max-new-tokens if they are good, --beta or --overlong penalise if they run on"
"""What to try where responses are cut off."""

OVERLONG_SHARE = 0.2
"""Share of `max_new_tokens` over which the penalty of long responses rises (DAPO: 4,096 of 20,480 tokens)."""

ROUNDING = 1e-6
"""β·KL below this is rounding, in units of reward. Adam would scale its gradient to a full step."""

ADVANTAGES = {
    "leave-one-out": (leave_one_out, "A_k = R_k − mean(R_j, j ≠ k)"),
    "centred": (group_centred, "A_k = R_k − mean(R)"),
    "standardised": (group_standardised, "A_k = (R_k − mean(R)) / (std(R) + 1e-4)"),
}

WEIGHTS = {
    "token": "Σ over tokens / tokens of the optimiser step",
    "sequence": "mean over responses of the mean over their tokens",
    "constant": "Σ over tokens / (responses · max_new_tokens)",
}


def formulas(config: GRPOConfig) -> dict[str, str]:
    """The formulas of the settings, for run.json (F2)."""
    score = "score" if config.overlong != "penalise" else "score − overlong penalty"
    kl_loss = {
        "reward": "",
        "loss-k3": " + β (π_ref/π − 1 − log(π_ref/π))",
        "loss-k2-response": " + β ½ d_t Σ_t d_t, d_t = log(π/π_ref)",
    }[config.kl_in]
    high = config.clip if config.clip_high is None else config.clip_high
    formula = {
        "reward of a response": f"R = {score} − β Σ_t log(π_old/π_ref)" if config.kl_in == "reward" else f"R = {score}",
        "advantage": ADVANTAGES[config.advantage][1],
        "loss of a token": f"− w min(ρ A, clip(ρ, {1 - config.clip:g}, {1 + high:g}) A){kl_loss}",
        "importance": "ρ = π/π_old, w = min(π_old/π_sampler, 2)",
        "loss": WEIGHTS[config.normalisation],
        "beta": f"{config.beta:g}",
    }
    if config.overlong == "penalise":
        begin, room = (f"{share:g} max_new_tokens" for share in (1 - OVERLONG_SHARE, OVERLONG_SHARE))
        formula["overlong penalty"] = f"clip((length − {begin}) / ({room}), 0, 1)"
    if config.overlong == "mask":
        formula["tokens"] = "those of responses that ended"
    return formula


@records_stop
def run(
    config: GRPOConfig,
    *,
    policy: Live | None = None,
    reward: AnyReward | None = None,
    on_step: OnStep | None = None,
) -> RunFolder:
    """Train a policy against a reward and write a folder that `transformers` loads.

    Args:
        config: the settings.
        policy: a live model and tokenizer to train in place of loading `config.model`.
        reward: a live reward in place of `config.reward`, anything that `as_reward` takes.
        on_step: called after each step is logged, see `Loop`.

    Returns:
        The finished run; metrics.jsonl has a row per rollout, samples.jsonl the responses to the held-out prompts.

    Raises:
        TrainingError: the first ratio is not 1 (F7), or all groups had zero spread for 20 rollouts (F13).
    """
    folder = open_run("grpo", config, model=policy, reward=reward)
    if folder.finished:
        return folder
    any_reward = config.reward if reward is None else reward
    parts = build_components(policy or config.model, any_reward, **config.component_settings())
    prompts, held_out_prompts = read_prompts(parts, folder.note, **config.prompt_settings())
    steps, updates = config.steps(len(prompts)), config.inner_epochs * config.minibatches
    optimizer = Optimizer(parts.policy, steps=steps * updates, **config.optimizer_settings())
    rollouts = Rollouts(parts, prompts, zero_spread=of_one_score, steps=steps, **config.rollout_settings())
    best, groups = BestCheckpoint(folder, config.keep_weights), DegenerateRun()
    stop = StopRules(kl=KLBudget(config.kl_budget), groups=groups, figure=Plateau(config.patience, config.criterion))
    held_out = HeldOutPrompts(parts, held_out_prompts, folder, best, stop.see, **config.held_out_settings(steps))
    state: State = {"model": parts.policy, "optimizer": optimizer, "rollouts": rollouts, "best": best, "stop": stop}
    loop = Loop(folder, total=steps, state=state, shown=SHOWN, on_step=on_step, **config.loop_settings())
    monitor = RolloutMonitor(folder, loop.step, parts.validation_reward, responses=config.log_rollouts)
    folder.note("formulas", **formulas(config))
    folder.note("models", **parts.parameters)
    held_out.measure_start(loop)
    for step, sampled in loop.over(rollouts):
        rollout = with_advantages(sampled, config)
        scores = GroupScores(rollout.filter_scores, rollout.batch.mask)
        loop.stop = stop.see(kl=float(rollout.kl.mean()), groups=scores)
        metrics = rollout_metrics(rollout) | group_metrics(rollout, config.beta) | monitor.see(step, rollout)
        metrics["solved_share"] = groups.solved_share
        for minibatch in minibatches(rollout, config.minibatches, config.inner_epochs, seed=config.seed, step=step):
            figures = update(parts, minibatch, optimizer, config, first="updates" not in metrics)
            metrics = merge(metrics, figures, weight=1 / updates)
        metrics |= loop.evaluated(step, lambda step: held_out.measure(step, beta=config.beta))
        loop.stop = stop.reason
        save_snapshot(folder, step, parts.policy, parts.tokenizer, every=config.snapshot_every)
        row, empty = loop.log(step, metrics), not bool(rollout.batch.mask.any())
        groups.raise_if_dead(end_rate=row["end_rate"], empty=empty, longest=config.max_new_tokens)
    return finish_policy(folder, parts, loop, best, advice=ADVICE, prompts=rollouts.prompts_read)


def of_one_score(rollout: Rollout) -> Bool[Tensor, " P"]:
    """Groups whose responses the reward does not tell apart; the penalties of length and KL do not count (DAPO filters
    by accuracy). Where a composition names a part in `filter_on`, that part decides.
    """
    return zero_spread(rollout.filter_scores)


@torch.no_grad()
def with_advantages(rollout: Rollout, config: GRPOConfig) -> Rollout:
    """Add the advantages. Responses without an opinion of the reward are removed from the mask, and overlong ones if so
    configured.
    """
    opinions = rollout.opinions
    scores = torch.where(opinions, penalised(rollout, config), 0)
    if config.resample_zero_spread:  # those that could not be replaced are not trained on for their lengths
        scores = torch.where(of_one_score(rollout)[:, None], 0, scores)
    if config.kl_in == "reward":
        rests = zero_spread(scores.where(opinions, math.nan)) & ~penalty_acts(rollout, config).any(-1)
        scores = torch.where(rests[:, None], scores, scores - config.beta * rollout.kl)
    advantages = ADVANTAGES[config.advantage][0](scores, mask=opinions)
    per_token = advantages[..., None].expand(rollout.batch.shape)
    refuse_advantages(rollout, beta=config.beta, advantages=per_token)
    batch = replace(rollout.batch, advantages=per_token).without(~opinions)
    if config.overlong == "mask":
        batch = batch.without(~rollout.finished.bool())
    return replace(rollout, batch=batch)


def penalty_acts(rollout: Rollout, config: GRPOConfig) -> Bool[Tensor, "P K"]:
    """Whether the KL penalty of a response is above rounding."""
    return (config.beta * rollout.kl).abs() >= ROUNDING


def has_gradient(minibatch: Rollout, config: GRPOConfig) -> bool:
    """Whether anything but rounding moves the policy: an advantage, or a KL penalty in the loss."""
    batch = minibatch.batch
    assert batch.advantages is not None
    moves = (batch.advantages != 0) & batch.mask
    if config.kl_in != "reward":
        moves |= penalty_acts(minibatch, config)[..., None] & batch.mask
    return bool(moves.any())


def penalised(rollout: Rollout, config: GRPOConfig) -> Float[Tensor, "P K"]:
    """Scores minus the overlong penalty (DAPO eq. 13)."""
    if config.overlong != "penalise":
        return rollout.scores
    room = OVERLONG_SHARE * config.max_new_tokens
    return rollout.scores - ((rollout.batch.lengths - (config.max_new_tokens - room)) / room).clamp(0, 1)


def update(
    parts: Components, minibatch: Rollout, optimizer: Optimizer, config: GRPOConfig, *, first: bool = False
) -> StepMetrics:
    """One optimiser step.

    A token's weight is computed for the whole step and summed over micro-batches, so the split into micro-batches has
    no effect (F1). Where no advantage differs from 0 and no KL penalty is above rounding, no step is taken.

    Args:
        parts: the policy.
        minibatch: the groups of the step.
        optimizer: of the policy.
        config: settings of the loss.
        first: whether this is the first update of the rollout, where the ratio must be 1 (F7).

    Raises:
        TrainingError: the ratio is not 1 where it must be; the message names the cause.
    """
    batch = minibatch.batch
    step_mask = batch.mask.flatten(0, 1)
    weights = token_weights(step_mask, config.normalisation, longest=config.max_new_tokens).reshape(batch.shape)
    tokens = step_mask.sum().clamp(min=1)
    metrics: StepMetrics = {}
    for part in each_micro_batch(replace(batch, weights=weights), max_tokens=parts.compute.micro_batch_tokens):
        mask = part.mask.flatten(0, 1)
        old_logprobs, reference_logprobs, sampler_logprobs, advantages, weight = rows_of(part)
        with parts.compute.autocast(mask.device):
            logprobs, entropy = response_logprobs(parts.policy, part, temperature=config.temperature)
        logprobs, entropy = logprobs.flatten(0, 1), entropy.flatten(0, 1)
        if first:
            ratio = check_first(parts.policy, part, logprobs.detach(), old_logprobs, config.temperature, config.dtype)
            metrics["first_ratio"] = torch.maximum(metrics.get("first_ratio", torch.ones_like(ratio)), ratio)
        importance = truncated_importance(old_logprobs, sampler_logprobs, mask=mask)
        loss, surrogate = clipped_surrogate(
            logprobs, old_logprobs, advantages, clip=config.clip, clip_high=config.clip_high, mask=mask
        )
        policy_loss = (weight * importance * loss).sum()
        kl_loss = torch.zeros((), device=mask.device)
        if config.kl_in != "reward":
            estimator = kl.k3 if config.kl_in == "loss-k3" else kl.k2_of_responses
            kl_loss = config.beta * (weight * estimator(logprobs, reference_logprobs, mask=mask)).sum()
        optimizer.backward(policy_loss + kl_loss)
        sums = {
            "policy_loss": policy_loss.detach(),
            "kl_loss": kl_loss.detach(),
            "entropy": masked_sum(entropy, mask) / tokens,
            "clip_fraction": surrogate["clip_fraction"].sum() / tokens,
            "approx_kl": surrogate["approx_kl"].sum() / tokens,
        }
        metrics = merge(metrics, sums, weight=1.0)
    if not has_gradient(minibatch, config):
        return {**metrics, **optimizer.skip(), "updates": 0}
    return {**metrics, **optimizer.step(), "updates": 1}


def rows_of(part: GroupBatch) -> list[Float[Tensor, "R T"]]:
    """Log-probabilities of old policy, reference and sampler, advantages and weights, one row per response."""
    tensors = (part.old_logprobs, part.reference_logprobs, part.sampler_logprobs, part.advantages, part.weights)
    return [tensor.flatten(0, 1) for tensor in tensors if tensor is not None]


def group_metrics(rollout: Rollout, beta: float) -> StepMetrics:
    """Share of groups with zero spread, and β. Formulas: docs/stages/grpo.md."""
    assert rollout.batch.advantages is not None
    advantages = rollout.batch.advantages[..., 0]
    return {
        "beta": beta,
        "zero_spread_share": rollout.zero_spread_groups / rollout.sampled_groups,
        "reward_spread": group_deviation(rollout.scores, mask=rollout.opinions).mean(),
        **advantage_metrics(advantages, rollout.opinions),
    }
