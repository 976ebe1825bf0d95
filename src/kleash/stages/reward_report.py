"""What a reward model's report says beyond its accuracy: where it is biased, where it is weak, how it can be hacked,
how noisy its labels are, whether more of them would help, and how far it has seen.

Every figure is computed in `kleash.evals`; here the model is asked for what they need. Rows are capped, so that by
default all of it costs little beside the training. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batching import order
from kleash.data.chat import encode, encode_all, end_ids
from kleash.data.formats import write_groups
from kleash.data.group import EncodedGroup, Group, Preference, Ranking
from kleash.errors import ConfigError, DataError
from kleash.evals.bias import bias_report
from kleash.evals.learning_curve import learning_curve
from kleash.evals.noise import disagreement, lapse_model
from kleash.evals.preference_report import ceiling_bounds
from kleash.evals.probes import probe_groups, probe_report
from kleash.evals.strata import quartiles, strata_report
from kleash.models.load import autocast, context_length, load_policy, load_reward_model
from kleash.rewards.feature_range import FeatureRange
from kleash.rewards.learned import LearnedReward, features_encoded, score_encoded
from kleash.rewards.reward import Reward
from kleash.run import RunFolder, derive_seed
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups
from kleash.stages.best_of_n import curve
from kleash.training.settings import TrainingConfig

PROBED = 200
"""Most prompts whose chosen response is probed; one in twenty of the training rows where these are fewer."""
FITTED = 1024
"""Most training rows whose features are measured; one in four where they are fewer."""
FEWEST = 50
"""But for both so many, where there are."""
POOLS = 64
"""Most prompts to which n responses are sampled."""
DISTINCT = 12
"""A column with more different values than this makes no strata."""
SHARES = {"1-8": 0.125, "1-4": 0.25, "1-2": 0.5}
"""Parts of the training rows that the learning curve trains on besides all of them, each part of the next."""


@dataclass(frozen=True)
class Pairs:
    """Held-out comparisons with what the model says of them, one entry a pair."""

    groups: list[EncodedGroup]
    ends: list[tuple[int, int]]
    """Which two responses of the group."""
    p: Float[np.ndarray, " N"]
    """The label, P(first ≻ second)."""
    margin: Float[np.ndarray, " N"]
    longer: Float[np.ndarray, " N"]
    """Tokens of the first less those of the second."""

    @classmethod
    def of(cls, groups: Sequence[EncodedGroup], rewards: Sequence[Sequence[float]]) -> Pairs:
        """All comparisons that the labels of some groups hold."""
        rows = [
            (group, a, b, p, own[a] - own[b], len(group.responses[a].ids) - len(group.responses[b].ids))
            for group, own in zip(groups, rewards, strict=True)
            for a, b, p in pairs_of(group.source)
        ]
        numbers = np.array([row[3:] for row in rows], dtype=np.float64).reshape(-1, 3)
        return cls([row[0] for row in rows], [(row[1], row[2]) for row in rows], *numbers.T)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Both responses of each pair."""
        return [
            (group.source.responses[a].text, group.source.responses[b].text)
            for group, (a, b) in zip(self.groups, self.ends, strict=True)
        ]

    @property
    def hits(self) -> Float[np.ndarray, " N"]:
        """1 where the margin has the label's sign, 0 where the other, one half where it is 0."""
        return 0.5 + 0.5 * np.sign(self.margin) * np.sign(self.p - 0.5)

    @property
    def log_loss(self) -> Float[np.ndarray, " N"]:
        """−p log σ(m) − (1 − p) log σ(−m) of each pair, in nats."""
        return self.p * np.logaddexp(0, -self.margin) + (1 - self.p) * np.logaddexp(0, self.margin)


def pairs_of(group: Group) -> list[tuple[int, int, float]]:
    """The comparisons a label holds: (a, b, P(a ≻ b)), a ranked before b."""
    if isinstance(group.label, Preference):
        return [(0, 1, group.label.probability)]
    if isinstance(group.label, Ranking):
        ranks = group.label.ranks
        return [
            (a, b, 0.5 if ranks[a] == ranks[b] else 1.0)
            for a in range(len(ranks))
            for b in range(len(ranks))
            if ranks[a] < ranks[b] or (ranks[a] == ranks[b] and a < b)
        ]
    return []


