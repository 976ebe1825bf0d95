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
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import data_checks, outcome_checks
from kleash.checks.gates import record_checks
from kleash.checks.open_run import open_run
from kleash.data.batch import GroupBatch, collate
from kleash.data.batching import batch_at, microbatches
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup, Preference, Ranking
from kleash.data.split import comparison, demonstration, imitated, read_split, read_usable
from kleash.evals.preference_report import preference_report
from kleash.models.forward import check_forward, head_scores
from kleash.models.load import autocast, context_length, new_reward_model, save_model
from kleash.models.lora import merge_lora
from kleash.models.trainable import make_trainable
from kleash.objectives.bradley_terry import pair_loss, ranking_loss
from kleash.rewards.learned import score_encoded
from kleash.rewards.reward import Reward, build_reward
from kleash.run import RunFolder, derive_seed
from kleash.stages import reward_report
from kleash.stages.reward_report import held_out_rewards, pairs_of
from kleash.stages.training_configs import RewardConfig
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.loop import Loop, State
from kleash.training.model_folder import model_card
from kleash.training.optim import Optimizer

logger = logging.getLogger("kleash")

SHOWN = ("loss", "accuracy", "eval_accuracy")
"""Figures of the progress bar."""

FORMULA = (
    "loss = mean over prompts of mean over pairs of − p log σ(r_a − r_b − m) − (1 − p) log σ(r_b − r_a + m)"
    " + centring · (r_a + r_b)²"
)


def run(config: RewardConfig, *, reward: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> RunFolder:
    """Train a reward model and write a folder that `transformers` loads as a sequence classifier.

    Args:
        config: the settings.
        reward: a live classifier with one output, and its tokenizer, to train in place of a new head on `config.model`.

    Returns:
        The finished run; the report on held-out pairs is in run.json under `results`.
    """
    folder = open_run("reward", config, model=reward)
    if folder.finished:
        return folder
    model, tokenizer = reward or new_reward_model(
        config.model, seed=config.seed, heads=config.heads, device=config.device
    )
    if config.heads > 1:
        model.config.kleash_heads = {"combine": config.combine, "variance_penalty": config.variance_penalty}
    make_trainable(model, **config.adapter_settings())
    train, held_out = _comparisons(config, model, tokenizer)
    gold = None if config.gold is None else build_reward(config.gold, device=config.device, dtype=config.dtype)
    if config.learning_curve:
        reward_report.check_rows(train, held_out, live=reward is not None)
    check_forward(model, collate([min(train, key=lambda group: group.length)], device=model.device))
    steps = config.steps(len(train))
    folder.note("formulas", loss=FORMULA)

    optimizer = Optimizer(model, steps=steps, **config.optimizer_settings())
    best = BestCheckpoint(folder, config.keep_weights)
    state: State = {"model": model, "optimizer": optimizer, "best": best}
    loop = Loop(folder, total=steps, state=state, shown=SHOWN, **config.loop_settings())
    for step in loop:
        rows = batch_at(step - 1, len(train), config.batch_size, config.seed)
        metrics = update(model, [train[row] for row in rows], optimizer, config, head_weights(config, rows))
        if held_out and loop.due_to_evaluate(step):
            figures = rewards_report(held_out, held_out_rewards(model, held_out, config), train)
            metrics |= {"eval_accuracy": figures["accuracy"], "eval_log_loss": figures["log_loss"]}
            best.update(model, step, figures["log_loss"])
        loop.log(step, metrics)
    chosen = best.take(model, loop.step)
    rewards = held_out_rewards(model, held_out, config) if held_out else None
    samples, centred_on = centre(model, tokenizer, train, config)
    merge_lora(model)
    results: dict[str, Any] = {"step": chosen, "rows": len(train), "centred_on": centred_on}
    fitted, distances = reward_report.feature_range(model, train, held_out, samples, config)
    if rewards is not None:
        # Only differences count, so centring changes no figure of these.
        results["report"] = whole_report(model, tokenizer, train, held_out, rewards, config, gold) | {
            "distance": distances
        }
        on_policy_check = None  # a live reward model may speak another language than `config.model`
        if reward is None:
            on_policy_check = data_checks.on_policy_check(config.model, train, device=config.device, dtype=config.dtype)
        verdict(folder, results["report"], on_policy_check)
    save_model(folder.path, model, tokenizer, model_card(folder, summary(results.get("report"))))
    fitted.save(folder.path)
    return folder.finish(**results)


def whole_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    rewards: Sequence[Sequence[float]],
    config: RewardConfig,
    gold: Reward | None = None,
) -> dict[str, Any]:
    """All that run.json says of a single model; formulas: docs/metrics.md.

    The last three ask it more than the held-out pairs, or train it again.
    """
    found = {
        **rewards_report(held_out, rewards, train),
        **reward_report.of_pairs(held_out, rewards, train),
        "probes": reward_report.probes(model, tokenizer, held_out, train, config),
    }
    if config.best_of:
        found["best_of"] = reward_report.best_of_curve(
            model, tokenizer, held_out, config,
            n=config.best_of, max_new_tokens=config.centre_max_new_tokens, gold=gold,
        )  # fmt: skip
    if config.learning_curve:
        ceiling = found["noise_ceiling"]
        found["learning_curve"] = reward_report.more_labels(
            run, config, train, held_out, rewards, ceiling=None if ceiling == "unknown" else ceiling
        )
    return found


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


