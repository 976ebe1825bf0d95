"""Reward model: train a Bradley–Terry model on comparisons.

Bradley–Terry says P(a ≻ b | x) = σ(r(x, a) − r(x, b)); training minimises −log of that for the chosen response. Only
the difference is identified, so afterwards the scores are shifted to mean zero on samples of the model that training
started from (the SFT model, in the chain): zero is then "as good as SFT", which gives penalties and clips of the next
stage a meaning.

    kleash reward --model runs/sft --data comparisons.jsonl --out runs/reward

Left out: several epochs by default (more than one overfits fast: Ouyang et al. 2022, arXiv:2203.02155, C.2).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import data_checks, reward_checks
from kleash.checks.gates import record_checks
from kleash.checks.open_run import open_run, records_stop
from kleash.checks.reward_checks import OnPolicyExcess
from kleash.checks.reward_report import (
    FEWEST,
    FITTED,
    PROBED,
    RewardReport,
    best_of_curve,
    check_rows,
    feature_range,
    held_out_rewards,
    more_labels,
    preference_figures,
    probe_results,
    reward_report,
    sample,
)
from kleash.data.batch import GroupBatch, collate
from kleash.data.batching import batch_at, microbatches
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup, Preference, Ranking, Response, prompt_key
from kleash.data.read import read_encoded
from kleash.data.row_format import RowFormat
from kleash.data.split import comparison, demonstration, imitated, read_usable
from kleash.data.stream import Rows, batches, rows_used, stream_state
from kleash.errors import DataError
from kleash.evals.best_of_n_report import BestOfK
from kleash.evals.learning_curve import LearningCurve
from kleash.evals.preference_report import UNKNOWN, PreferenceReport
from kleash.evals.probes import PROBES, ProbeResult
from kleash.evals.report_values import as_json
from kleash.io import Json, write_text
from kleash.models.compute import Compute
from kleash.models.forward import Live, centring_offset, check_forward, head_scores
from kleash.models.load import context_length, load_reward_model, new_reward_model, outputs_of
from kleash.models.read_back import compare_offset
from kleash.models.trainable import make_trainable
from kleash.objectives.bradley_terry import pair_loss, ranking_loss
from kleash.rewards.build import build_reward
from kleash.rewards.learned import score_encoded
from kleash.rewards.reward import Reward, RowCheck
from kleash.run import RunFolder, StepMetrics, derive_seed
from kleash.stages.training_configs import RewardConfig
from kleash.training.after_training import Skipped, after_training, or_skip
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.loop import Loop, OnStep, State
from kleash.training.measurements import SAMPLED, Measurements, mean_tokens
from kleash.training.model_folder import model_card, write_model
from kleash.training.optim import Optimizer

logger = logging.getLogger("kleash")

SHOWN = ("loss", "accuracy", "eval_accuracy")
"""Figures of the progress bar."""

FORMULA = (
    "loss = mean over prompts of mean over pairs of − p log σ(r_a − r_b − m) − (1 − p) log σ(r_b − r_a + m)"
    " + centring · (r_a + r_b)²"
)

Drawn = tuple[str, list[int], bool]
"""A sample: the key of its prompt, its ids, whether it ended by itself."""

WITHOUT_REPORT: Mapping[str, Any] = {
    "max_eval_rows": None, "centre_data": None, "centre_samples": 0, "best_of": 0, "gold": None,
    "learning_curve": False, "trackers": (), "columns": None,
}  # fmt: skip
"""Settings of a run for a point of the learning curve: only its training."""


@records_stop
def run(config: RewardConfig, *, reward: Live | None = None, on_step: OnStep | None = None) -> RunFolder:
    """Train a reward model and write a folder that `transformers` loads as a sequence classifier.

    Args:
        config: the settings.
        reward: a live classifier with one output, and its tokenizer, to train in place of a new head on `config.model`.
        on_step: called after each step is logged, see `Loop`.

    Returns:
        The finished run; the report on held-out pairs is in run.json under `results`.
    """
    folder = open_run("reward", config, model=reward)
    if folder.finished:
        return folder
    model, tokenizer = new_reward_model(
        reward or config.model, seed=config.seed, heads=config.heads, device=config.device, adapter=config.adapter
    )
    if config.heads > 1:
        model.config.kleash_heads = {"combine": config.combine, "variance_penalty": config.variance_penalty}
    make_trainable(model, **config.adapter_settings())
    train, held_out = read_comparisons(config, model, tokenizer, folder.note)
    gold = gold_reward(config, held_out)
    if config.learning_curve:
        check_rows(train, held_out, live=reward is not None)
    check_forward(model, collate([min(train, key=lambda group: group.length)], device=model.device))
    steps = config.steps(len(train))
    optimizer = Optimizer(model, steps=steps, **config.optimizer_settings())
    best = BestCheckpoint(folder, config.keep_weights)
    state: State = {"model": model, "optimizer": optimizer, "best": best, **stream_state(train)}
    loop = Loop(folder, total=steps, state=state, shown=SHOWN, on_step=on_step, **config.loop_settings())
    folder.note("formulas", loss=FORMULA)
    for step, (rows, groups) in loop.over(batches(train, **config.batch_settings(len(train)), start=loop.step)):
        metrics = update(model, groups, optimizer, config, head_weights(config, rows))
        if held_out:
            metrics |= loop.evaluated(step, lambda step: evaluate(model, step, held_out, train, best, config.compute))
        loop.log(step, metrics)
    last = best.take(model, loop.step)
    write_model(folder, model, tokenizer, summary(None))
    samples, centred_on = centre_model(folder, model, tokenizer, train, config)
    live, measured = reward is not None, Measured(train, held_out, samples)
    results = after_training(folder, "report", lambda: report(folder, model, tokenizer, measured, config, gold, live))
    return folder.finish(step=last, rows=rows_used(train), centred_on=centred_on, **(results or {}))


def evaluate(
    model: PreTrainedModel,
    step: int,
    held_out: Sequence[EncodedGroup],
    train: Sequence[EncodedGroup],
    best: BestCheckpoint,
    compute: Compute,
) -> StepMetrics:
    """The figures of the held-out rows after a step; keeps the weights if their loss is the least so far."""
    figures = preference_figures(held_out, held_out_rewards(model, held_out, compute=compute), train)
    best.update(model, step, figures.log_loss)
    return {"eval_accuracy": figures.accuracy, "eval_log_loss": figures.log_loss}


@dataclass(frozen=True)
class Measured:
    """The rows on which a trained reward model is measured."""

    train: Sequence[EncodedGroup]
    held_out: Sequence[EncodedGroup]
    samples: Sequence[EncodedGroup]
    """Samples for centring; empty where the training responses are used."""


def gold_reward(config: RewardConfig, held_out: Sequence[EncodedGroup]) -> Reward | None:
    """The gold reward, where there is one.

    Raises:
        DataError: it cannot read a held-out row, whose prompt it is going to score responses to.
    """
    if config.gold is None:
        return None
    gold = build_reward(config.gold, compute=config.compute)
    rows = [group.source for group in held_out]
    RowCheck(gold)(rows, range(1, len(rows) + 1), "held-out rows")
    return gold


def report(
    folder: RunFolder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Measured,
    config: RewardConfig,
    gold: Reward | None,
    live: bool,
) -> StepMetrics:
    """The report on held-out pairs, with its checks and model card."""
    measurements = measurements_of(folder, model, rows.train, config)
    distance = save_feature_range(folder, model, rows.train, rows.held_out, rows.samples, config)
    if not rows.held_out:
        return {}
    held_out = measurements.some("held-out pairs", rows.held_out, part=0.25)
    rewards = measurements.keep(
        "held-out pairs", list[list[float]], lambda: held_out_rewards(model, held_out, compute=config.compute)
    )
    whole = whole_report(folder, model, tokenizer, rows.train, held_out, rewards, config, gold, distance)
    on_policy = None if live else on_policy_excess(config, rows.train, measurements)  # which may have other tokens
    record_checks(folder, checks=reward_checks.reward_model(whole, probes=whole.probes, on_policy=on_policy))
    write_text(folder.path / "README.md", model_card(folder, summary(whole)))
    return {"report": as_json(whole)}


def measurements_of(
    folder: RunFolder, model: PreTrainedModel, train: Sequence[EncodedGroup], config: RewardConfig
) -> Measurements:
    """What may be measured of a model that was trained on some rows."""
    return Measurements(folder, model, train, **config.measure_settings(len(train)))


def save_feature_range(
    folder: RunFolder,
    model: PreTrainedModel,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    samples: Sequence[EncodedGroup],
    config: RewardConfig,
) -> Json | Skipped:
    """Save the range of the training responses in the model's features, next to its weights; returns the distances."""
    measurements = measurements_of(folder, model, train, config)
    rows = measurements.count("feature range", FITTED, part=0.25, work=2 * mean_tokens(train), least=FEWEST)

    def fit() -> Json:
        fitted, distances = feature_range(
            model, train, held_out, samples, seed=config.seed, compute=config.compute, rows=rows
        )
        fitted.save(folder.path)
        return distances

    return or_skip("feature range", lambda: measurements.keep("feature range", Json, fit), folder)