def held_out_rewards(
    model: PreTrainedModel, held_out: Sequence[EncodedGroup], config: TrainingConfig
) -> list[list[float]]:
    """The score of every response, in the order of the groups, whatever their K."""
    rewards: list[list[float]] = [[]] * len(held_out)
    for size in sorted({len(group.responses) for group in held_out}):
        rows = [row for row, group in enumerate(held_out) if len(group.responses) == size]
        scores = score_encoded(model, [held_out[row] for row in rows], **_computing(config))
        for row, own in zip(rows, scores.tolist(), strict=True):
            rewards[row] = own
    return rewards


# --- what the pairs tell ---------------------------------------------------------------------------------------------


def of_pairs(
    held_out: Sequence[EncodedGroup], rewards: Sequence[Sequence[float]], train: Sequence[EncodedGroup]
) -> dict[str, Any]:
    """Bias, strata and label noise: no model is asked anything more.

    Args:
        held_out: groups with a comparison each.
        rewards: of each of their responses.
        train: the training groups, whose repeated labels count too.
    """
    pairs = Pairs.of(held_out, rewards)
    votes = repeated_votes([group.source for group in [*train, *held_out]])
    report: dict[str, Any] = {
        "bias": bias_report(pairs.margin, pairs.p, pairs.longer, pairs.texts),
        "strata": _strata(pairs),
        "label_noise": {
            "disagreement": disagreement(votes),
            "lapse_model": lapse_model(pairs.margin, pairs.p),
        },
    }
    bounds = ceiling_bounds(votes) if len(votes) else "unknown"
    return report if bounds == "unknown" else report | {"noise_ceiling_bounds": list(bounds)}


def repeated_votes(groups: Sequence[Group]) -> Int[np.ndarray, "N 2"]:
    """The votes on each pair of responses that was labelled more than once, in whatever order; ties are no vote."""
    votes: dict[tuple[str, str, str], list[int]] = {}
    for group in groups:
        if isinstance(group.label, Preference) and group.label.probability != 0.5:
            first, second = (response.text for response in group.responses)
            a, b = sorted((first, second))
            chosen = first if group.label.probability > 0.5 else second
            votes.setdefault((repr(group.prompt), a, b), [0, 0])[int(chosen != a)] += 1
    return np.array([own for own in votes.values() if sum(own) >= 2], dtype=np.int64).reshape(-1, 2)


def _strata(pairs: Pairs) -> list[dict[str, Any]]:
    """Accuracy by stratum, over the pairs whose label prefers a side."""
    kept = np.flatnonzero(pairs.p != 0.5)
    if not len(kept):
        return []
    groups = [pairs.groups[row].source for row in kept]
    longer = (pairs.longer * np.sign(pairs.p - 0.5))[kept]
    strata: dict[str, list[str]] = {
        "the chosen one is": [("shorter", "equally long", "longer")[int(side) + 1] for side in np.sign(longer)],
        "length difference": quartiles(np.abs(longer), " tokens"),
        "score difference": quartiles(np.abs(pairs.margin[kept])),
        "turns": [str(len(group.prompt)) if not isinstance(group.prompt, str) else "text" for group in groups],
        "annotator": [getattr(group.label, "annotator", None) or "unknown" for group in groups],
    }
    for name in dict.fromkeys(name for group in groups for name in group.columns):
        values = [group.columns.get(name) for group in groups]
        if all(isinstance(value, str | bool | int | None) for value in values) and len(set(values)) <= DISTINCT:
            strata.setdefault(name, [str(value) for value in values])
    return strata_report(pairs.hits[kept], strata)


# --- what the model is asked -----------------------------------------------------------------------------------------


