"""The report on a reward model beyond its accuracy: bias, accuracy by kind of pair, adversarial probes, label noise,
learning curve, and distance from the training responses.

Every figure is computed in `kleash.evals`; this module runs the model. Rows are capped, so that by default the report
costs little compared with training. Formulas: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.data.batching import order
from kleash.data.chat import encode, encode_all
from kleash.data.formats import write_groups
from kleash.data.group import EncodedGroup, Group, Preference, Ranking, prompt_key
from kleash.errors import ConfigError, DataError
from kleash.evals.best_of_n_report import BestOfK, best_of_n_curve
from kleash.evals.bias import BiasReport, bias_report
from kleash.evals.intervals import Prompts, number_prompts
from kleash.evals.learning_curve import LearningCurve, learning_curve
from kleash.evals.noise import LabelNoise, disagreement, lapse_model
from kleash.evals.preference_report import PreferenceReport, ceiling_bounds, preference_report
from kleash.evals.probes import ProbeResult, probe_groups, probe_report
from kleash.evals.strata import Partition, quartiles, strata_report
from kleash.io import Json
from kleash.models.compute import Compute
from kleash.models.load import context_length, load_policy
from kleash.rewards.feature_range import FeatureRange
from kleash.rewards.learned import LearnedReward, features_encoded, score_encoded
from kleash.rewards.reward import Reward, opinions
from kleash.run import derive_seed
from kleash.sampling.sampler import build_sampler, sample_groups
from kleash.training.after_training import Skipped

PROBED = 200
"""Most prompts whose chosen response is probed; a twentieth of the training rows where that is less."""
FITTED = 1024
"""Most training rows whose features are measured; a quarter of them where that is less."""
FEWEST = 50
"""But at least this many of either, where they exist."""
POOLS = 64
"""Most prompts to which n responses are sampled."""
DISTINCT = 12
"""A column with more different values than this is not used for strata."""
SHARES = {"1-8": 0.125, "1-4": 0.25, "1-2": 0.5}
"""Shares of the training rows, besides all of them, on which the learning curve trains; each is a subset of the
next."""


@dataclass(frozen=True)
class FeatureDistance:
    """How far a set of responses lies from the training responses, in the features that the score is read from."""

    responses: int
    """How many."""
    quantiles: dict[str, float]
    """Of the Mahalanobis distance √((f−μ)ᵀΣ⁻¹(f−μ)) (Lee et al. 2018, arXiv:1807.03888), at 0.05, 0.25, 0.5, 0.75 and
    0.95."""
    beyond: float
    """Share beyond the threshold."""


@dataclass(frozen=True, kw_only=True)
class RewardReport(PreferenceReport):
    """The report on a reward model in run.json, on held-out pairs."""

    bias: BiasReport
    """What the model rewards beyond its labels."""
    strata: list[Partition]
    """Accuracy by kind of pair."""
    label_noise: LabelNoise
    """How noisy the labels are."""
    probes: list[ProbeResult] | Skipped | None
    """The better responses of held-out pairs, degraded on purpose."""
    best_of: list[BestOfK] | Skipped | None
    """With `best_of`: the mean reward of the best of k samples of `model`, to up to 64 held-out prompts."""
    learning_curve: LearningCurve | Skipped | None
    """With `learning_curve`: accuracy against the number of labels."""
    distance: Json | Skipped | None
    """`threshold`: 0.99 quantile of the distance of held-out responses, of training ones without those; `dimensions`
    of the features. For `training`, `held out` and `samples` (of the centring) the distances. μ and Σ are those of the
    responses of up to 1,024 training rows (a quarter of them), Σ shrunk towards a multiple of the identity (Ledoit &
    Wolf 2004). The range is stored next to the weights as `features.safetensors`."""


@dataclass(frozen=True)
class Pairs:
    """Held-out comparisons with the model's rewards, one entry per pair."""

    groups: list[EncodedGroup]
    ends: list[tuple[int, int]]
    """Indices of the two responses in their group."""
    p: Float[np.ndarray, " N"]
    """The label, P(first ≻ second)."""
    margin: Float[np.ndarray, " N"]
    longer: Float[np.ndarray, " N"]
    """Tokens of the first minus those of the second."""

    @classmethod
    def of(cls, groups: Sequence[EncodedGroup], rewards: Sequence[Sequence[float]]) -> Pairs:
        """All comparisons in the labels of some groups."""
        rows = [
            (group, a, b, p, scores[a] - scores[b], len(group.responses[a].ids) - len(group.responses[b].ids))
            for group, scores in zip(groups, rewards, strict=True)
            for a, b, p in pairs_of(group.source)
        ]
        numbers = np.array([row[3:] for row in rows], dtype=np.float64).reshape(-1, 3)
        return cls([row[0] for row in rows], [(row[1], row[2]) for row in rows], *numbers.T)

    @property
    def prompts(self) -> Prompts:
        """The prompt of each pair: pairs of one prompt are not independent."""
        return number_prompts([group.prompt_ids for group in self.groups])

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Both responses of each pair."""
        return [
            (group.source.responses[a].text, group.source.responses[b].text)
            for group, (a, b) in zip(self.groups, self.ends, strict=True)
        ]

    @property
    def hits(self) -> Float[np.ndarray, " N"]:
        """1 where the margin has the label's sign, 0 where it has the other sign, one half where it is 0."""
        return 0.5 + 0.5 * np.sign(self.margin) * np.sign(self.p - 0.5)

    @property
    def log_loss(self) -> Float[np.ndarray, " N"]:
        """−p log σ(m) − (1 − p) log σ(−m) of each pair, in nats."""
        return self.p * np.logaddexp(0, -self.margin) + (1 - self.p) * np.logaddexp(0, self.margin)