def head_weights(config: RewardConfig, rows: Sequence[int]) -> Float[Tensor, "P M"]:
    """What each comparison counts for each head: 1 for a single one, else 0 or 2 by chance, the same in every epoch."""
    if config.heads == 1:
        return torch.ones(len(rows), 1)
    draws = [torch.Generator().manual_seed(derive_seed(config.seed, "bootstrap", row)) for row in rows]
    return torch.stack([2.0 * torch.randint(2, (config.heads,), generator=draw) for draw in draws])


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


def update(
    model: PreTrainedModel,
    groups: Sequence[EncodedGroup],
    optimizer: Optimizer,
    config: RewardConfig,
    weights: Float[Tensor, "P M"],
) -> dict[str, Any]:
    """One optimiser step on some comparisons; `weights` says what each counts for each head."""
    totals: dict[str, Tensor] = {}
    for part in microbatches(groups, max_tokens=config.micro_batch_tokens):
        chosen = [groups[row] for row in part]
        batch: GroupBatch = collate(chosen, device=model.device)
        with autocast(config.dtype, model.device):
            scores = head_scores(model, batch).float()  # while training the centring offset is 0
        own = [group_loss(head, chosen, config) for head in scores.unbind(-1)]
        loss = torch.stack([loss for loss, _ in own], -1) * weights[part].to(model.device)
        optimizer.backward(loss.mean(-1).sum() / len(groups))
        figures = {name: torch.stack([metrics[name] for _, metrics in own], -1) for name in own[0][1]}
        for name, value in {"loss": loss.detach(), **figures}.items():
            totals[name] = totals.get(name, torch.zeros((), device=model.device)) + value.mean(-1).sum() / len(groups)
    return {**totals, **optimizer.step()}


def centre(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Sequence[EncodedGroup], config: RewardConfig
) -> tuple[list[EncodedGroup], str]:
    """Shift the scores to mean zero; returns the rows that did it, where they are not the training rows, and a name."""
    samples: list[EncodedGroup] = []
    if config.centre_data is not None:
        rows = [imitated(row) for row in read_usable(config.centre_data, demonstration)]
        samples, on = encode_all(rows, tokenizer, max_length=config.max_length)[0], config.centre_data
    elif config.centre_samples:
        samples = start_samples(tokenizer, train, config)
        on = f"{len(samples)} samples of {config.model}"
    else:
        on = "the training responses"
    groups = samples or train
    model.config.kleash_offset = 0.0
    sizes = {len(group.responses) for group in groups}
    scores = [
        score_encoded(model, [g for g in groups if len(g.responses) == size], dtype=config.dtype) for size in sizes
    ]
    model.config.kleash_offset = float(torch.cat([score.flatten() for score in scores]).double().mean())
    return samples, on


def start_samples(
    tokenizer: PreTrainedTokenizerBase, train: Sequence[EncodedGroup], config: RewardConfig
) -> list[EncodedGroup]:
    """Responses of `config.model` to some training prompts."""
    drawn = batch_at(0, len(train), min(config.centre_samples, len(train)), derive_seed(config.seed, "centre"))
    return reward_report.sample(
        tokenizer, [train[row] for row in drawn], config,
        group_size=1, max_new_tokens=config.centre_max_new_tokens, purpose="centre",
    )  # fmt: skip


def verdict(
    folder: RunFolder, figures: dict[str, Any], on_policy_check: outcome_checks.SampledBy | None = None
) -> None:
    """The gate out, on the report and on whose samples the training responses are."""
    record_checks(folder, checks=outcome_checks.reward_model(figures, on_policy_check=on_policy_check))


def _accuracy(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    accuracy, pairs = figures["accuracy"], figures["pairs"]
    return f"held-out accuracy {accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, {pairs} pairs)"


def summary(figures: dict[str, Any] | None) -> str:
    """The sentences of the model card."""
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