def probes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[EncodedGroup],
    train: Sequence[EncodedGroup],
    config: TrainingConfig,
) -> list[dict[str, Any]]:
    """Adversarial probes of the better responses of held-out groups; see `probe_groups`."""
    chosen = [
        replace(group.source, responses=(group.source.responses[best],), label=None)
        for group in _some(held_out, PROBED, len(train) // 20, config, "probes")
        if (best := _best(group.source)) is not None
    ]
    encoded = []
    for group in probe_groups(chosen):
        try:
            encoded.append(encode(group, tokenizer, max_length=config.max_length or context_length(model)))
        except DataError:  # a template or tokenizer may make nothing of half a response, say: no reason to end the run
            continue
    return probe_report(score_encoded(model, encoded, **_computing(config)).double().numpy()) if encoded else []


def feature_range(
    model: PreTrainedModel,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    samples: Sequence[EncodedGroup],
    config: TrainingConfig,
) -> tuple[FeatureRange, dict[str, Any]]:
    """What the model was trained on, in its features, and how far from it held-out responses and samples lie.

    Args:
        model: with its final weights.
        train, held_out: comparisons.
        samples: responses of the model that training began with; may be empty.
        config: the run's.

    Returns:
        The range, and for each set its `responses`, `quantiles` of the distance and share `beyond` the threshold.
    """
    most = len(train) // 4
    seen = _features(model, _some(train, FITTED, most, config, "features"), config)
    unseen = _features(model, _some(held_out, FITTED, most, config, "features"), config) if held_out else None
    fitted = FeatureRange.fit(seen, held_out=unseen)
    sets = {"training": seen, "held out": unseen, "samples": _features(model, samples, config) if samples else None}
    figures: dict[str, Any] = {"threshold": fitted.threshold, "dimensions": len(fitted.mean)}
    for name, features in sets.items():
        if features is not None:
            distance = fitted.distance(features).double()
            figures[name] = {
                "responses": len(distance),
                "quantiles": {str(q): float(distance.quantile(q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
                "beyond": float((distance > fitted.threshold).double().mean()),
            }
    return fitted, figures


def best_of_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[EncodedGroup],
    config: TrainingConfig,
    *,
    n: int,
    max_new_tokens: int,
    gold: Reward | None,
) -> list[dict[str, Any]]:
    """What the best of k ≤ n samples of `config.model` is worth to this reward, and to another one if there is one."""
    prompts = _some(held_out, POOLS, POOLS, config, "best of n")
    pool = sample(tokenizer, prompts, config, group_size=n, max_new_tokens=max_new_tokens, purpose="best of n")
    groups = [group.source for group in pool]
    reward = LearnedReward(model, tokenizer, policy_tokenizer=tokenizer, **_computing(config))
    return curve(groups, reward(groups).tolist(), gold(groups).tolist() if gold is not None else None)


def sample(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedGroup],
    config: TrainingConfig,
    *,
    group_size: int,
    max_new_tokens: int,
    purpose: str,
) -> list[EncodedGroup]:
    """Responses of the model that training began with, to the prompts of some rows; a prompt without room is left out.

    Args:
        tokenizer: the reward model's. It is the policy's, save for a pad token, so the sampled ids are kept.
        rows: whose prompts.
        config: the run's.
        group_size: responses to a prompt.
        max_new_tokens: longest of them.
        purpose: names the stream of random numbers.
    """
    policy, own = load_policy(config.model, device=config.device)
    room = (context_length(policy) or 1 << 30) - max_new_tokens
    prompts = [row for row in rows if len(row.prompt_ids) <= room]
    sampler = LocalSampler(policy, own, max_new_tokens=max_new_tokens)
    with autocast(config.dtype, policy.device):
        batch = sampler(
            [prompt.prompt_ids for prompt in prompts], group_size=group_size, seed=derive_seed(config.seed, purpose)
        )
    sampled = decode_groups(batch, [prompt.source for prompt in prompts], own, end_ids(own))
    return encode_all(sampled, tokenizer, max_length=None)[0]


# --- would more labels help ------------------------------------------------------------------------------------------


def more_labels(
    train_on: Callable[[Any], RunFolder],
    config: TrainingConfig,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    rewards: Sequence[Sequence[float]],
    *,
    ceiling: float | None,
) -> dict[str, Any]:
    """Train afresh on an eighth, a quarter and half of the rows, and draw the learning curve on to twice as many.

    Each is a run of its own under `out/learning-curve/`, with the same settings and as many passes over its rows.

    Args:
        train_on: trains a reward model by a config.
        config: the run's.
        train, held_out: its rows.
        rewards: its scores of the held-out responses.
        ceiling: the noise ceiling, where it is known.
    """
    rows = [round(share * len(train)) for share in SHARES.values()]
    place = Path(config.out) / "learning-curve"
    place.mkdir(exist_ok=True)
    write_groups((group.source for group in held_out), place / "held-out.jsonl")
    shuffled = [train[row] for row in order(len(train), seed=derive_seed(config.seed, "learning curve"), epoch=0)]
    measured = []
    for name, size in zip(SHARES, rows, strict=True):
        write_groups((group.source for group in shuffled[:size]), place / f"{name}.jsonl")
        steps = None if config.max_steps is None else max(1, round(config.max_steps * size / len(train)))
        changes = {
            "data": str(place / f"{name}.jsonl"), "eval_data": str(place / "held-out.jsonl"), "out": place / name,
            "max_steps": steps, "max_eval_rows": None, "centre_data": None, "centre_samples": 0, "best_of": 0,
            "gold": None, "learning_curve": False, "trackers": (),
        }  # fmt: skip
        folder = train_on(type(config).make(config.model_dump() | changes, source=str(place)))
        model, _ = load_reward_model(folder.path, device=config.device)
        measured.append(Pairs.of(held_out, held_out_rewards(model, held_out, config)))
    measured.append(Pairs.of(held_out, rewards))
    decided = measured[0].p != 0.5
    return learning_curve(
        [*rows, len(train)],
        np.stack([pairs.hits[decided] for pairs in measured]),
        np.stack([pairs.log_loss[decided] for pairs in measured]),
        ceiling=ceiling,
    )


def check_rows(train: Sequence[EncodedGroup], held_out: Sequence[EncodedGroup], *, live: bool) -> None:
    """Refuse a learning curve that cannot be drawn, before anything is trained.

    Raises:
        ConfigError: there are too few rows, or a live model is trained, of which there is no second one.
    """
    if len(train) < FEWEST or len(held_out) < 2:
        raise ConfigError(
            f"learning_curve needs {FEWEST} training rows and two held out, got {len(train)} and {len(held_out)}; "
            "leave it out"
        )
    if live:
        raise ConfigError("learning_curve trains afresh and cannot with a live model; give the model by its folder")


def _features(model: PreTrainedModel, groups: Sequence[EncodedGroup], config: TrainingConfig) -> Float[Tensor, "N D"]:
    """Features of all responses, whatever the groups' K."""
    sizes = sorted({len(group.responses) for group in groups})
    parts = [
        features_encoded(model, [g for g in groups if len(g.responses) == size], **_computing(config)).flatten(0, 1)
        for size in sizes
    ]
    return torch.cat(parts)


def _some(
    groups: Sequence[EncodedGroup], most: int, share: int, config: TrainingConfig, purpose: str
) -> list[EncodedGroup]:
    """At most `most` groups and about `share`, the same ones whenever asked."""
    count = min(len(groups), most, max(FEWEST, share))
    return [groups[row] for row in order(len(groups), seed=derive_seed(config.seed, purpose), epoch=0)[:count]]


def _best(group: Group) -> int | None:
    """The response that the label prefers; None for a tie."""
    if isinstance(group.label, Preference):
        return None if group.label.probability == 0.5 else int(group.label.probability < 0.5)
    return group.label.ranks.index(min(group.label.ranks)) if isinstance(group.label, Ranking) else None


def _computing(config: TrainingConfig) -> dict[str, Any]:
    return {"dtype": config.dtype, "micro_batch_tokens": config.micro_batch_tokens}
