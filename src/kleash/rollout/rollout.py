"""From prompts to scored samples with their log-probabilities and KL: the only module that does this."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batch import GroupBatch, concatenate
from kleash.data.group import EncodedGroup, Group
from kleash.errors import TrainingError
from kleash.models.compute import Compute
from kleash.models.finite import is_finite, not_finite
from kleash.models.heads import ValueModel
from kleash.models.inference import batch_logprobs
from kleash.models.reference import Reference
from kleash.objectives import kl, masked_mean
from kleash.rewards.reward import FILTER, NO_OPINION, Reward, explain, no_opinion, part_figures
from kleash.run import StepMetrics
from kleash.sampling.sampler import Sampler, sample_groups
from kleash.training.model_folder import parameters_held

LARGEST_SCORE = 1e15
"""Deviations and value losses square scores, and the sum of the squares has to stay within float32 (3.4e38)."""


@dataclass(frozen=True)
class Components:
    """The models, rewards and engines of a policy-gradient run."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: Reference
    sampler: Sampler
    reward: Reward
    validation_reward: Reward | None = None
    """Measured in addition to the reward, never trained against."""
    gold: Reward | None = None
    """Gold reward, measured on held-out prompts."""
    value_model: ValueModel | None = None
    """The value network, where the method has one."""
    temperature: float = 1.0
    """Divides the logits, in sampling and in training alike."""
    compute: Compute = field(default_factory=Compute)

    @property
    def critic(self) -> ValueModel:
        """The value network of a method that has one."""
        assert self.value_model is not None, "this method has no value network"
        return self.value_model

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters of the models that are in memory at the same time."""
        return parameters_held(
            policy=self.policy,
            reference=self.reference,
            reward=self.reward,
            value=self.value_model,
            validation_reward=self.validation_reward,
        )


@dataclass(frozen=True)
class Rollout:
    """Groups that a policy sampled, scored."""

    batch: GroupBatch
    """[P, K, T]; tensors that a step adds (log-probabilities, advantages) are selected and split with it."""
    groups: list[Group]
    scores: Float[Tensor, "P K"]
    """The reward before penalties and clips; NaN where it has no opinion."""
    parts: dict[str, Float[Tensor, "P K"]]
    """Components of the scores, by name; empty where the reward has none."""
    sampled_groups: int
    """Groups that were sampled for it, replaced ones too."""
    zero_spread_groups: int = 0
    """How many of those had equal scores for all their responses."""

    def select(self, groups: Int[Tensor, " N"]) -> Rollout:
        """Some of the groups."""
        rows = groups.tolist()
        return replace(
            self,
            batch=self.batch.select(groups),
            groups=[self.groups[row] for row in rows],
            scores=self.scores[groups],
            parts={name: part[groups.to(part.device)] for name, part in self.parts.items()},
        )

    @property
    def opinions(self) -> Bool[Tensor, "P K"]:
        """True where the reward has an opinion; the other responses are in no baseline and in no loss."""
        return ~self.scores.isnan()

    @property
    def filter_scores(self) -> Float[Tensor, "P K"]:
        """The scores by which groups have a spread or none, before penalties of length and KL."""
        return self.component(FILTER).to(self.scores.device)

    def component(self, name: str) -> Float[Tensor, "P K"]:
        """A component of the scores, NaN where the reward gave none; the filter is the scores if it is not given."""
        missing = self.scores if name == FILTER else torch.full_like(self.scores, math.nan)
        return self.parts.get(name, missing)

    @property
    def kl(self) -> Float[Tensor, "P K"]:
        """KL(π ‖ π_ref) of each response in nats: k1, summed over its tokens (docs/metrics.md)."""
        return kl.per_sequence(self.kl_per_token, self.batch.response_attention)  # 0 where the policy did not choose

    @property
    def kl_per_token(self) -> Float[Tensor, "P K T"]:
        """k1 of each token: log π_old − log π_ref."""
        assert self.batch.old_logprobs is not None and self.batch.reference_logprobs is not None
        return kl.k1(self.batch.old_logprobs, self.batch.reference_logprobs)

    @property
    def finished(self) -> Float[Tensor, "P K"]:
        """1 where a response ended by itself, 0 where it was cut off."""
        finished = [[float(response.finished) for response in group.responses] for group in self.groups]
        return torch.tensor(finished, device=self.scores.device)


@torch.no_grad()
def sample_scored(
    parts: Components, prompts: Sequence[EncodedGroup], *, group_size: int, seed: int, version: int | None = None
) -> Rollout:
    """K responses to each prompt, scored; without the trainer's log-probabilities.

    Raises:
        TrainingError: a score or a log-probability is not finite.
    """
    batch, groups = sample_groups(
        parts.sampler, parts.tokenizer, prompts, group_size=group_size, seed=seed, version=version
    )
    scores, components = scored(parts.reward, groups)
    return Rollout(batch, groups, scores.to(batch.mask.device), components, sampled_groups=len(groups))


def scored(
    reward: Reward, groups: Sequence[Group], name: str = "reward"
) -> tuple[Float[Tensor, "P K"], dict[str, Float[Tensor, "P K"]]]:
    """Scores of a rollout, NaN where the reward has no opinion and only there, and their other components.

    Args:
        reward: scores the groups.
        groups: of one K.
        name: of the reward, for the message.

    Raises:
        TrainingError: no step can be computed from a score; names the first and its row.
    """
    scores, parts = explain(reward, groups)
    for p, k in torch.nonzero(~(scores.abs() <= LARGEST_SCORE) & ~no_opinion(scores, parts)).tolist():
        raise TrainingError(
            f"the {name} of row {p + 1} of the rollout, response {k + 1}, is {float(scores[p, k]):.3g}: training "
            f"squares it, and float32 holds that up to {LARGEST_SCORE:.0e}; correct or scale the reward (prompt "
            f"{groups[p].prompt_text[:40]!r}, response {groups[p].responses[k].text[:40]!r})"
        )
    return scores, {component: values for component, values in parts.items() if component != NO_OPINION}


def or_none(score: Float[Tensor, ""]) -> float | None:
    """A score as it is written to files: null where the reward has no opinion."""
    return None if bool(score.isnan()) else float(score)


def refuse_advantages(
    rollout: Rollout, *, beta: float, critic: nn.Module | None = None, **computed: Float[Tensor, "P K T"]
) -> None:
    """Refuse a rollout whose advantages, or what they are computed from, are not finite.

    Args:
        rollout: with its scores and KL.
        beta: price of a nat.
        critic: the value network, where there is one.
        computed: by name, in the order in which they were computed.

    Raises:
        TrainingError: names the first that is not finite, and the cause.
    """
    for name, tensor in computed.items():
        if is_finite(tensor[rollout.batch.mask]):
            continue
        if name == "values":
            raise not_finite("the values of the value network are", critic, trained=bool(rollout.batch.version))
        raise TrainingError(
            f"the {name} are not finite: scores reach {float(rollout.scores.nan_to_num().abs().max()):.3g} and β·KL "
            f"{beta * float(rollout.kl.abs().max()):.3g}; scale the reward, or lower --beta or --learning-rate"
        )


def with_logprobs(
    batch: GroupBatch,
    policy: PreTrainedModel,
    reference: Reference,
    *,
    exact: bool,
    temperature: float = 1.0,
    compute: Compute,
) -> GroupBatch:
    """Add log π_old and log π_ref to fresh samples.

    Args:
        batch: fresh samples of the policy.
        policy: the trainer's, as it sampled.
        reference: the model from which the KL is measured.
        exact: whether the sampler's log-probabilities are the trainer's; otherwise they are computed again.
        temperature: of the samples.
        compute: where and how.
    """
    old_logprobs = batch.sampler_logprobs if exact else None
    if old_logprobs is None:
        old_logprobs = batch_logprobs(policy, batch, temperature=temperature, compute=compute)
    return replace(
        batch,
        old_logprobs=old_logprobs,
        reference_logprobs=reference.logprobs(batch, temperature=temperature, compute=compute),
    )


def measured(rollout: Rollout, parts: Components) -> Rollout:
    """The same rollout with the log-probabilities of policy and reference, and so with its KL."""
    batch = with_logprobs(
        rollout.batch,
        parts.policy,
        parts.reference,
        exact=parts.sampler.exact,
        temperature=parts.temperature,
        compute=parts.compute,
    )
    return replace(rollout, batch=batch)


def concatenate_rollouts(rollouts: Sequence[Rollout]) -> Rollout:
    """Rollouts of one K as one."""
    first = rollouts[0]
    if len(rollouts) == 1:
        return first
    return Rollout(
        batch=concatenate([each.batch for each in rollouts]),
        groups=[group for each in rollouts for group in each.groups],
        scores=torch.cat([each.scores for each in rollouts]),
        parts={
            name: torch.cat([each.component(name).cpu() for each in rollouts])
            for name in dict.fromkeys(name for each in rollouts for name in each.parts)
        },
        sampled_groups=sum(each.sampled_groups for each in rollouts),
        zero_spread_groups=sum(each.zero_spread_groups for each in rollouts),
    )


def rollout_metrics(rollout: Rollout) -> StepMetrics:
    """Figures of a rollout, before the update. Formulas: docs/metrics.md."""
    batch = rollout.batch
    assert batch.old_logprobs is not None and batch.sampler_logprobs is not None
    mismatch = (batch.old_logprobs - batch.sampler_logprobs).abs()
    of_prompts = rollout.kl.mean(1)
    return {
        "reward": rollout.scores.nanmean(),
        **part_figures(rollout.parts, "reward"),
        f"reward/{NO_OPINION}": (~rollout.opinions).float().mean(),
        "kl": rollout.kl.mean(),
        "kl_se": of_prompts.std() / len(of_prompts) ** 0.5 if len(of_prompts) > 1 else math.nan,
        "length": batch.lengths.float().mean(),
        "end_rate": rollout.finished.mean(),
        "sampler_mismatch": torch.where(batch.mask, mismatch, 0).max(),
    }


def advantage_metrics(advantages: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> dict[str, Float[Tensor, ""]]:
    """Mean and standard deviation of advantages before whitening: a mean that moves away from 0 shows a value network
    (or a baseline) that lags behind the policy.
    """
    mean = masked_mean(advantages, mask)
    return {"advantage_mean": mean, "advantage_sd": masked_mean((advantages - mean).square(), mask).sqrt()}


def merge(metrics: StepMetrics, update: StepMetrics, *, weight: float) -> StepMetrics:
    """A rollout's metrics with those of one more update: means over updates, except for counts and for figures of the
    whole rollout.

    Args:
        metrics: so far.
        update: of an update, or of a micro-batch of it.
        weight: one divided by the number of updates.
    """
    merged = dict(metrics)
    for name, value in update.items():
        if name == "updates":
            merged[name] = merged.get(name, 0) + value
        elif name in ("first_ratio", "learning_rate"):
            merged[name] = value
        else:
            merged[name] = merged.get(name, 0.0) + weight * value
    return merged
