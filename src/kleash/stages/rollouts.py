"""What the stages that learn from their own samples share: sample, score, compute over micro-batches, measure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import monitors, outcomes
from kleash.checks.gates import gate_out
from kleash.checks.stopping import EarlyStopping
from kleash.data.batch import GroupBatch
from kleash.data.batching import by_size
from kleash.data.chat import encode_all, end_ids
from kleash.data.group import EncodedGroup, Group
from kleash.data.split import prompt_only, read_split
from kleash.errors import ConfigError
from kleash.models.forward import response_logprobs
from kleash.models.load import autocast, context_length, freeze, frozen_copy, load_policy
from kleash.models.lora import lora_off
from kleash.objectives import kl
from kleash.objectives.reduce import masked_mean
from kleash.rewards.ensemble import HOLD_OUT
from kleash.rewards.reward import Parts, Reward, build_reward, explain
from kleash.run import RunFolder, derive_seed
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups
from kleash.training.settings import RolloutConfig

logger = logging.getLogger("kleash")

SHOWN = ("reward", "kl", "entropy", "length", "eval_reward")
"""Figures of the progress bar."""


@dataclass(frozen=True)
class Actors:
    """Who takes part in a run, passed around together."""

    config: RolloutConfig
    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel
    """With adapters: the policy itself, asked with them switched off."""
    reward: Reward
    sampler: LocalSampler
    hold_out: Reward | None = None
    """Watched and never climbed."""
    gold: Reward | None = None
    """What is truly wanted, on held-out prompts."""


def sample(
    actors: Actors, prompts: Sequence[EncodedGroup], *, group_size: int, seed: int
) -> tuple[GroupBatch, list[Group], Float[Tensor, "P K"], Parts]:
    """Sample K responses to each prompt and score them: the sum, and by name what it is made of."""
    with autocast(actors.config.dtype, actors.policy.device):
        batch = actors.sampler([prompt.prompt_ids for prompt in prompts], group_size=group_size, seed=seed)
    groups = decode_groups(batch, [prompt.source for prompt in prompts], actors.tokenizer, end_ids(actors.tokenizer))
    scores, score_parts = explain(actors.reward, groups)
    return batch, groups, scores.to(actors.policy.device), score_parts


def logprobs_under(actors: Actors, model: PreTrainedModel, batch: GroupBatch) -> Float[Tensor, "P K T"]:
    """Log-probability of each token under a model, without gradient; 0 where masked."""
    temperature = actors.config.temperature
    return in_parts(actors, batch, lambda part: response_logprobs(model, part, temperature=temperature)[0])


def reference_logprobs(actors: Actors, batch: GroupBatch) -> Float[Tensor, "P K T"]:
    """Log-probability of each token under the reference: a frozen copy, or the policy without its adapters."""
    with lora_off(actors.reference):
        return logprobs_under(actors, actors.reference, batch)


def load_reference(config: RolloutConfig, policy: PreTrainedModel) -> PreTrainedModel:
    """What the leash is tied to: to be called before the policy is changed, adapters included."""
    if config.reference is not None:
        return freeze(load_policy(config.reference, device=config.device)[0])
    return policy if config.lora_rank is not None else frozen_copy(policy)


def rollout_logprobs(actors: Actors, batch: GroupBatch) -> Float[Tensor, "P K T"]:
    """The trainer's log-probabilities of what was just sampled.

    In float32 the sampler's numbers are the trainer's; else they are computed again.
    """
    if actors.config.dtype == "float32":
        assert batch.sampler_logprobs is not None
        return batch.sampler_logprobs
    return logprobs_under(actors, actors.policy, batch)


@torch.no_grad()
def in_parts(
    actors: Actors, batch: GroupBatch, compute: Callable[[GroupBatch], Float[Tensor, "P K T"]]
) -> Float[Tensor, "P K T"]:
    """Compute something of each token, in micro-batches by length; 0 where masked."""
    out = torch.zeros(batch.mask.shape, device=actors.policy.device)
    for part in parts_of(batch, range(batch.shape[0]), actors.config.micro_batch_tokens):
        index = torch.tensor(part, device=actors.policy.device)
        groups = batch.select(index)
        with autocast(actors.config.dtype, actors.policy.device):
            out[index, :, : groups.shape[2]] = torch.where(groups.mask, compute(groups).float(), 0)
    return out


def parts_of(batch: GroupBatch, rows: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Groups of a batch in micro-batches, by length."""
    siblings = batch.shape[1]
    prompts, lengths = batch.prompt_attention.sum(-1).tolist(), batch.lengths.amax(-1).tolist()
    parts = by_size([(siblings, prompts[row], lengths[row]) for row in rows], max_tokens=max_tokens)
    return [[rows[index] for index in part] for part in parts]