def pairs_of(group: Group) -> list[tuple[int, int, float]]:
    """The comparisons in a label: (a, b, P(a ≻ b)), a ranked before b."""
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
    model: PreTrainedModel, held_out: Sequence[EncodedGroup], *, compute: Compute
) -> list[list[float]]:
    """The score of every response, in the order of the groups, which may differ in K."""
    rewards: list[list[float]] = [[]] * len(held_out)
    for size in sorted({len(group.responses) for group in held_out}):
        rows = [row for row, group in enumerate(held_out) if len(group.responses) == size]
        scores = score_encoded(model, [held_out[row] for row in rows], compute=compute)
        for row, values in zip(rows, scores.tolist(), strict=True):
            rewards[row] = values
    return rewards


# --- figures of the pairs --------------------------------------------------------------------------------------------


def preference_figures(
    held_out: Sequence[EncodedGroup], rewards: Sequence[Sequence[float]], train: Sequence[EncodedGroup]
) -> PreferenceReport:
    """The report on a reward of each response of the held-out groups, explicit or implicit.

    Args:
        held_out: groups with a comparison each.
        rewards: their rewards, in the same order.
        train: the training groups, on which the length baseline is fitted.
    """
    pairs = [
        (group, row, *pair) for group, row in zip(held_out, rewards, strict=True) for pair in pairs_of(group.source)
    ]
    probabilities = [group.source.columns.get("label_probability") for group, *_ in pairs]
    train_p, train_lengths = _labels(train)
    return preference_report(
        np.array([(row[a], row[b]) for _, row, a, b, _ in pairs]),
        *_labels(held_out),
        label_probability=None if None in probabilities else np.array(probabilities, dtype=float),
        train_p=train_p,
        train_lengths=train_lengths,
        prompts=number_prompts([group.prompt_ids for group, *_ in pairs]),
    )


def reward_report(
    held_out: Sequence[EncodedGroup],
    rewards: Sequence[Sequence[float]],
    train: Sequence[EncodedGroup],
    *,
    probes: list[ProbeResult] | Skipped | None = None,
    best_of: list[BestOfK] | Skipped | None = None,
    learning_curve: LearningCurve | Skipped | None = None,
    distance: Json | Skipped | None = None,
) -> RewardReport:
    """The whole report: the figures of the held-out pairs, joined with the other measurements.

    Args:
        held_out: groups with a comparison each.
        rewards: of each of their responses.
        train: the training groups, whose repeated labels count too.
        probes, best_of, learning_curve, distance: of the functions below; None: not measured.
    """
    pairs = Pairs.of(held_out, rewards)
    votes, voted = repeated_votes([group.source for group in [*train, *held_out]])
    figures = vars(preference_figures(held_out, rewards, train))
    if len(votes):
        figures = figures | {"noise_ceiling_bounds": ceiling_bounds(votes)}
    return RewardReport(
        **figures,
        bias=bias_report(pairs.margin, pairs.p, pairs.longer, pairs.texts, pairs.prompts),
        strata=_strata(pairs),
        label_noise=LabelNoise(disagreement(votes, voted), lapse_model(pairs.margin, pairs.p, pairs.prompts)),
        probes=probes,
        best_of=best_of,
        learning_curve=learning_curve,
        distance=distance,
    )