def whole_report(
    folder: RunFolder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    rewards: Sequence[Sequence[float]],
    config: RewardConfig,
    gold: Reward | None = None,
    distance: Json | Skipped | None = None,
) -> RewardReport:
    """The report on a single model; measurements that exceed the model's limits are skipped."""
    compute, measurements = config.compute, measurements_of(folder, model, train, config)
    best_of, curve = None, None
    work = (1 + len(PROBES)) * mean_tokens(held_out) / 2
    probed = measurements.count("probes", min(PROBED, len(held_out)), part=0.1, work=work)
    probes = or_skip(
        "probes",
        lambda: measurements.keep("probes", list[ProbeResult] | Skipped, lambda: probe_results(
            model, tokenizer, held_out, rows=probed,
            train_rows=len(train), max_length=config.max_length, seed=config.seed, compute=compute,
        )),
        folder,
    )  # fmt: skip
    if config.best_of:
        best_of = or_skip(
            "best of n",
            lambda: measurements.keep("best of n", list[BestOfK] | Skipped, lambda: best_of_curve(
                model, tokenizer, held_out, policy=config.model, n=config.best_of,
                max_new_tokens=config.centre_max_new_tokens, gold=gold, seed=config.seed, compute=compute,
            )),
            folder,
        )  # fmt: skip
    if config.learning_curve:
        curve = or_skip("learning curve", lambda: _learning_curve(train, held_out, rewards, config), folder)
    return reward_report(
        held_out, rewards, train, probes=probes, best_of=best_of, learning_curve=curve, distance=distance
    )


