"""Reward model: learn from comparisons what people prefer.

Bradley–Terry says P(a ≻ b | x) = σ(r(x, a) − r(x, b)); training minimises −log of that for what was chosen. Only the
difference is identified, so afterwards the scores are shifted to mean zero on samples of the model it started from (the
SFT model, in the chain): zero is then "as good as SFT", and penalties and clips of the next stage have a meaning.

    kleash reward --model runs/sft --data comparisons.jsonl --out runs/reward

Left out: several epochs by default (more than one overfits fast: Ouyang et al. 2022, arXiv:2203.02155, C.2).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import outcomes, preconditions
from kleash.checks.gates import gate_in, gate_out
from kleash.data.batching import batch_at, microbatches
from kleash.data.chat import encode_all, end_ids
from kleash.data.group import EncodedGroup, Group, GroupBatch, Preference, Ranking, collate
from kleash.data.split import comparison, demonstration, imitated, read_split, read_usable
from kleash.evals.preference import preference_report
from kleash.models.forward import check_forward, response_scores
from kleash.models.load import autocast, context_length, load_policy, new_reward_model, save_model
from kleash.models.lora import merge_lora
from kleash.objectives.bradley_terry import pair_loss, ranking_loss
from kleash.rewards.learned import score_encoded
from kleash.run import RunFolder, derive_seed
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups
from kleash.stages.artifacts import inputs_of, model_card
from kleash.stages.settings import TrainingConfig
from kleash.stages.trainable import make_trainable
from kleash.training import checkpoint
from kleash.training.optim import Optimizer
from kleash.training.progress import Progress
from kleash.training.selection import Selection
from kleash.training.trackers import Trackers, require

logger = logging.getLogger("kleash")

SHOWN = ("loss", "accuracy", "eval_accuracy")
"""Figures of the progress bar."""

FORMULA = (
    "loss = mean over prompts of mean over pairs of − p log σ(r_a − r_b − m) − (1 − p) log σ(r_b − r_a + m)"
    " + centring · (r_a + r_b)²"
)


class RewardConfig(TrainingConfig):
    """Learn a reward from comparisons. Defaults: Ouyang et al. 2022 (arXiv:2203.02155), C.2, unless a field says."""

    batch_size: int = Field(64, ge=1)
    """Prompts in one optimiser step, each with all pairs of its K responses."""
    learning_rate: float = Field(9e-6, ge=0)
    """Peak learning rate; N+ (arXiv:2403.17031) took 3e-6."""
    schedule: str = Field("cosine", pattern="^(linear|cosine|constant)$")  # type: ignore[assignment]
    """How the rate falls: cosine to a tenth as InstructGPT, linear to 0, or constant."""
    margin: float = Field(0.0, ge=0)
    """m: the chosen response's score has to lead by this much (Touvron et al. 2023, arXiv:2307.09288, eq. 2)."""
    centring: float = Field(0.0, ge=0)
    """Coefficient of (r_a + r_b)², which keeps scores near zero while training (Eisenstein et al. 2023,
    arXiv:2312.09244). The final shift to mean zero is done in any case."""
    centre_data: str | None = None
    """Rows with one response whose mean score becomes zero; null samples them from `model`."""
    centre_samples: int = Field(128, ge=0)
    """How many responses to sample for the centring; 0 takes the training responses instead."""
    centre_max_new_tokens: int = Field(64, ge=1)
    """Longest of those samples, in tokens."""