def _labels(groups: Sequence[EncodedGroup]) -> tuple[np.ndarray, np.ndarray]:
    """P(a ≻ b) and the lengths in tokens of each comparison."""
    pairs = [(group, *pair) for group in groups for pair in pairs_of(group.source)]
    lengths = [(len(group.responses[a].ids), len(group.responses[b].ids)) for group, a, b, _ in pairs]
    return np.array([p for *_, p in pairs]), np.array(lengths)


def repeated_votes(groups: Sequence[Group]) -> tuple[Int[np.ndarray, "N 2"], Prompts]:
    """The votes on each pair of responses that was labelled more than once, in either order, and the prompt of each;
    ties do not count.
    """
    votes: dict[tuple[str, str, str], list[int]] = {}
    for group in groups:
        if isinstance(group.label, Preference) and group.label.probability != 0.5:
            first, second = (response.text for response in group.responses)
            a, b = sorted((first, second))
            chosen = first if group.label.probability > 0.5 else second
            votes.setdefault((prompt_key(group.prompt), a, b), [0, 0])[int(chosen != a)] += 1
    repeated = {key: counts for key, counts in votes.items() if sum(counts) >= 2}
    table = np.array(list(repeated.values()), dtype=np.int64).reshape(-1, 2)
    return table, number_prompts([prompt for prompt, *_ in repeated])


def _strata(pairs: Pairs) -> list[Partition]:
    """Accuracy by stratum, over the pairs whose label prefers a side."""
    decided = np.flatnonzero(pairs.p != 0.5)
    if not len(decided):
        return []
    groups = [pairs.groups[row].source for row in decided]
    longer = (pairs.longer * np.sign(pairs.p - 0.5))[decided]
    strata: dict[str, list[str]] = {
        "the chosen one is": [("shorter", "equally long", "longer")[int(side) + 1] for side in np.sign(longer)],
        "length difference": quartiles(np.abs(longer), " tokens"),
        "score difference": quartiles(np.abs(pairs.margin[decided])),
        "turns": [str(len(group.prompt)) if not isinstance(group.prompt, str) else "text" for group in groups],
        "annotator": [getattr(group.label, "annotator", None) or "unknown" for group in groups],
    }
    for name in dict.fromkeys(name for group in groups for name in group.columns):
        values = [group.columns.get(name) for group in groups]
        if all(isinstance(value, str | bool | int | None) for value in values) and len(set(values)) <= DISTINCT:
            strata.setdefault(name, [str(value) for value in values])
    return strata_report(pairs.hits[decided], strata, pairs.prompts[decided])


# --- measurements of the model---------------------------------------------------------------------------------------


