"""PPO: train a policy against a reward with a KL penalty of β per nat from the reference.

Sample, score, estimate advantages with a learned value function, take clipped steps. The KL penalty is part of the
reward, token by token (k1), so that the optimum is π* ∝ π_ref·exp(r/β), and on a problem small enough to enumerate a
test measures how near this file comes to it.

    kleash ppo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/ppo --beta 0.05

Left out: one backbone for policy and value (the value network starts from the reward model, as InstructGPT and N+ do).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from kleash.checks.finish import finish_policy
from kleash.checks.first_ratio import check_first
from kleash.checks.open_run import open_run, records_stop
from kleash.checks.rollout_monitor import RolloutMonitor
from kleash.models.forward import Live, response_logprobs
from kleash.models.heads import values
from kleash.models.inference import each_micro_batch, in_micro_batches
from kleash.objectives import (
    clipped_surrogate,
    clipped_value_loss,
    explained_variance,
    gae,
    kl,
    masked_mean,
    masked_sum,
    masked_whiten,
    token_rewards,
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
from kleash.stages.training_configs import PPOConfig
from kleash.stopping import KLBudget, Plateau, StopRules
from kleash.training.actor_critic import ActorCritic
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.loop import Loop, OnStep, State
from kleash.training.model_folder import save_snapshot
from kleash.training.pretraining import PretrainingMix

SHOWN = ("reward", "kl", "entropy", "length", "eval_reward")
"""Figures of the progress bar."""

ADVICE = "raise --max-new-tokens if they are good, --beta or --missing-eos-score if they run on"
"""What to try where responses are cut off."""

FORMULA = {
    "reward": "r_t = − β (log π_old(y_t) − log π_ref(y_t)) + [t last] score",
    "advantage": "GAE(γ, λ) of r_t, whitened over the rollout's tokens where whiten_advantages",
    "policy loss": "− min(ρ A, clip(ρ, 1 ± clip) A), mean over the minibatch's tokens",
    "value loss": "value_coefficient · ½ max((V − R)², (clip(V, V_old ± value_clip) − R)²), mean over the same",
}


@records_stop
def run(
    config: PPOConfig,
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
    """
    folder = open_run("ppo", config, model=policy, reward=reward)
    if folder.finished:
        return folder
    any_reward = config.reward if reward is None else reward
    parts = build_components(policy or config.model, any_reward, **config.component_settings())
    prompts, held_out_prompts = read_prompts(parts, folder.note, **config.prompt_settings())
    pretraining = PretrainingMix(config.pretraining_data, parts.policy, parts.tokenizer, **config.mix_settings())
    steps, updates = config.steps(len(prompts)), config.inner_epochs * config.minibatches
    optimizers = ActorCritic(parts.policy, parts.critic, steps=steps * updates, **config.actor_critic_settings())
    controller = KLController(config.beta, config.target_kl, config.kl_horizon)
    rollouts = Rollouts(parts, prompts, batch_size=config.batch_size, seed=config.seed, steps=steps)
    best = BestCheckpoint(folder, config.keep_weights)
    stop = StopRules(kl=KLBudget(config.kl_budget), figure=Plateau(config.patience, config.criterion))
    held_out = HeldOutPrompts(parts, held_out_prompts, folder, best, stop.see, **config.held_out_settings(steps))
    state: State = {"kl_controller": controller, "rollouts": rollouts, "best": best, "stop": stop, **optimizers.state}
    loop = Loop(folder, total=steps, state=state, shown=SHOWN, on_step=on_step, **config.loop_settings())
    monitor = RolloutMonitor(folder, loop.step, parts.validation_reward, responses=config.log_rollouts)
    folder.note("formulas", **FORMULA)
    folder.note("models", **parts.parameters)
    held_out.measure_start(loop)
    for step, sampled in loop.over(rollouts):
        rollout = with_advantages(sampled, parts, config, beta=controller.beta)
        metrics = rollout_metrics(rollout) | value_metrics(rollout, controller.beta) | monitor.see(step, rollout)
        loop.stop = stop.see(kl=float(metrics["kl"]))
        for minibatch in minibatches(rollout, config.minibatches, config.inner_epochs, seed=config.seed, step=step):
            figures = update(parts, minibatch, optimizers, pretraining, config, first="updates" not in metrics)
            metrics = merge(metrics, figures, weight=1 / updates)
        controller.see(float(metrics["kl"]), responses=len(rollout.groups))
        # one β, so that figures can be compared
        metrics |= loop.evaluated(step, lambda step: held_out.measure(step, beta=config.beta))
        loop.stop = stop.reason
        save_snapshot(folder, step, parts.policy, parts.tokenizer, every=config.snapshot_every)
        loop.log(step, metrics)
    results = {"beta": controller.beta, "prompts": rollouts.prompts_read}
    return finish_policy(folder, parts, loop, best, average=optimizers.average, advice=ADVICE, **results)