def minibatches(config: RolloutConfig, rows: int, step: int, epoch: int) -> Iterator[list[int]]:
    """The rows of each optimiser step in one pass over a rollout."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "minibatch", step, epoch))
    for part in torch.randperm(rows, generator=generator).tensor_split(min(config.minibatches, rows)):
        yield part.tolist()


def build_rewards(
    config: RolloutConfig, tokenizer: PreTrainedTokenizerBase, live: Reward | None
) -> tuple[Reward, Reward | None, Reward | None]:
    """What is climbed (or `live` in its place), what is watched, and what is wanted."""
    settings: dict[str, Any] = {
        "policy_tokenizer": tokenizer, "device": config.device, "dtype": config.dtype,
        "micro_batch_tokens": config.micro_batch_tokens,
    }  # fmt: skip
    left = Path(config.reward) / HOLD_OUT
    hold_out = config.hold_out or (str(left) if left.is_dir() else None)
    if config.criterion == "validation" and hold_out is None:
        raise ConfigError("criterion validation needs a hold-out reward; give --hold-out, or a --reward that has one")
    return (
        live or build_reward(config.reward, **settings),
        build_reward(hold_out, **settings) if hold_out else None,
        build_reward(config.gold, **settings) if config.gold else None,
    )


class Watch:
    """Watches the rollouts of a run: figures beside what is climbed, a few responses to look at, early stopping."""

    def __init__(self, actors: Actors, folder: RunFolder, state: Mapping[str, Any]) -> None:
        """Start, or go on from a checkpoint's state."""
        self.actors, self.folder = actors, folder
        self.kls = [row["kl"] for row in folder.metrics() if row.get("kl") is not None][-2:]
        self.stopping = EarlyStopping(**state.get("early_stopping", {}))

    def see(
        self,
        step: int,
        groups: Sequence[Group],
        scores: Float[Tensor, "P K"],
        parts: Parts,
        drift: Float[Tensor, "P K"],
    ) -> dict[str, Any]:
        """Take in a rollout: its figures for metrics.jsonl, and a few responses for rollouts.jsonl."""
        actors = self.actors
        figures = monitors.watch(groups, scores, parts=parts, hold_out=actors.hold_out)
        self.kls = [*self.kls[-2:], float(drift.mean())]
        self.stopping.see_kl(self.kls[-1], actors.config.kl_budget)
        self.folder.append("rollouts.jsonl", monitors.shown(step, groups, scores, drift))
        return {**figures, "kl_acceleration": monitors.acceleration(self.kls)}

    def measured(self, metrics: Mapping[str, Any], beta: float) -> float:
        """Take in a measurement on held-out prompts; returns what is to be chosen by, less of which is better."""
        config = self.actors.config
        if config.criterion == "objective":
            figure = metrics["eval_reward"] - beta * metrics["eval_kl"]
        else:
            figure = metrics["eval_gold" if config.criterion == "gold" else "eval_hold_out"]
        self.stopping.see_figure(figure, config.patience, config.criterion)
        return -figure

    @property
    def over(self) -> bool:
        """Whether the run ends here."""
        return self.stopping.reason is not None

    @property
    def numbers(self) -> dict[str, Any]:
        """What a checkpoint stores of it."""
        return {"early_stopping": asdict(self.stopping)}