def _learning_curve(
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    rewards: Sequence[Sequence[float]],
    config: RewardConfig,
) -> LearningCurve:
    """See `more_labels`."""

    def train_on(out: Path, changes: Mapping[str, Any]) -> list[list[float]]:
        settings = {**config.model_dump(), **WITHOUT_REPORT, **changes, "out": out}
        folder = run(RewardConfig.make(settings, source=str(out)))
        model, _ = load_reward_model(folder.path, device=config.device)
        return held_out_rewards(model, held_out, compute=config.compute)

    ceiling = preference_figures(held_out, rewards, train).noise_ceiling
    return more_labels(
        train_on, train, held_out, rewards,
        out=config.out, max_steps=config.max_steps, seed=config.seed,
        ceiling=None if ceiling == UNKNOWN else ceiling,
    )  # fmt: skip


def on_policy_excess(
    config: RewardConfig, train: Sequence[EncodedGroup], measurements: Measurements
) -> OnPolicyExcess | Skipped:
    """Excess negative log-likelihood of the training responses, where it can be measured."""
    name = "excess negative log-likelihood"
    rows = measurements.count(name, min(data_checks.ROWS, len(train)), part=0.1, work=2 * mean_tokens(train))
    measure = lambda: data_checks.on_policy_excess(  # noqa: E731
        config.model, train, device=config.device, dtype=config.dtype, rows=rows
    )
    return or_skip(name, lambda: measurements.keep(name, OnPolicyExcess, measure), measurements.folder)