@dataclass
class KLController:
    """β, adapted to a target KL if there is one (Ziegler et al. 2019, arXiv:1909.08593, §2.2)."""

    beta: float
    target: float | None
    """Nats a response."""
    horizon: float
    """Responses over which a full error changes β by its own size."""

    def see(self, kl_per_response: float, *, responses: int) -> None:
        """Adapt β to the KL of a rollout."""
        if self.target is not None:
            self.beta = kl.adapt_beta(
                self.beta, kl_per_response, target=self.target, horizon=self.horizon, samples=responses
            )

    def state_dict(self) -> dict[str, float]:
        """The current β."""
        return {"beta": self.beta}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        """Restore the state of `state_dict`."""
        self.beta = state_dict["beta"]


@torch.no_grad()
def with_advantages(rollout: Rollout, parts: Components, config: PPOConfig, *, beta: float) -> Rollout:
    """Add advantages and returns (generalised advantage estimation). K is 1, so rows are R = P. Responses without an
    opinion of the reward are removed from the mask.
    """
    batch, critic = rollout.batch.without(~rollout.opinions), parts.critic
    mask = batch.mask[:, 0]
    expected = in_micro_batches(batch, lambda part: values(critic, part), compute=parts.compute)[:, 0]
    scores = torch.where(rollout.opinions, rollout.scores, 0)[:, 0]
    if config.reward_clip is not None:
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
    if config.missing_eos_score is not None:
        scores = torch.where(rollout.finished[:, 0].bool(), scores, config.missing_eos_score)
    rewards = token_rewards(scores, rollout.kl_per_token[:, 0], beta=beta, mask=mask)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, expected, gamma=config.gamma, lam=config.lam, mask=mask)
    if config.whiten_advantages:
        advantages = masked_whiten(advantages, mask)
    columns = [tensor[:, None] for tensor in (expected, returns, advantages)]
    names = dict(zip(("values", "returns", "advantages"), columns, strict=True))
    refuse_advantages(replace(rollout, batch=batch), beta=beta, critic=critic, **names)
    return replace(rollout, batch=replace(batch, values=columns[0], returns=columns[1], advantages=columns[2]))


def update(
    parts: Components,
    minibatch: Rollout,
    optimizers: ActorCritic,
    pretraining: PretrainingMix,
    config: PPOConfig,
    *,
    first: bool = False,
) -> StepMetrics:
    """One optimiser step of policy and value network.

    Losses are sums over micro-batches divided by the step's tokens, so the split into micro-batches has no effect (F1).

    Args:
        parts: policy and value network.
        minibatch: the groups of the step.
        optimizers: of both.
        pretraining: demonstrations of the pretraining loss.
        config: coefficients and clips.
        first: whether this is the first update of the rollout, where the ratio must be 1 (F7).

    Raises:
        TrainingError: the ratio is not 1 where it must be; the message names the cause.
    """
    tokens = max(1, int(minibatch.batch.mask.sum()))
    metrics: StepMetrics = {}
    for part in each_micro_batch(minibatch.batch, max_tokens=parts.compute.micro_batch_tokens):
        mask = part.mask[:, 0]
        old_logprobs, advantages, old_values, returns = (
            tensor[:, 0]
            for tensor in (part.old_logprobs, part.advantages, part.values, part.returns)
            if tensor is not None
        )
        with parts.compute.autocast(mask.device):
            logprobs, entropy = response_logprobs(parts.policy, part, temperature=config.temperature)
            expected = values(parts.critic, part)[:, 0]
        logprobs = logprobs[:, 0]
        if first:
            ratio = check_first(parts.policy, part, logprobs.detach(), old_logprobs, config.temperature, config.dtype)
            metrics["first_ratio"] = torch.maximum(metrics.get("first_ratio", torch.ones_like(ratio)), ratio)
        loss, surrogate = clipped_surrogate(logprobs, old_logprobs, advantages, clip=config.clip, mask=mask)
        value_loss, value_figures = clipped_value_loss(
            expected.float(), old_values, returns, clip=config.value_clip, mask=mask
        )
        policy_loss, value_loss = masked_sum(loss, mask) / tokens, masked_sum(value_loss, mask) / tokens
        optimizers.policy.backward(policy_loss)
        optimizers.value.backward(config.value_coefficient * value_loss)
        sums = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": masked_sum(entropy[:, 0], mask) / tokens,
            "clip_fraction": surrogate["clip_fraction"].sum() / tokens,
            "value_clip_fraction": value_figures["clip_fraction"].sum() / tokens,
            "approx_kl": surrogate["approx_kl"].sum() / tokens,
        }
        metrics = merge(metrics, sums, weight=1.0)
    if not bool(minibatch.batch.mask.any()):  # the reward has no opinion of any of these responses
        return {**metrics, **optimizers.skip(), "updates": 0}
    return {**metrics, **pretraining.backward(optimizers.policy), **optimizers.step(), "updates": 1}


def value_metrics(rollout: Rollout, beta: float) -> StepMetrics:
    """Figures of the value network, and β. Formulas: docs/stages/ppo.md."""
    batch, mask = rollout.batch, rollout.batch.mask[:, 0]
    assert batch.values is not None and batch.returns is not None
    expected, returns = batch.values[:, 0], batch.returns[:, 0]
    return {
        "beta": beta,
        "explained_variance": explained_variance(expected, returns, mask=mask),
        "value_mean": masked_mean(expected, mask),
        **advantage_metrics(returns - expected, mask),  # before whitening
    }