def evaluate(actors: Actors, prompts: Sequence[EncodedGroup], folder: RunFolder, step: int) -> dict[str, float]:
    """Sample the held-out prompts afresh, with the same streams at every step, and write the responses down."""
    seed = derive_seed(actors.config.seed, "evaluation")
    batch, groups, scores, parts = sample(actors, prompts, group_size=1, seed=seed)
    assert batch.sampler_logprobs is not None
    reference = reference_logprobs(actors, batch)
    drift = kl.per_sequence(kl.k1(batch.sampler_logprobs, reference), batch.mask)
    beside = {name: other(groups) for name in ("gold", "hold_out") if (other := getattr(actors, name)) is not None}
    rows = [
        {
            "step": step,
            "prompt": group.prompt,
            "response": group.responses[0].text,
            "finished": group.responses[0].finished,
            "score": score,
            "kl": nats,
            **{name: float(values[place, 0]) for name, values in beside.items()},
            **group.columns,
        }
        for place, (group, score, nats) in enumerate(
            zip(groups, scores[:, 0].tolist(), drift[:, 0].tolist(), strict=True)
        )
    ]
    folder.append("samples.jsonl", rows)
    ended = sum(row["finished"] for row in rows) / len(rows)
    means = {
        "eval_reward": scores,
        **{f"eval_reward/{name}": part for name, part in parts.items()},
        **{f"eval_{name}": values for name, values in beside.items()},
        "eval_kl": drift,
        "eval_length": batch.mask.sum(-1).float(),
    }
    return {"eval_end_rate": ended, **{name: float(figures.mean()) for name, figures in means.items()}}


def read_prompts(
    config: RolloutConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    """The prompts to train on and those held out.

    Raises:
        ConfigError: the responses leave no room for a prompt.
    """
    context = context_length(model)
    room = config.max_length or (context - config.max_new_tokens if context else None)
    if room is not None and room < 1:
        raise ConfigError(
            f"max_new_tokens {config.max_new_tokens} leaves no room for a prompt in a context of {context}"
        )
    train, held_out = read_split(
        config.data, config.eval_data, seed=config.seed, usable=prompt_only, max_eval_rows=config.max_eval_rows
    )
    encoded, truncation = encode_all([_bare(group) for group in train], tokenizer, max_length=room)
    if truncation.message():
        logger.warning("%s: %s", config.data, truncation.message())
    return encoded, encode_all([_bare(group) for group in held_out], tokenizer, max_length=room)[0] if held_out else []


def advantage_figures(advantages: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> dict[str, Float[Tensor, ""]]:
    """Mean and standard deviation of advantages over tokens, before any whitening: a mean that drifts is a value
    network (or a baseline) that no longer keeps up with the policy.
    """
    mean = masked_mean(advantages, mask)
    return {"advantage_mean": mean, "advantage_sd": masked_mean((advantages - mean).square(), mask).sqrt()}


def accumulate(totals: dict[str, Any], figures: Mapping[str, Any], weight: float) -> None:
    """Add an update's figures to a rollout's: means over updates, but for what is a count or holds once."""
    for name, value in figures.items():
        if name == "updates":
            totals[name] = totals.get(name, 0) + value
        elif name in ("first_ratio", "learning_rate"):
            totals[name] = value
        else:
            totals[name] = totals.get(name, 0.0) + weight * value


def verdict(folder: RunFolder, *, advice: str) -> None:
    """The gate out of a policy, from what its rollouts were like."""
    kl_budget = folder.record["config"].get("kl_budget")
    gate_out(folder, checks=outcomes.policy(folder.metrics(), kl_budget=kl_budget, advice=advice))


def summary(folder: RunFolder) -> str:
    """The sentence of the model card."""
    last = folder.metrics()[-1]
    return f"Mean reward {last['reward']:.3f} at KL {last['kl']:.2f} nats a response from the reference."


def _bare(group: Group) -> Group:
    return Group(prompt=group.prompt, columns=group.columns)
