"""PPO on a leash: climb the reward, and pay β for every nat of KL from the reference.

Sample, score, estimate advantages with a learned value function, take clipped steps. The leash stands in the reward,
token by token (k1), so that the optimum is π* ∝ π_ref·exp(r/β), and on a problem small enough to enumerate a test
measures how near this file comes to it.

    kleash ppo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/ppo --beta 0.05

Left out: one backbone for policy and value (the value network starts from the reward model, as InstructGPT and N+ do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import ratio
from kleash.checks.gates import gate_in
from kleash.data.batch import GroupBatch, collate
from kleash.data.batching import batch_at, microbatches
from kleash.data.chat import encode_all, end_ids
from kleash.data.group import EncodedGroup, Group
from kleash.data.split import demonstration, imitated, read_usable
from kleash.models.forward import response_logprobs
from kleash.models.heads import ValueModel, values
from kleash.models.load import autocast, context_length, load_policy, save_model
from kleash.models.lora import merge_lora
from kleash.objectives import kl
from kleash.objectives.advantage import gae, token_rewards
from kleash.objectives.policy import clipped_surrogate
from kleash.objectives.reduce import masked_mean, masked_sum, masked_whiten
from kleash.objectives.value import clipped_value_loss, explained_variance
from kleash.progress import Progress
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward
from kleash.run import RunFolder, derive_seed
from kleash.sampling.local import LocalSampler
from kleash.stages import rollouts
from kleash.stages.artifacts import inputs_of, model_card, parameters_held, save_snapshot
from kleash.stages.rollouts import (
    SHOWN,
    Watch,
    accumulate,
    advantage_figures,
    build_rewards,
    evaluate,
    in_parts,
    load_reference,
    minibatches,
    parts_of,
    read_prompts,
    rollout_logprobs,
    sample,
    summary,
    verdict,
)
from kleash.stages.trainable import make_trainable
from kleash.stages.training_configs import PPOConfig
from kleash.training import checkpoint
from kleash.training.ema import Average
from kleash.training.optim import Optimizer
from kleash.training.selection import Selection
from kleash.training.trackers import Trackers, require

FORMULA = {
    "reward": "r_t = − β (log π_old(y_t) − log π_ref(y_t)) + [t last] score",
    "advantage": "GAE(γ, λ) of r_t, whitened over the rollout's tokens where whiten_advantages",
    "policy loss": "− min(ρ A, clip(ρ, 1 ± clip) A), mean over the minibatch's tokens",
    "value loss": "value_coefficient · ½ max((V − R)², (clip(V, V_old ± value_clip) − R)²), mean over the same",
}


@dataclass(frozen=True)
class Rollout:
    """One response a prompt, scored: what the inner epochs learn from. Rows R = P."""

    batch: GroupBatch
    """[P, 1, T], sampled by the policy as it stood."""
    groups: list[Group]
    scores: Float[Tensor, " R"]
    """The reward as it was given, before clips and penalties."""
    parts: dict[str, Float[Tensor, " R"]]
    """What the reward is made of, by name; empty where it is one thing."""
    old_logprobs: Float[Tensor, "R T"]
    drift: Float[Tensor, "R T"]
    """k1 of each token."""
    values: Float[Tensor, "R T"]
    advantages: Float[Tensor, "R T"]
    returns: Float[Tensor, "R T"]
    raw: dict[str, Float[Tensor, ""]]
    """Mean and standard deviation over tokens of the advantages before whitening."""

    @property
    def scored(self) -> tuple[Float[Tensor, "R 1"], dict[str, Float[Tensor, "R 1"]], Float[Tensor, "R 1"]]:
        """Scores, their parts and the KL of each response, as [P, K]."""
        drift = kl.per_sequence(self.drift, self.batch.mask[:, 0])
        return self.scores[:, None], {name: part[:, None] for name, part in self.parts.items()}, drift[:, None]


def run(
    config: PPOConfig,
    *,
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    reward: Reward | None = None,
) -> RunFolder:
    """Train a policy against a reward and write a folder that `transformers` loads.

    Args:
        config: the settings.
        policy: a live model and tokenizer to train in place of loading `config.model`.
        reward: a live reward in place of `config.reward`.

    Returns:
        The finished run; metrics.jsonl has a row a rollout, samples.jsonl the responses to the held-out prompts.
    """
    require(config.trackers)
    folder = RunFolder.open(config.out, stage="ppo", config=config, inputs=inputs_of(config, model=policy))
    if folder.finished:
        return folder
    gate_in(folder, role="model", parent=config.model, force=config.force)
    gate_in(folder, role="reward", parent=config.reward, force=config.force)
    model, tokenizer = policy or load_policy(config.model, device=config.device)
    prompts, held_out = read_prompts(config, model, tokenizer)
    reference = load_reference(config, model)
    reward, hold_out, gold = build_rewards(config, tokenizer, reward)
    critic = _critic(model, reward, config)
    make_trainable(model, config)
    make_trainable(critic.decoder, config)
    pretraining = _pretraining(config, model, tokenizer)
    sampler = LocalSampler(
        model,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        end_ids=end_ids(tokenizer),
    )
    actors = Actors(config, model, tokenizer, reference, reward, sampler, hold_out, gold, critic=critic)
    steps = config.steps(len(prompts))
    folder.note("formulas", **FORMULA)
    folder.note(
        "models", **parameters_held(policy=model, reference=reference, reward=reward, value=critic, hold_out=hold_out)
    )

    updates = steps * config.inner_epochs * config.minibatches
    settings = config.optimizer_settings()
    optimizer = Optimizer(model, steps=updates, **settings)
    value_rate = config.value_learning_rate if config.value_learning_rate is not None else config.learning_rate
    value_optimizer = Optimizer(critic, steps=updates, **settings | {"learning_rate": value_rate})
    average = Average(model, config.ema_decay)
    parts: checkpoint.Parts = {
        "model": model, "value": critic, "optimizer": optimizer, "value_optimizer": value_optimizer,
        "average": average.tensors,
    }  # fmt: skip
    state = checkpoint.restore(folder, parts)
    beta = state.get("beta", config.beta)
    done = state["step"]
    selection = Selection(folder, config.keep_weights, step=state.get("best_step", 0), least=state.get("best_figure"))
    watch = Watch(actors, folder, state)

    def keep(step: int) -> None:
        checkpoint.save(folder, step, parts, keep=config.keep_states, beta=beta, **selection.numbers, **watch.numbers)

    if done == 0 and held_out and config.eval_every:
        folder.log(0, evaluate(actors, held_out, folder, 0))
    with Progress(steps, "ppo", start=done) as progress, Trackers(config.trackers, folder) as trackers:
        while done < steps and not watch.over:
            step = done + 1
            rows = batch_at(step - 1, len(prompts), config.batch_size, config.seed)
            rollout = collect(actors, [prompts[row] for row in rows], beta=beta, step=step)
            metrics = describe(rollout, beta) | watch.see(step, rollout.groups, *rollout.scored)
            for epoch in range(config.inner_epochs):
                for part in minibatches(config, len(rows), step, epoch):
                    first = not metrics.get("updates")
                    extra = _pretraining_batch(config, pretraining, optimizer.taken)
                    update = learn(actors, rollout, part, optimizer, value_optimizer, extra=extra, first=first)
                    average.update(model)
                    accumulate(metrics, update, 1 / (config.inner_epochs * config.minibatches))
            if config.target_kl is not None:
                beta = kl.adapt_beta(
                    beta, float(metrics["kl"]), target=config.target_kl, horizon=config.kl_horizon, samples=len(rows)
                )
            if held_out and (config.due(step, steps) or watch.over):
                metrics |= evaluate(actors, held_out, folder, step)
                selection.offer(model, step, watch.measured(metrics, beta))
            if config.snapshot_every and step % config.snapshot_every == 0:
                save_snapshot(folder, step, model, tokenizer)
            row = folder.log(step, metrics)
            trackers.log(step, row)
            progress.update(step, **{name: row[name] for name in SHOWN if row.get(name) is not None})
            done = step
            if step % config.save_interval(steps) == 0 and step < steps:
                keep(step)

    keep(done)
    chosen = selection.take(model, done)
    if config.keep_weights == "last":
        average.take(model)
    verdict(folder, advice="raise --max-new-tokens if they are good, --beta or --missing-eos-score if they run on")
    merge_lora(model)
    save_model(folder.path, model, tokenizer, model_card(folder, summary(folder)))
    ended = watch.stopping.reason or "all rollouts done"
    return folder.finish(step=chosen, ended=ended, beta=beta, prompts=len(prompts), near_ties=sampler.near_ties)


@dataclass(frozen=True)
class Actors(rollouts.Actors):
    """Who takes part in a run, the value network with them."""

    config: PPOConfig
    critic: ValueModel = field(kw_only=True)


@torch.no_grad()
def collect(actors: Actors, prompts: Sequence[EncodedGroup], *, beta: float, step: int) -> Rollout:
    """Sample a response for each prompt, score it, and work out what was better than expected."""
    config = actors.config
    seed = derive_seed(config.seed, "rollout", step)
    batch, groups, scores, score_parts = sample(actors, prompts, group_size=1, seed=seed)
    mask, scores = batch.mask[:, 0], scores[:, 0]
    parts = {name: part[:, 0] for name, part in score_parts.items()}
    old_logprobs = rollout_logprobs(actors, batch)[:, 0]
    drift = kl.k1(old_logprobs, rollouts.reference_logprobs(actors, batch)[:, 0])
    state_values = in_parts(actors, batch, lambda part: values(actors.critic, part))[:, 0]

    shaped = scores if config.reward_clip is None else scores.clamp(-config.reward_clip, config.reward_clip)
    if config.missing_eos_score is not None:
        ended = torch.tensor([group.responses[0].finished for group in groups], device=shaped.device)
        shaped = torch.where(ended, shaped, config.missing_eos_score)
    rewards = token_rewards(shaped, drift, beta=beta, mask=mask)
    if config.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, state_values, gamma=config.gamma, lam=config.lam, mask=mask)
    raw = advantage_figures(advantages, mask)
    if config.whiten_advantages:
        advantages = masked_whiten(advantages, mask)
    return Rollout(batch, groups, scores, parts, old_logprobs, drift, state_values, advantages, returns, raw)


def learn(
    actors: Actors,
    rollout: Rollout,
    rows: Sequence[int],
    optimizer: Optimizer,
    value_optimizer: Optimizer,
    *,
    extra: Sequence[EncodedGroup] = (),
    first: bool = False,
) -> dict[str, Any]:
    """One optimiser step of policy and value network on some rows of a rollout.

    Losses are sums over micro-batches divided by the rows' tokens, so how memory splits them changes nothing (F1).

    Args:
        actors: who takes part.
        rollout: what to learn from.
        rows: which of its rows.
        optimizer, value_optimizer: of the policy and of the value network.
        extra: demonstrations whose likelihood is kept up (PPO-ptx).
        first: nothing has been updated since the rollout, so the ratio must be 1 (F7).

    Raises:
        TrainingError: the ratio is not 1 where it must be; the message names the cause.
    """
    config, device = actors.config, actors.policy.device
    tokens = int(rollout.batch.mask[list(rows)].sum())
    totals: dict[str, Any] = {}
    for part in parts_of(rollout.batch, rows, config.micro_batch_tokens):
        index = torch.tensor(part, device=device)
        batch = rollout.batch.select(index)
        mask, width = batch.mask[:, 0], batch.mask.shape[-1]
        old_logprobs = rollout.old_logprobs[index, :width]
        with autocast(config.dtype, device):
            logprobs, entropy = response_logprobs(actors.policy, batch, temperature=config.temperature)
            predicted = values(actors.critic, batch)[:, 0]
        logprobs = logprobs[:, 0]
        if first:
            totals["first_ratio"] = torch.maximum(
                totals.get("first_ratio", torch.ones((), device=device)),
                ratio.check_first(
                    actors.policy, batch, logprobs.detach(), old_logprobs, config.temperature, config.dtype
                ),
            )
        loss, surrogate = clipped_surrogate(
            logprobs, old_logprobs, rollout.advantages[index, :width], clip=config.clip, mask=mask
        )
        value_loss, value_metrics = clipped_value_loss(
            predicted.float(),
            rollout.values[index, :width],
            rollout.returns[index, :width],
            clip=config.value_clip,
            mask=mask,
        )
        policy_loss, value_loss = masked_sum(loss, mask) / tokens, masked_sum(value_loss, mask) / tokens
        optimizer.backward(policy_loss)
        value_optimizer.backward(config.value_coefficient * value_loss)
        sums = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": masked_sum(entropy[:, 0], mask) / tokens,
            "clip_fraction": surrogate["clip_fraction"].sum() / tokens,
            "value_clip_fraction": value_metrics["clip_fraction"].sum() / tokens,
            "approx_kl": surrogate["approx_kl"].sum() / tokens,
        }
        accumulate(totals, sums, 1.0)
    if extra:
        totals["pretraining_loss"] = _keep_up(actors, extra, optimizer)
    taken = optimizer.step()
    taken["value_grad_norm"] = value_optimizer.step()["grad_norm"]
    return {**totals, **taken, "updates": 1}


def describe(rollout: Rollout, beta: float) -> dict[str, Any]:
    """Figures of a rollout, before anything is learned from it. Formulas: docs/stages/ppo.md."""
    mask = rollout.batch.mask[:, 0]
    assert rollout.batch.sampler_logprobs is not None
    mismatch = (rollout.old_logprobs - rollout.batch.sampler_logprobs[:, 0]).abs()
    return {
        "reward": rollout.scores.mean(),
        **{f"reward/{name}": part.mean() for name, part in rollout.parts.items()},
        "kl": kl.per_sequence(rollout.drift, mask).mean(),
        "beta": beta,
        "length": mask.sum(-1).float().mean(),
        "end_rate": torch.tensor([float(group.responses[0].finished) for group in rollout.groups]).mean(),
        "explained_variance": explained_variance(rollout.values, rollout.returns, mask=mask),
        "value_mean": masked_mean(rollout.values, mask),
        **rollout.raw,
        "sampler_mismatch": torch.where(mask, mismatch, 0).max(),
    }


def _keep_up(actors: Actors, groups: Sequence[EncodedGroup], optimizer: Optimizer) -> Tensor:
    """Add the gradient of −coefficient · log-likelihood a token of some demonstrations (PPO-ptx)."""
    tokens = sum(sum(response.mask) for group in groups for response in group.responses)
    total = torch.zeros((), device=actors.policy.device)
    for part in microbatches(groups, max_tokens=actors.config.micro_batch_tokens):
        batch = collate([groups[row] for row in part], device=actors.policy.device)
        with autocast(actors.config.dtype, actors.policy.device):
            logprobs, _ = response_logprobs(actors.policy, batch)
        loss = -masked_sum(logprobs, batch.mask) / tokens
        optimizer.backward(actors.config.pretraining_coefficient * loss)
        total += loss.detach()
    return total


def _critic(policy: PreTrainedModel, reward: Reward, config: PPOConfig) -> ValueModel:
    learned = reward.members[0] if isinstance(reward, EnsembleReward) else reward
    if config.value_init == "reward" and isinstance(learned, LearnedReward) and learned.reads_ids:
        return ValueModel.from_reward_model(learned.model)
    return ValueModel.from_policy(policy, seed=derive_seed(config.seed, "value head"))


def _pretraining(config: PPOConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[EncodedGroup]:
    if config.pretraining_data is None:
        return []
    rows = [imitated(row) for row in read_usable(config.pretraining_data, demonstration)]
    return encode_all(rows, tokenizer, max_length=config.max_length or context_length(model))[0]


def _pretraining_batch(config: PPOConfig, rows: Sequence[EncodedGroup], update: int) -> list[EncodedGroup]:
    if not rows:
        return []
    size = max(1, config.batch_size // config.minibatches)
    return [rows[row] for row in batch_at(update, len(rows), size, derive_seed(config.seed, "pretraining"))]