def probe_results(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[EncodedGroup],
    *,
    train_rows: int,
    max_length: int | None,
    seed: int,
    compute: Compute,
    rows: int = PROBED,
) -> list[ProbeResult] | Skipped:
    """Adversarial probes of the better responses of held-out groups; see `probe_groups`.

    Args:
        model: with its final weights.
        tokenizer: its own.
        held_out: comparisons.
        train_rows: how many rows the model was trained on; one response is probed per twenty of them.
        max_length: longest prompt and response in tokens; None is the model's context.
        seed: of which rows are taken.
        compute: where and how.
        rows: most of them.
    """
    chosen = [
        replace(group.source, responses=(group.source.responses[best],), label=None)
        for group in _some(held_out, rows, train_rows // 20, seed, "probes")
        if (best := _best(group.source)) is not None
    ]
    encoded = []
    for group in probe_groups(chosen):
        try:
            encoded.append(encode(group, tokenizer, max_length=max_length or context_length(model)))
        except DataError:  # one row that cannot be degraded, say because a template refuses half a response
            continue
    if not encoded:
        return Skipped("no held-out response can be degraded and encoded; hold out more pairs of more than one prompt")
    scores = score_encoded(model, encoded, compute=compute).double().numpy()
    return probe_report(scores, number_prompts([group.prompt_ids for group in encoded]))


def feature_range(
    model: PreTrainedModel,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    samples: Sequence[EncodedGroup],
    *,
    seed: int,
    compute: Compute,
    rows: int = FITTED,
) -> tuple[FeatureRange, Json]:
    """The range of the training responses in the model's features, and the distance of held-out responses and samples.

    Args:
        model: with its final weights.
        train, held_out: comparisons.
        samples: responses of the model that training began with; may be empty.
        seed: of which rows are taken.
        compute: where and how.
        rows: most rows of either set.

    Returns:
        The range, and `RewardReport.distance`.
    """
    most = len(train) // 4
    trained = _features(model, _some(train, rows, most, seed, "features"), compute)
    unseen = _features(model, _some(held_out, rows, most, seed, "features"), compute) if held_out else None
    fitted = FeatureRange.fit(trained, held_out=unseen)
    sets = {
        "training": trained,
        "held out": unseen,
        "samples": _features(model, samples, compute) if samples else None,
    }
    figures: Json = {"threshold": fitted.threshold, "dimensions": len(fitted.mean)}
    for name, features in sets.items():
        if features is not None:
            figures[name] = _distance(fitted, features)
    return fitted, figures


def _distance(fitted: FeatureRange, features: Float[Tensor, "N D"]) -> FeatureDistance:
    distance = fitted.distance(features).double()
    return FeatureDistance(
        responses=len(distance),
        quantiles={str(q): float(distance.quantile(q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        beyond=float((distance > fitted.threshold).double().mean()),
    )


def best_of_curve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[EncodedGroup],
    *,
    policy: str,
    n: int,
    max_new_tokens: int,
    gold: Reward | None,
    seed: int,
    compute: Compute,
) -> list[BestOfK] | Skipped:
    """The mean reward of the best of k ≤ n samples of a policy, by this reward and by another one if there is one.

    Args:
        model, tokenizer: the reward model.
        held_out: whose prompts are answered.
        policy: a folder or hub name.
        n: responses to a prompt.
        max_new_tokens: longest of them.
        gold: another reward, which only measures.
        seed: of the draws.
        compute: where and how.
    """
    pool = sample(
        tokenizer, _some(held_out, POOLS, POOLS, seed, "best of n"),
        policy=policy, group_size=n, max_new_tokens=max_new_tokens, seed=derive_seed(seed, "best of n"),
        compute=compute,
    )  # fmt: skip
    if not pool:
        return Skipped(f"no held-out prompt leaves room for a response in the context of {policy}")
    groups = [group.source for group in pool]
    reward = LearnedReward(model, tokenizer, policy_tokenizer=tokenizer, compute=compute)
    return best_of_n_curve(
        groups, reward(groups).tolist(), opinions(gold, groups).tolist() if gold is not None else None
    )


def sample(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedGroup],
    *,
    policy: str,
    group_size: int,
    max_new_tokens: int,
    seed: int,
    compute: Compute,
) -> list[EncodedGroup]:
    """Responses of a policy to the prompts of some rows, within its context.

    Args:
        tokenizer: the reward model's. It equals the policy's except for a pad token, so the sampled ids are used
            directly.
        rows: whose prompts.
        policy: a folder or hub name.
        group_size: responses to a prompt.
        max_new_tokens: longest of them; at most half of the policy's context.
        seed: of the draws.
        compute: where and how.

    Returns:
        A group for each prompt that leaves room for its responses; empty where none does.
    """
    model, policy_tokenizer = load_policy(policy, device=compute.device)
    context = context_length(model)
    limit = max_new_tokens if context is None else min(max_new_tokens, context // 2)
    prompts = [row for row in rows if context is None or len(row.prompt_ids) + limit <= context]
    if not prompts:
        return []
    sampler = build_sampler(model, policy_tokenizer, max_new_tokens=limit, dtype=compute.dtype)
    _, groups = sample_groups(sampler, policy_tokenizer, prompts, group_size=group_size, seed=seed)
    return encode_all(groups, tokenizer, max_length=None)[0]


# --- would more labels help ------------------------------------------------------------------------------------------


def more_labels(
    train_on: Callable[[Path, Mapping[str, Any]], Sequence[Sequence[float]]],
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    rewards: Sequence[Sequence[float]],
    *,
    out: Path,
    max_steps: int | None,
    seed: int,
    ceiling: float | None,
) -> LearningCurve:
    """Train anew on an eighth, a quarter and half of the rows, and extrapolate the learning curve to twice as many.

    Each is a separate run under `out/learning-curve/`, with the same settings and as many passes over its rows.

    Args:
        train_on: trains a reward model in a separate folder, with changes to the run's settings (`data`, `eval_data`,
            `max_steps`), and gives its rewards of the held-out responses.
        train, held_out: the run's rows.
        rewards: the run's scores of the held-out responses.
        out: the run's folder.
        max_steps: optimiser steps of the run; None goes by epochs.
        seed: the run's.
        ceiling: the noise ceiling; None where it is unknown.
    """
    rows = [round(share * len(train)) for share in SHARES.values()]
    folder = out / "learning-curve"
    folder.mkdir(exist_ok=True)
    write_groups((group.source for group in held_out), folder / "held-out.jsonl")
    shuffled = [train[row] for row in order(len(train), seed=derive_seed(seed, "learning curve"), epoch=0)]
    curve = []
    for name, size in zip(SHARES, rows, strict=True):
        write_groups((group.source for group in shuffled[:size]), folder / f"{name}.jsonl")
        changes = {
            "data": str(folder / f"{name}.jsonl"),
            "eval_data": str(folder / "held-out.jsonl"),
            "max_steps": None if max_steps is None else max(1, round(max_steps * size / len(train))),
        }
        curve.append(Pairs.of(held_out, train_on(folder / name, changes)))
    curve.append(Pairs.of(held_out, rewards))
    decided = curve[0].p != 0.5
    return learning_curve(
        [*rows, len(train)],
        np.stack([pairs.hits[decided] for pairs in curve]),
        np.stack([pairs.log_loss[decided] for pairs in curve]),
        ceiling=ceiling,
        prompts=curve[0].prompts[decided],
    )


def check_rows(train: Sequence[EncodedGroup], held_out: Sequence[EncodedGroup], *, live: bool) -> None:
    """Refuse a learning curve that cannot be measured, before anything is trained.

    Raises:
        ConfigError: there are too few rows, or the model is a live object, which cannot be loaded again.
    """
    prompts = len({group.prompt_ids for group in held_out})
    if len(train) < FEWEST or prompts < 2:
        raise ConfigError(
            f"learning_curve needs {FEWEST} training rows and two prompts held out, got {len(train)} and {prompts}; "
            "leave it out"
        )
    if live:
        raise ConfigError("learning_curve trains anew and cannot use a live model; give the model by its folder")


def _features(model: PreTrainedModel, groups: Sequence[EncodedGroup], compute: Compute) -> Float[Tensor, "N D"]:
    """Features of all responses, for groups of any K."""
    sizes = sorted({len(group.responses) for group in groups})
    parts = [
        features_encoded(model, [g for g in groups if len(g.responses) == size], compute=compute).flatten(0, 1)
        for size in sizes
    ]
    return torch.cat(parts)


def _some(groups: Sequence[EncodedGroup], most: int, share: int, seed: int, purpose: str) -> list[EncodedGroup]:
    """At most `most` groups and about `share`; the same ones on every call."""
    count = min(len(groups), most, max(FEWEST, share))
    return [groups[row] for row in order(len(groups), seed=derive_seed(seed, purpose), epoch=0)[:count]]


def _best(group: Group) -> int | None:
    """The response that the label prefers; None for a tie."""
    if isinstance(group.label, Preference):
        return None if group.label.probability == 0.5 else int(group.label.probability < 0.5)
    return group.label.ranks.index(min(group.label.ranks)) if isinstance(group.label, Ranking) else None