def head_weights(config: RewardConfig, rows: Sequence[int]) -> Float[Tensor, "P M"]:
    """Weight of each comparison for each head: 1 for a single head, otherwise 0 or 2 at random, the same in every
    epoch.
    """
    if config.heads == 1:
        return torch.ones(len(rows), 1)
    draws = [torch.Generator().manual_seed(derive_seed(config.seed, "bootstrap", row)) for row in rows]
    return torch.stack([2.0 * torch.randint(2, (config.heads,), generator=draw) for draw in draws])


def group_loss(
    scores: Float[Tensor, "P K"], groups: Sequence[EncodedGroup], config: RewardConfig
) -> tuple[Float[Tensor, " P"], dict[str, Tensor]]:
    """Bradley–Terry on pairs or rankings, one loss per prompt, with its metrics."""
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
) -> StepMetrics:
    """One optimiser step on some comparisons; `weights` is the weight of each for each head."""
    totals: dict[str, Tensor] = {}
    for part in microbatches(groups, max_tokens=config.micro_batch_tokens, device=model.device):
        chosen = [groups[row] for row in part]
        batch: GroupBatch = collate(chosen, device=model.device)
        with config.compute.autocast(model.device):
            scores = head_scores(model, batch).float() - centring_offset(model)  # of the start; 0 for fresh heads
        losses = [group_loss(head, chosen, config) for head in scores.unbind(-1)]
        loss = torch.stack([loss for loss, _ in losses], -1) * weights[part].to(model.device)
        optimizer.backward(loss.mean(-1).sum() / len(groups))
        figures = {name: torch.stack([metrics[name] for _, metrics in losses], -1) for name in losses[0][1]}
        for name, value in {"loss": loss.detach(), **figures}.items():
            totals[name] = totals.get(name, torch.zeros((), device=model.device)) + value.mean(-1).sum() / len(groups)
    return {**totals, **optimizer.step()}


def centre_model(
    folder: RunFolder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedGroup],
    config: RewardConfig,
) -> tuple[list[EncodedGroup], str]:
    """Shift the scores of the model in a folder, weights and all else of which are written, to mean zero.

    Returns:
        The samples whose mean score is now zero, empty if there are none; and their description for run.json.
    """
    measurements = measurements_of(folder, model, train, config)
    samples = (
        after_training(folder, "centring samples", lambda: centring_samples(tokenizer, train, config, measurements))
        or []
    )
    rows = samples or measurements.some("centring", train, part=0.3)
    if not after_training(folder, "centring", lambda: centre(model, rows, config.compute)):
        return [], "nothing"
    write_text(folder.path / "config.json", model.config.to_json_string())
    compare_offset(folder.path, model)
    if not samples:
        return [], "the training responses"
    return samples, config.centre_data or f"{len(samples)} samples of {config.model}"


def centre(model: PreTrainedModel, groups: Sequence[EncodedGroup], compute: Compute) -> bool:
    """Shift the scores so that their mean over the responses of some groups is zero; True when that is done."""
    before, model.config.kleash_offset = centring_offset(model), 0.0
    sizes = {len(group.responses) for group in groups}
    try:
        rows = [[group for group in groups if len(group.responses) == size] for size in sizes]
        scores = [score_encoded(model, part, compute=compute) for part in rows]
    except BaseException:
        model.config.kleash_offset = before
        raise
    model.config.kleash_offset = float(torch.cat([score.flatten() for score in scores]).double().mean())
    return True


