"""GRPO and its kin: sample a group of responses, and let the group be its own baseline.

One file and one loss. What the papers differ in stands in five settings: how scores become advantages, how tokens are
weighed, where the leash is, how far the ratio may move, and what becomes of groups and responses that teach nothing.
A preset is a set of their values. The leash stands in the reward by default, so that the optimum is π* ∝
π_ref·exp(r/β); a test measures how near this file comes to it. In the loss, as the GRPO paper has it, it is dearer or
cheaper prompt by prompt once advantages are divided by their group's deviation, and k3 pulls towards another optimum.

    kleash grpo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/grpo --beta 0.05

Left out: a value network (that is `kleash ppo`); ratios of whole responses (GSPO).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import ratio
from kleash.checks.gates import gate_in
from kleash.checks.stopping import Stopping, flat
from kleash.data.batch import GroupBatch, concatenate
from kleash.data.batching import batch_at
from kleash.data.chat import end_ids
from kleash.data.group import EncodedGroup, Group
from kleash.models.forward import response_logprobs
from kleash.models.load import autocast, load_policy, save_model
from kleash.models.lora import merge_lora
from kleash.objectives import kl
from kleash.objectives.advantage import group_centred, group_standardised, leave_one_out
from kleash.objectives.policy import clipped_surrogate, truncated_importance
from kleash.objectives.reduce import masked_sum, token_weights
from kleash.progress import Progress
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
from kleash.stages.training_configs import GRPOConfig
from kleash.training import checkpoint
from kleash.training.optim import Optimizer
from kleash.training.selection import Selection
from kleash.training.trackers import Trackers, require

OVERLONG_SHARE = 0.2
"""Share of `max_new_tokens` over which the penalty of long responses rises (DAPO: 4,096 of 20,480 tokens)."""

REPLACING_ROUNDS = 10
"""How often groups of zero spread are sampled anew at most, as in DAPO's released recipe."""

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
    """What the settings come to, as it is computed: goes to run.json (F2)."""
    score = "score" if config.overlong != "penalise" else "score − overlong penalty"
    leash = {
        "reward": "",
        "loss-k3": " + β (π_ref/π − 1 − log(π_ref/π))",
        "loss-k2-response": " + β ½ d_t Σ_t d_t, d_t = log(π/π_ref)",
    }[config.kl_in]
    high = config.clip if config.clip_high is None else config.clip_high
    formula = {
        "reward of a response": f"R = {score} − β Σ_t log(π_old/π_ref)" if config.kl_in == "reward" else f"R = {score}",
        "advantage": ADVANTAGES[config.advantage][1],
        "loss of a token": f"− w min(ρ A, clip(ρ, {1 - config.clip:g}, {1 + high:g}) A){leash}",
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


@dataclass(frozen=True)
class Actors(rollouts.Actors):
    """Who takes part in a run."""

    config: GRPOConfig


@dataclass(frozen=True)
class Rollout:
    """Groups with their scores, and what the inner epochs learn from.

    A group may be too large for memory, so the tensors over tokens hold it in parts: N = P·K/J rows of J responses,
    the parts of one group in a row.
    """

    batch: GroupBatch
    """[N, J, T], sampled by the policy as it stood; its mask holds the tokens that count in the loss."""
    sampled: Float[Tensor, "N J"]
    """Tokens of each response."""
    groups: list[Group]
    scores: Float[Tensor, "P K"]
    """As the reward gave them."""
    score_parts: dict[str, Float[Tensor, "P K"]]
    """What they are made of, by name; empty where the reward is one thing."""
    shaped: Float[Tensor, "P K"]
    """With penalties, without the leash."""
    drift: Float[Tensor, "P K"]
    """k1 of each response from the reference."""
    flat_share: float
    """Share of all sampled groups, replaced ones too, whose responses had one score."""
    old_logprobs: Float[Tensor, "N J T"]
    reference_logprobs: Float[Tensor, "N J T"]
    advantages: Float[Tensor, "N J"]

    @property
    def parts(self) -> int:
        """Rows that a group takes."""
        return self.batch.shape[0] // len(self.groups)


def run(
    config: GRPOConfig,
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

    Raises:
        TrainingError: the first ratio is not 1 (F7), or nothing has been learned for 20 rollouts (F13).
    """
    require(config.trackers)
    folder = RunFolder.open(config.out, stage="grpo", config=config, inputs=inputs_of(config, model=policy))
    if folder.finished:
        return folder
    gate_in(folder, role="model", parent=config.model, force=config.force)
    gate_in(folder, role="reward", parent=config.reward, force=config.force)
    model, tokenizer = policy or load_policy(config.model, device=config.device)
    prompts, held_out = read_prompts(config, model, tokenizer)
    # at β = 0 the loss does not need it, but how far the policy has gone is the figure that tells a missing leash
    reference = load_reference(config, model)
    reward, hold_out, gold = build_rewards(config, tokenizer, reward)
    make_trainable(model, config)
    sampler = LocalSampler(
        model,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        end_ids=end_ids(tokenizer),
    )
    actors = Actors(config, model, tokenizer, reference, reward, sampler, hold_out, gold)
    steps = config.steps(len(prompts))
    folder.note("formulas", **formulas(config))
    folder.note("models", **parameters_held(policy=model, reference=reference, reward=reward, hold_out=hold_out))

    updates = config.inner_epochs * config.minibatches
    optimizer = Optimizer(model, steps=steps * updates, **config.optimizer_settings())
    parts: checkpoint.Parts = {"model": model, "optimizer": optimizer}
    state = checkpoint.restore(folder, parts)
    done, place = state["step"], state.get("place", 0)  # place: prompts taken so far
    stopping = Stopping(**state.get("stopping", {}))
    selection = Selection(folder, config.keep_weights, step=state.get("best_step", 0), least=state.get("best_figure"))
    watch = Watch(actors, folder, state)

    def keep(step: int) -> None:
        numbers = {"place": place, "stopping": asdict(stopping), **selection.numbers, **watch.numbers}
        checkpoint.save(folder, step, parts, keep=config.keep_states, **numbers)

    if done == 0 and held_out and config.eval_every:
        folder.log(0, evaluate(actors, held_out, folder, 0))
    with Progress(steps, "grpo", start=done) as progress, Trackers(config.trackers, folder) as trackers:
        while done < steps and not stopping.solved and not watch.over:
            step = done + 1
            rollout, place = collect(actors, prompts, place=place, step=step)
            solved = stopping.see(rollout.scores, rollout.shaped, rollout.batch.mask)
            metrics = describe(rollout, config.beta) | {"solved_share": solved.float().mean()}
            metrics |= watch.see(step, rollout.groups, rollout.scores, rollout.score_parts, rollout.drift)
            for epoch in range(config.inner_epochs):
                for part in minibatches(config, len(rollout.groups), step, epoch):
                    first = not metrics.get("updates")
                    accumulate(metrics, learn(actors, rollout, part, optimizer, first=first), 1 / updates)
            if held_out and (config.due(step, steps) or stopping.solved or watch.over):
                metrics |= evaluate(actors, held_out, folder, step)
                selection.offer(model, step, watch.measured(metrics, config.beta))
            if config.snapshot_every and step % config.snapshot_every == 0:
                save_snapshot(folder, step, model, tokenizer)
            row = folder.log(step, metrics)
            trackers.log(step, row)
            progress.update(step, **{name: row[name] for name in SHOWN if row.get(name) is not None})
            stopping.raise_if_dead(
                end_rate=row["end_rate"], empty=not bool(rollout.batch.mask.any()), longest=config.max_new_tokens
            )
            done = step
            if step % config.save_interval(steps) == 0 and step < steps:
                keep(step)

    keep(done)
    chosen = selection.take(model, done)
    verdict(folder, advice="raise --max-new-tokens if they are good, --beta or --overlong penalise if they run on")
    merge_lora(model)
    save_model(folder.path, model, tokenizer, model_card(folder, summary(folder)))
    ended = watch.stopping.reason or "all rollouts done"
    if stopping.solved:
        ended = f"solved: every response of {stopping.perfect} rollouts had the best reward seen, {stopping.best:g}"
    return folder.finish(step=chosen, ended=ended, prompts=len(prompts), near_ties=sampler.near_ties)


@torch.no_grad()
def collect(actors: Actors, prompts: Sequence[EncodedGroup], *, place: int, step: int) -> tuple[Rollout, int]:
    """Sample a group for each of the next prompts, score it, and work out who was better than the others.

    Args:
        actors: who takes part.
        prompts: all of them.
        place: how many were taken before.
        step: number of the rollout, for its random streams.

    Returns:
        The rollout, and how many prompts are taken by now.
    """
    config = actors.config
    kept: list[tuple[GroupBatch, list[Group], Tensor]] = []
    kept_parts: list[dict[str, Tensor]] = []
    wanted, seen, seen_flat = config.batch_size, 0, 0
    for attempt in range(REPLACING_ROUNDS if config.resample_zero_spread else 1):
        rows = [batch_at(at, len(prompts), 1, config.seed)[0] for at in range(place, place + wanted)]
        place += wanted
        name = ("rollout", step) if attempt == 0 else ("rollout", step, attempt)
        batch, groups, scores, score_parts = sample(
            actors, [prompts[row] for row in rows], group_size=config.group_size, seed=derive_seed(config.seed, *name)
        )
        dull = flat(_shape(config, scores, batch))
        seen, seen_flat = seen + len(groups), seen_flat + int(dull.sum())
        last = attempt + 1 == REPLACING_ROUNDS or not config.resample_zero_spread
        use = torch.arange(len(groups), device=dull.device) if last else (~dull).nonzero().squeeze(1)
        if len(use):
            kept.append((batch.select(use), [groups[index] for index in use.tolist()], scores[use]))
            kept_parts.append({name: part[use.cpu()] for name, part in score_parts.items()})
        wanted -= len(use)
        if wanted == 0:
            break
    batch = concatenate([batch for batch, _, _ in kept])
    groups = [group for _, some, _ in kept for group in some]
    scores = torch.cat([scores for _, _, scores in kept])
    score_parts = {name: torch.cat([parts[name] for parts in kept_parts]) for name in kept_parts[0]}
    shaped = _shape(config, scores, batch)

    batch = batch.split(_fitting(batch, config.micro_batch_tokens))
    old_logprobs = rollout_logprobs(actors, batch)
    reference_logprobs = rollouts.reference_logprobs(actors, batch)
    drift = kl.per_sequence(kl.k1(old_logprobs, reference_logprobs), batch.mask).reshape(scores.shape)
    compared = shaped - config.beta * drift if config.kl_in == "reward" else shaped
    advantages = ADVANTAGES[config.advantage][0](compared).reshape(batch.shape[:2])
    lengths = batch.mask.sum(-1).float()
    if config.overlong == "mask":
        batch = batch.without(~_ended(groups, batch))
    return Rollout(
        batch, lengths, groups, scores, score_parts, shaped, drift, seen_flat / seen, old_logprobs, reference_logprobs,
        advantages,
    ), place  # fmt: skip


def learn(
    actors: Actors,
    rollout: Rollout,
    groups: Sequence[int],
    optimizer: Optimizer,
    *,
    first: bool = False,
) -> dict[str, Any]:
    """One optimiser step on some groups of a rollout.

    A token's weight is made for the whole step and summed over micro-batches, so how memory splits the step changes
    nothing (F1).

    Args:
        actors: who takes part.
        rollout: what to learn from.
        groups: which of its groups.
        optimizer: of the policy.
        first: nothing has been updated since the rollout, so the ratio must be 1 (F7).

    Raises:
        TrainingError: the ratio is not 1 where it must be; the message names the cause.
    """
    config, device = actors.config, actors.policy.device
    rows = [group * rollout.parts + part for group in groups for part in range(rollout.parts)]
    step_mask = rollout.batch.mask[rows].flatten(0, 1)
    weights = torch.zeros(rollout.batch.mask.shape, device=device)
    weights[rows] = token_weights(step_mask, config.normalisation, longest=config.max_new_tokens).reshape(
        len(rows), *rollout.batch.shape[1:]
    )
    tokens = step_mask.sum().clamp(min=1)
    totals: dict[str, Any] = {}
    counted = rollout.batch.mask.flatten(1).any(-1).tolist()  # a row without a token would have no gradient to give
    for part in parts_of(rollout.batch, [row for row in rows if counted[row]], config.micro_batch_tokens):
        index = torch.tensor(part, device=device)
        batch = rollout.batch.select(index)
        mask, width = batch.mask.flatten(0, 1), batch.mask.shape[-1]
        with autocast(config.dtype, device):
            logprobs, entropy = response_logprobs(actors.policy, batch, temperature=config.temperature)
        logprobs, entropy = logprobs.flatten(0, 1), entropy.flatten(0, 1)

        def rows_of(tensor: Tensor, index: Tensor = index, width: int = width) -> Tensor:
            return tensor[index, :, :width].flatten(0, 1)

        old_logprobs, reference_logprobs = rows_of(rollout.old_logprobs), rows_of(rollout.reference_logprobs)
        if first:
            worst = ratio.check_first(
                actors.policy, batch, logprobs.detach(), old_logprobs, config.temperature, config.dtype
            )
            totals["first_ratio"] = torch.maximum(totals.get("first_ratio", torch.ones((), device=device)), worst)
        assert batch.sampler_logprobs is not None
        importance = truncated_importance(old_logprobs, batch.sampler_logprobs.flatten(0, 1), mask=mask)
        advantages = rollout.advantages[index].reshape(-1, 1).expand_as(logprobs)
        loss, surrogate = clipped_surrogate(
            logprobs, old_logprobs, advantages, clip=config.clip, clip_high=config.clip_high, mask=mask
        )
        weight = rows_of(weights)
        policy_loss = (weight * importance * loss).sum()
        kl_loss = torch.zeros((), device=device)
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
        accumulate(totals, sums, 1.0)
    return {**totals, **optimizer.step(), "updates": 1}


def describe(rollout: Rollout, beta: float) -> dict[str, Any]:
    """Figures of a rollout, before anything is learned from it. Formulas: docs/stages/grpo.md."""
    assert rollout.batch.sampler_logprobs is not None
    mismatch = (rollout.old_logprobs - rollout.batch.sampler_logprobs).abs()
    ended = [float(response.finished) for group in rollout.groups for response in group.responses]
    return {
        "reward": rollout.scores.mean(),
        **{f"reward/{name}": part.mean() for name, part in rollout.score_parts.items()},
        "kl": rollout.drift.mean(),
        "beta": beta,
        "length": rollout.sampled.mean(),
        "end_rate": torch.tensor(ended).mean(),
        "flat_share": rollout.flat_share,
        "reward_spread": rollout.scores.std(-1).mean(),
        **advantage_figures(rollout.advantages, torch.ones_like(rollout.advantages, dtype=torch.bool)),
        "sampler_mismatch": torch.where(rollout.batch.mask, mismatch, 0).max(),
    }


def _shape(config: GRPOConfig, scores: Tensor, batch: GroupBatch) -> Float[Tensor, "P K"]:
    """Scores less what being long costs (DAPO eq. 13)."""
    if config.overlong != "penalise":
        return scores
    room = OVERLONG_SHARE * config.max_new_tokens
    return scores - ((batch.lengths - (config.max_new_tokens - room)) / room).clamp(0, 1)


def _fitting(batch: GroupBatch, max_tokens: int) -> int:
    """How many responses of a group go through the model together: the largest divisor of K that fits."""
    _, responses, tokens = batch.shape
    width = batch.prompt_ids.shape[1] + tokens
    fitting = [size for size in range(1, responses + 1) if responses % size == 0 and size * width <= max_tokens]
    return max(fitting, default=1)


def _ended(groups: Sequence[Group], batch: GroupBatch) -> Tensor:
    ended = [response.finished for group in groups for response in group.responses]
    return torch.tensor(ended, device=batch.mask.device).reshape(batch.shape[:2])