def run(config: RewardConfig, *, reward: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> RunFolder:
    """Train a reward model and write a folder that `transformers` loads as a sequence classifier.

    Args:
        config: the settings.
        reward: a live classifier with one output, and its tokenizer, to train in place of a new head on `config.model`.

    Returns:
        The finished run; the report on held-out pairs is in run.json under `results`.
    """
    require(config.trackers)
    folder = RunFolder.open(config.out, stage="reward", config=config, inputs=inputs_of(config, model=reward))
    if folder.finished:
        return folder
    gate_in(folder, role="model", parent=config.model, force=config.force)
    model, tokenizer = reward or new_reward_model(config.model, seed=config.seed, device=config.device)
    make_trainable(model, config)
    train, held_out = _comparisons(config, model, tokenizer)
    check_forward(model, collate([min(train, key=lambda group: group.length)], device=model.device))
    steps = config.steps(len(train))
    folder.note("formulas", loss=FORMULA)

    optimizer = Optimizer(model, steps=steps, **config.optimizer_settings())
    parts: checkpoint.Parts = {"model": model, "optimizer": optimizer}
    state = checkpoint.restore(folder, parts)
    selection = Selection(folder, config.choose, step=state.get("best_step", 0), least=state.get("best_figure"))
    figures: dict[str, Any] | None = None
    with Progress(steps, "reward", start=state["step"]) as progress, Trackers(config.trackers, folder) as trackers:
        for step in range(state["step"] + 1, steps + 1):
            rows = batch_at(step - 1, len(train), config.batch_size, config.seed)
            metrics = _step(model, optimizer, [train[row] for row in rows], config)
            if held_out and config.due(step, steps):
                figures = report(model, held_out, train, config)
                metrics |= {"eval_accuracy": figures["accuracy"], "eval_log_loss": figures["log_loss"]}
                selection.offer(model, step, figures["log_loss"])
            row = folder.log(step, metrics)
            trackers.log(step, row)
            progress.update(step, **{name: row[name] for name in SHOWN if row.get(name) is not None})
            if step % config.save_interval(steps) == 0 and step < steps:
                checkpoint.save(folder, step, parts, keep=config.keep, **selection.numbers)

    checkpoint.save(folder, steps, parts, keep=config.keep, **selection.numbers)
    chosen = selection.take(model, steps)
    results: dict[str, Any] = {
        "step": chosen,
        "rows": len(train),
        "centred_on": _centre(model, tokenizer, train, config),
    }
    if held_out:
        # Only differences count, so centring changes no figure; the last weights have just been measured.
        results["report"] = figures if figures and chosen == steps else report(model, held_out, train, config)
        _verdict(folder, results["report"], train, config, live=reward is not None)
    merge_lora(model)
    save_model(folder.path, model, tokenizer, model_card(folder, _summary(results.get("report"))))
    return folder.finish(**results)


def report(
    model: PreTrainedModel, held_out: Sequence[EncodedGroup], train: Sequence[EncodedGroup], config: RewardConfig
) -> dict[str, Any]:
    """Accuracy with interval, log loss, calibration, length slope, noise ceiling: over all held-out pairs at once."""
    rewards: list[list[float]] = []
    ordered: list[EncodedGroup] = []
    for size in sorted({len(group.responses) for group in held_out}):
        groups = [group for group in held_out if len(group.responses) == size]
        table = score_encoded(model, groups, dtype=config.dtype, micro_batch_tokens=config.micro_batch_tokens)
        rewards += table.tolist()
        ordered += groups
    return rewards_report(ordered, rewards, train)


def rewards_report(
    held_out: Sequence[EncodedGroup], rewards: Sequence[Sequence[float]], train: Sequence[EncodedGroup]
) -> dict[str, Any]:
    """The report on a reward for each response of the held-out groups, explicit or implicit; formulas: docs/metrics.md.

    Args:
        held_out: groups with a comparison each.
        rewards: their rewards, in the same order.
        train: the training groups, on which the length baseline is fitted.
    """
    pairs = [
        (group, row, *pair) for group, row in zip(held_out, rewards, strict=True) for pair in pairs_of(group.source)
    ]
    known = [group.source.columns.get("label_probability") for group, *_ in pairs]
    return preference_report(
        np.array([(row[a], row[b]) for _, row, a, b, _ in pairs]),
        *_labels(held_out),
        label_probability=None if None in known else np.array(known, dtype=float),
        train_p=_labels(train)[0],
        train_lengths=_labels(train)[1],
    )


def _labels(groups: Sequence[EncodedGroup]) -> tuple[np.ndarray, np.ndarray]:
    """P(a ≻ b) and the lengths in tokens of each comparison."""
    pairs = [(group, *pair) for group in groups for pair in pairs_of(group.source)]
    lengths = [(len(group.responses[a].ids), len(group.responses[b].ids)) for group, a, b, _ in pairs]
    return np.array([p for *_, p in pairs]), np.array(lengths)


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


def group_loss(
    scores: Float[Tensor, "P K"], groups: Sequence[EncodedGroup], config: RewardConfig
) -> tuple[Float[Tensor, " P"], dict[str, Tensor]]:
    """Bradley–Terry on pairs or rankings, one loss a prompt, with its metrics."""
    labels = [group.source.label for group in groups]
    if all(isinstance(label, Preference) for label in labels):
        p = scores.new_tensor([label.probability for label in labels if isinstance(label, Preference)])
        return pair_loss(scores, p=p, margin=config.margin, centring=config.centring)
    ranks = torch.tensor([label.ranks for label in labels if isinstance(label, Ranking)], device=scores.device)
    return ranking_loss(scores, ranks, centring=config.centring)


def _step(
    model: PreTrainedModel, optimizer: Optimizer, groups: Sequence[EncodedGroup], config: RewardConfig
) -> dict[str, Any]:
    totals: dict[str, Tensor] = {}
    for part in microbatches(groups, max_tokens=config.micro_batch_tokens):
        chosen = [groups[row] for row in part]
        batch: GroupBatch = collate(chosen, device=model.device)
        with autocast(config.dtype, model.device):
            scores = response_scores(model, batch)
        loss, metrics = group_loss(scores.float(), chosen, config)
        optimizer.backward(loss.sum() / len(groups))
        for name, value in {"loss": loss.detach(), **metrics}.items():
            totals[name] = totals.get(name, torch.zeros((), device=model.device)) + value.sum() / len(groups)
    return {**totals, **optimizer.step()}


def _centre(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Sequence[EncodedGroup], config: RewardConfig
) -> str:
    """Shift the scores to mean zero; returns what they were centred on."""
    if config.centre_data is not None:
        rows = [imitated(row) for row in read_usable(config.centre_data, demonstration)]
        groups, on = encode_all(rows, tokenizer, max_length=config.max_length)[0], config.centre_data
    elif config.centre_samples:
        groups = _samples(model, tokenizer, train, config)
        on = f"{len(groups)} samples of {config.model}"
    else:
        groups, on = list(train), "the training responses"
    model.config.kleash_offset = 0.0
    sizes = {len(group.responses) for group in groups}
    scores = [
        score_encoded(model, [g for g in groups if len(g.responses) == size], dtype=config.dtype) for size in sizes
    ]
    model.config.kleash_offset = float(torch.cat([score.flatten() for score in scores]).double().mean())
    return on


def _samples(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Sequence[EncodedGroup], config: RewardConfig
) -> list[EncodedGroup]:
    policy, own = load_policy(config.model, device=config.device)
    rows = batch_at(0, len(train), min(config.centre_samples, len(train)), derive_seed(config.seed, "centre"))
    room = (context_length(policy) or 1 << 30) - config.centre_max_new_tokens
    prompts = [train[row] for row in rows if len(train[row].prompt_ids) <= room]
    sampler = LocalSampler(policy, own, max_new_tokens=config.centre_max_new_tokens)
    with autocast(config.dtype, policy.device):
        batch = sampler(
            [prompt.prompt_ids for prompt in prompts], group_size=1, seed=derive_seed(config.seed, "centre")
        )
    sampled = decode_groups(batch, [prompt.source for prompt in prompts], own, end_ids(own))
    # The reward model's tokenizer is the policy's, save for a pad token, so the sampled ids are scored as they are.
    return encode_all(sampled, tokenizer, max_length=None)[0]


def _verdict(
    folder: RunFolder, figures: dict[str, Any], train: Sequence[EncodedGroup], config: RewardConfig, *, live: bool
) -> None:
    origin = None  # a live reward model may speak another language than `config.model`
    if not live:
        origin = preconditions.origin(config.model, train, device=config.device, dtype=config.dtype)
    gate_out(folder, checks=outcomes.reward_model(figures, origin=origin))


def _accuracy(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    accuracy, pairs = figures["accuracy"], figures["pairs"]
    return f"held-out accuracy {accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, {pairs} pairs)"


def _summary(figures: dict[str, Any] | None) -> str:
    if figures is None:
        return "Not measured: no held-out pairs."
    return (
        f"{_accuracy(figures).capitalize()}. "
        "`transformers` gives this model's score up to the offset `kleash_offset` of its config."
    )


def _comparisons(
    config: RewardConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    train, held_out = read_split(
        config.data, config.eval_data, seed=config.seed, usable=comparison, max_eval_rows=config.max_eval_rows
    )
    length = config.max_length or context_length(model)
    encoded, truncation = encode_all(train, tokenizer, max_length=length)
    if truncation.message():
        logger.warning("%s: %s", config.data, truncation.message())
    return encoded, encode_all(held_out, tokenizer, max_length=length)[0] if held_out else []