def centring_samples(
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedGroup],
    config: RewardConfig,
    measurements: Measurements,
) -> list[EncodedGroup]:
    """The rows whose mean score becomes zero: those of `centre_data`, or samples; empty where neither is requested.

    Raises:
        DataError: samples are asked for, and no training prompt leaves room for one.
    """
    if config.centre_data is not None:
        return centring_rows(tokenizer, config)
    if not config.centre_samples or not can_respond(config.model):
        return []
    prompt = sum(len(row.prompt_ids) for row in train) / len(train)
    work = 2 * prompt + (1 + SAMPLED) * config.centre_max_new_tokens
    count = measurements.count("samples to centre on", min(config.centre_samples, len(train)), part=0.3, work=work)
    fresh: list[EncodedGroup] = []

    def draw() -> list[Drawn]:
        fresh.extend(start_samples(tokenizer, train, config, count))
        return [
            (prompt_key(group.source.prompt), list(group.responses[0].ids), group.source.responses[0].finished)
            for group in fresh
        ]

    draws = measurements.keep("samples to centre on", list[Drawn], draw)
    samples = fresh or drawn_again(draws, train, tokenizer)
    if not samples:
        raise DataError(
            f"no training prompt leaves room for a response in the context of {config.model}; centred on the training "
            "responses instead"
        )
    return samples


def can_respond(model: str) -> bool:
    """Whether the start of the training is a language model, whose samples the scores can be centred on."""
    if outputs_of(model) is None:
        return True
    logger.info("%s is a reward model and gives no samples; the scores are centred on the training responses", model)
    return False


def centring_rows(tokenizer: PreTrainedTokenizerBase, config: RewardConfig) -> list[EncodedGroup]:
    """The rows of `centre_data`."""
    assert config.centre_data is not None
    row_format = RowFormat(as_chat=config.as_chat)
    rows = [imitated(row) for row in read_usable(config.centre_data, demonstration, row_format=row_format)]
    return encode_all(rows, tokenizer, max_length=config.max_length)[0]


def drawn_again(
    draws: Sequence[Drawn], train: Sequence[EncodedGroup], tokenizer: PreTrainedTokenizerBase
) -> list[EncodedGroup]:
    """Samples that were kept before an interruption."""
    prompts = {prompt_key(row.source.prompt): row.source for row in train}
    decode = lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))  # noqa: E731
    groups = [
        replace(
            prompts[prompt],
            responses=(Response(ids=tuple(ids), finished=finished, decode=decode),),
            label=None,
        )
        for prompt, ids, finished in draws
    ]
    return encode_all(groups, tokenizer, max_length=None)[0] if groups else []


def start_samples(
    tokenizer: PreTrainedTokenizerBase, train: Sequence[EncodedGroup], config: RewardConfig, count: int
) -> list[EncodedGroup]:
    """Responses of `config.model` to some training prompts; empty where no prompt leaves room for a response."""
    seed = derive_seed(config.seed, "centre")
    rows = batch_at(0, len(train), min(count, len(train)), seed)
    return sample(
        tokenizer, [train[row] for row in rows], policy=config.model, group_size=1,
        max_new_tokens=config.centre_max_new_tokens, seed=seed, compute=config.compute,
    )  # fmt: skip


def summary(figures: PreferenceReport | None) -> str:
    """The sentences of the model card."""
    if figures is None:
        return "Not measured: no held-out pairs."
    accuracy = f"Held-out accuracy unknown: all {figures.pairs} pairs are ties"
    if figures.accuracy is not None and figures.accuracy_interval is not None:
        low, high = figures.accuracy_interval
        accuracy = (
            f"Held-out accuracy {figures.accuracy:.3f} (95 % interval {low:.3f} to {high:.3f}, {figures.pairs} pairs)"
        )
    return f"{accuracy}. `transformers` gives this model's score up to the offset `kleash_offset` of its config."


def read_comparisons(
    config: RewardConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, note: Callable[..., None]
) -> tuple[Rows, list[EncodedGroup]]:
    """The comparisons to train on and those held out."""
    return read_encoded(
        config.data, config.eval_data, tokenizer, usable=comparison,
        max_length=config.max_length or context_length(model), max_eval_rows=config.max_eval_rows, seed=config.seed,
        row_format=config.row_format, note=note, reads_columns=True, streaming=config.streaming,
    )  # fmt: skip
