"""DPO: learn from comparisons with neither reward model nor sampling.

A policy's log-ratio to its reference is a reward already, so the Bradley–Terry loss of a reward model trains the policy
at once, and its optimum is the one PPO climbs to: π* ∝ π_ref·exp(r/β). The other losses differ in what they make of
noisy labels, of certainty, and of length.

    kleash dpo --model runs/sft --data comparisons.jsonl --out runs/dpo --beta 0.1

Rows of scored responses count as their best against their worst, so that online DPO is a recipe: `kleash generate`,
`kleash score`, `kleash dpo`, again (recipes/online-dpo.yaml).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import monitors, outcomes
from kleash.checks.gates import gate_in, gate_out
from kleash.data.batch import collate
from kleash.data.batching import batch_at, by_size, microbatches
from kleash.data.chat import encode_all, end_ids
from kleash.data.group import EncodedGroup, Group, Ranking, Scores
from kleash.data.split import best_against_worst, comparison, read_split
from kleash.errors import DataError
from kleash.evals.policy import MeanSE, mean_se
from kleash.models.forward import check_forward, response_logprobs
from kleash.models.load import autocast, context_length, freeze, frozen_copy, load_policy, save_model
from kleash.models.lora import lora_off, merge_lora
from kleash.objectives import kl
from kleash.objectives.preference import (
    dpo_loss,
    implicit_rewards,
    ipo_loss,
    length_normalised_dpo_loss,
    plackett_luce_loss,
    robust_dpo_loss,
    simpo_loss,
    smoothed_dpo_loss,
)
from kleash.objectives.reduce import masked_sum
from kleash.progress import Progress
from kleash.rewards.reward import Reward, build_reward
from kleash.run import RunFolder, derive_seed, write_folder
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups
from kleash.stages.artifacts import inputs_of, model_card, parameters_held, save_snapshot
from kleash.stages.reward_model import pairs_of, rewards_report
from kleash.stages.trainable import make_trainable
from kleash.stages.training_configs import DPOConfig
from kleash.training import checkpoint
from kleash.training.optim import Optimizer
from kleash.training.selection import Selection
from kleash.training.trackers import Trackers, require

logger = logging.getLogger("kleash")

SHOWN = ("loss", "margin", "accuracy", "eval_accuracy", "eval_kl")
"""Figures of the progress bar."""

MEASURED = ("loss", "margin", "chosen_logprob", "rejected_logprob", "chosen_shift")
"""Metrics that are measured on the held-out rows too."""

DISPLACED = 0.1
"""Nats a token by which the held-out chosen responses may become less likely than under the reference, before the run
says so: each of their tokens is then a tenth less likely."""

FORMULA = {
    "sigmoid": "− p log σ(h) − (1 − p) log σ(−h), h = β (log-ratio(y_0) − log-ratio(y_1));"
    " rankings: − Σ_k log(exp h_k / Σ_{j ≥ k} exp h_j), h_k = β log-ratio(y_k)",
    "smoothed": "− q log σ(h) − (1 − q) log σ(−h), q = p (1 − ε) + (1 − p) ε, h = β (log-ratio(y_0) − log-ratio(y_1))",
    "robust": "− q log σ(h) − (1 − q) log σ(−h), q = (p − ε)/(1 − 2ε), h = β (log-ratio(y_0) − log-ratio(y_1))",
    "ipo": "p (Δ − 1/2β)² + (1 − p) (Δ + 1/2β)², Δ = log-ratio(y_0) − log-ratio(y_1)",
    "simpo": "− p log σ(h − γ) − (1 − p) log σ(−h − γ), h = β (log π(y_0)/|y_0| − log π(y_1)/|y_1|),"
    " γ = gamma_ratio · β",
    "length-normalised": "− p log σ(h) − (1 − p) log σ(−h), h = β (log-ratio(y_0)/|y_0| − log-ratio(y_1)/|y_1|)",
}
"""Of one pair; log-ratio(y) = log π(y|x) − log π_ref(y|x), summed over the tokens of y. The step's loss is the mean."""


def run(config: DPOConfig, *, policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> RunFolder:
    """Train a policy on comparisons and write a folder that `transformers` loads.

    Args:
        config: the settings.
        policy: a live model and tokenizer to train in place of loading `config.model`.

    Returns:
        The finished run; run.json holds the report on held-out pairs and the KL to the reference under `results`.
    """
    require(config.trackers)
    folder = RunFolder.open(config.out, stage="dpo", config=config, inputs=inputs_of(config, model=policy))
    if folder.finished:
        return folder
    gate_in(folder, role="model", parent=config.model, force=config.force)
    if config.reference is not None:
        gate_in(folder, role="reference", parent=config.reference, force=config.force)
    model, tokenizer = policy or load_policy(config.model, device=config.device)
    train, held_out = _comparisons(config, model, tokenizer)
    check_forward(model, collate([min(train, key=lambda group: group.length)], device=model.device))
    fresh_reference = _reference_loader(config, model, live=policy is not None)
    references = _reference_logprobs(folder, config, model, [*train, *held_out])
    make_trainable(model, config)
    steps = config.steps(len(train))
    folder.note("formulas", loss=_formula(config))
    folder.note("models", **parameters_held(policy=model))

    optimizer = Optimizer(model, steps=steps, **config.optimizer_settings())
    parts: checkpoint.Parts = {"model": model, "optimizer": optimizer}
    state = checkpoint.restore(folder, parts)
    selection = Selection(folder, config.keep_weights, step=state.get("best_step", 0), least=state.get("best_figure"))
    beside = {name: build_reward(given) for name in ("hold_out", "gold") if (given := getattr(config, name))}
    figures: dict[str, Any] | None = None
    drift: MeanSE | None = None
    with Progress(steps, "dpo", start=state["step"]) as progress, Trackers(config.trackers, folder) as trackers:
        for step in range(state["step"] + 1, steps + 1):
            rows = batch_at(step - 1, len(train), config.batch_size, config.seed)
            metrics = _step(model, optimizer, [train[row] for row in rows], [references[row] for row in rows], config)
            if held_out and config.due(step, steps):
                figures = evaluate(model, held_out, references[len(train) :], train, config)
                metrics |= {f"eval_{name}": figures[name] for name in (*MEASURED, "accuracy")}
                selection.offer(model, step, figures["loss"])
                _watch_displacement(folder, step, figures)
            if held_out and config.kl_due(step, steps):
                drift, watched = measure_kl(model, tokenizer, held_out, fresh_reference, config, beside)
                metrics |= {"eval_kl": drift["mean"], **watched}
            if config.snapshot_every and step % config.snapshot_every == 0:
                save_snapshot(folder, step, model, tokenizer)
            row = folder.log(step, metrics)
            trackers.log(step, row)
            progress.update(step, **{name: row[name] for name in SHOWN if row.get(name) is not None})
            if step % config.save_interval(steps) == 0 and step < steps:
                checkpoint.save(folder, step, parts, keep=config.keep_states, **selection.numbers)

    checkpoint.save(folder, steps, parts, keep=config.keep_states, **selection.numbers)
    chosen = selection.take(model, steps)
    results: dict[str, Any] = {"step": chosen, "rows": len(train)}
    if held_out:
        measured = chosen == steps  # the last weights have just been measured, unless the run goes on from its end
        if figures is None or not measured:
            figures = evaluate(model, held_out, references[len(train) :], train, config)
        if config.kl_due(steps, steps) and (drift is None or not measured):
            drift, _ = measure_kl(model, tokenizer, held_out, fresh_reference, config, beside)
        results |= {"report": figures, "kl": drift}
        gate_out(folder, checks=outcomes.direct(figures, kl=drift["mean"] if drift else None))
    merge_lora(model)
    save_model(folder.path, model, tokenizer, model_card(folder, _summary(results)))
    return folder.finish(**results)


def group_loss(
    policy: Float[Tensor, "P K"],
    reference: Float[Tensor, "P K"],
    lengths: Int[Tensor, "P K"],
    groups: Sequence[EncodedGroup],
    config: DPOConfig,
) -> tuple[Float[Tensor, " P"], dict[str, Tensor]]:
    """The loss that was asked for, one a prompt, with its metrics (docs/stages/dpo.md).

    Args:
        policy, reference: log-probabilities summed over the tokens of each response; simpo reads no `reference`.
        lengths: how many tokens those are.
        groups: whose labels count; of one K.
        config: which loss.
    """
    if policy.shape[-1] > 2:
        ranks = torch.tensor([_ranks(group.source) for group in groups], device=policy.device)
        loss, metrics = plackett_luce_loss(policy, reference, ranks, beta=config.beta)
    else:
        p = policy.new_tensor([_probability(group.source) for group in groups])
        loss, metrics = _pair_loss(policy, reference, lengths, p, config)
    extremes = torch.tensor([_best_and_worst(group.source) for group in groups], device=policy.device)
    chosen, rejected = policy.gather(-1, extremes).unbind(-1)
    tokens = lengths.gather(-1, extremes)[:, 0].clamp(min=1)
    loss = loss - config.sft_coefficient * chosen / tokens
    metrics = {**metrics, "chosen_logprob": chosen.detach(), "rejected_logprob": rejected.detach()}
    if config.loss != "simpo":
        metrics["chosen_shift"] = (chosen.detach() - reference.gather(-1, extremes)[:, 0]) / tokens
    return loss, metrics


def _pair_loss(
    policy: Float[Tensor, "P 2"],
    reference: Float[Tensor, "P 2"],
    lengths: Int[Tensor, "P 2"],
    p: Float[Tensor, " P"],
    config: DPOConfig,
) -> tuple[Float[Tensor, " P"], dict[str, Tensor]]:
    beta, flipped = config.beta, config.label_smoothing
    match config.loss:
        case "sigmoid":
            return dpo_loss(policy, reference, p=p, beta=beta)
        case "smoothed":
            return smoothed_dpo_loss(policy, reference, p=p, beta=beta, label_smoothing=flipped)
        case "robust":
            return robust_dpo_loss(policy, reference, p=p, beta=beta, label_smoothing=flipped)
        case "ipo":
            return ipo_loss(policy, reference, p=p, beta=beta)
        case "simpo":
            return simpo_loss(policy, lengths, p=p, beta=beta, gamma=config.gamma_ratio * beta)
        case "length-normalised":
            return length_normalised_dpo_loss(policy, reference, lengths, p=p, beta=beta)


def _step(
    model: PreTrainedModel,
    optimizer: Optimizer,
    groups: Sequence[EncodedGroup],
    references: Sequence[Tensor],
    config: DPOConfig,
) -> dict[str, Any]:
    totals: dict[str, Tensor] = {}
    for part in microbatches(groups, max_tokens=config.micro_batch_tokens):
        chosen = [groups[row] for row in part]
        batch = collate(chosen, device=model.device)
        with autocast(config.dtype, model.device):
            logprobs, _ = response_logprobs(model, batch)
        policy = masked_sum(logprobs, batch.mask, -1)
        reference = torch.stack([references[row] for row in part]).to(policy)
        loss, metrics = group_loss(policy, reference, batch.mask.sum(-1), chosen, config)
        optimizer.backward(loss.sum() / len(groups))
        for name, value in {"loss": loss.detach(), **metrics}.items():
            totals[name] = totals.get(name, torch.zeros((), device=model.device)) + value.sum() / len(groups)
    return {**totals, **optimizer.step()}


@torch.no_grad()
def summed_logprobs(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], config: DPOConfig
) -> list[Float[Tensor, " _"]]:
    """Log-probabilities of the K responses of each group, summed over their tokens, on the CPU."""
    sums: list[Tensor] = [torch.empty(0)] * len(groups)
    done = 0
    with Progress(len(groups), "log-probabilities") as progress:
        for part in microbatches(groups, max_tokens=config.micro_batch_tokens):
            batch = collate([groups[row] for row in part], device=model.device)
            with autocast(config.dtype, model.device):
                logprobs, _ = response_logprobs(model, batch)
            for row, values in zip(part, masked_sum(logprobs, batch.mask, -1).cpu(), strict=True):
                sums[row] = values
            done += len(part)
            progress.update(done)
    return sums


def evaluate(
    model: PreTrainedModel,
    held_out: Sequence[EncodedGroup],
    references: Sequence[Tensor],
    train: Sequence[EncodedGroup],
    config: DPOConfig,
) -> dict[str, Any]:
    """The loss and its metrics on held-out rows, and the report on their implicit rewards, over all pairs at once."""
    logprobs = summed_logprobs(model, held_out, config)
    ordered: list[EncodedGroup] = []
    rewards: list[list[float]] = []
    means: dict[str, float | None] = dict.fromkeys(MEASURED)
    for size in sorted({len(group.responses) for group in held_out}):
        rows = [row for row, group in enumerate(held_out) if len(group.responses) == size]
        groups = [held_out[row] for row in rows]
        policy, reference = (torch.stack([table[row] for row in rows]) for table in (logprobs, references))
        lengths = torch.tensor([[sum(response.mask) for response in group.responses] for group in groups])
        loss, metrics = group_loss(policy, reference, lengths, groups, config)
        for name, values in {"loss": loss, **metrics}.items():
            if name in MEASURED:
                means[name] = (means[name] or 0.0) + float(values.double().sum()) / len(held_out)
        per_length = lengths if config.loss in ("simpo", "length-normalised") else None
        rewards += implicit_rewards(policy, reference, beta=config.beta, lengths=per_length).tolist()
        ordered += groups
    return {**means, **rewards_report(ordered, rewards, train)}


@torch.no_grad()
def measure_kl(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Sequence[EncodedGroup],
    fresh_reference: Callable[[], PreTrainedModel],
    config: DPOConfig,
    beside: Mapping[str, Reward],
) -> tuple[MeanSE, dict[str, Any]]:
    """KL(π ‖ π_ref) a response, in nats: k1 on fresh responses to held-out prompts, by the same streams each time.

    And what else is watched of these responses (docs/metrics.md, Monitors), with what the rewards `beside` say of them.
    """
    room = (context_length(model) or 1 << 30) - config.max_new_tokens
    asked = {group.prompt_ids: group.source for group in held_out if len(group.prompt_ids) <= room}
    prompts = list(asked)[: config.kl_samples]
    if not prompts:
        return mean_se([]), {}
    sampler = LocalSampler(model, tokenizer, max_new_tokens=config.max_new_tokens)
    with autocast(config.dtype, model.device):
        batch = sampler(
            prompts, group_size=config.kl_samples // len(prompts), seed=derive_seed(config.seed, "measure kl")
        )
    reference = fresh_reference()
    drift = torch.zeros(batch.shape[:2])
    sizes = [(batch.shape[1], len(prompt), batch.shape[2]) for prompt in prompts]
    for part in by_size(sizes, max_tokens=config.micro_batch_tokens):
        rows = batch.select(torch.tensor(part, device=model.device))
        with autocast(config.dtype, model.device), lora_off(reference):
            logprobs, _ = response_logprobs(reference, rows)
        assert rows.sampler_logprobs is not None
        drift[part] = kl.per_sequence(kl.k1(rows.sampler_logprobs, logprobs), rows.mask).float().cpu()
    groups = decode_groups(batch, [asked[prompt] for prompt in prompts], tokenizer, end_ids(tokenizer))
    scored = {f"eval_{name}": float(reward(groups).mean()) for name, reward in beside.items()}
    return mean_se(drift), {**monitors.describe_responses(groups), **scored}


def _reference_logprobs(
    folder: RunFolder, config: DPOConfig, model: PreTrainedModel, groups: Sequence[EncodedGroup]
) -> list[Float[Tensor, " _"]]:
    """What `summed_logprobs` gives of the reference: computed once, and kept in the folder under a hash of its content.

    Called before anything is trained or restored, when `model` still is what it starts as.
    """
    sizes = [len(group.responses) for group in groups]
    if config.loss == "simpo":
        return list(torch.zeros(sum(sizes)).split(sizes))
    parent = folder.record["inputs"]["reference" if config.reference else "model"]["sha256"]
    rows = [[group.prompt_ids, [(response.ids, response.mask) for response in group.responses]] for group in groups]
    key = hashlib.sha256(json.dumps([parent, rows, config.dtype]).encode()).hexdigest()[:32]
    file = folder.path / "reference" / f"{key}.safetensors"
    if not file.exists():
        reference = load_policy(config.reference, device=config.device)[0] if config.reference else model
        logprobs = torch.cat(summed_logprobs(reference, groups, config))
        write_folder(file.parent, lambda path: save_file({"logprobs": logprobs}, path / file.name))
    return list(load_file(file)["logprobs"].split(sizes))


def _reference_loader(config: DPOConfig, model: PreTrainedModel, *, live: bool) -> Callable[[], PreTrainedModel]:
    """How to come by the reference where a KL is measured: loaded anew each time, so as to hold no memory between."""
    if config.reference is None and config.lora_rank is not None:
        return lambda: model  # asked with its adapters switched off
    if live and config.reference is None and config.kl_due(1, 1):
        kept = frozen_copy(model)  # what the live model starts as lies nowhere else
        return lambda: kept
    return lambda: freeze(load_policy(config.reference or config.model, device=config.device)[0])


def _probability(group: Group) -> float:
    """P(response 0 ≻ response 1) of a pair."""
    ((first, _, p),) = pairs_of(group)
    return p if first == 0 else 1 - p


def _ranks(group: Group) -> tuple[int, ...]:
    assert isinstance(group.label, Ranking)
    return group.label.ranks


def _best_and_worst(group: Group) -> tuple[int, int]:
    """Which response the label favours most, and which least; of a tied pair the first counts as the better one."""
    if len(group.responses) == 2:
        return (0, 1) if _probability(group) >= 0.5 else (1, 0)
    ranks = _ranks(group)
    return ranks.index(min(ranks)), ranks.index(max(ranks))


def _usable(group: Group, loss: str) -> str | None:
    """What is wrong with a row for this stage, or None."""
    if isinstance(group.label, Ranking) and len(group.responses) > 2:
        if loss != "sigmoid":
            return f"ranks {len(group.responses)} responses, and loss {loss} compares two; take --loss sigmoid"
        if len(set(group.label.ranks)) < len(group.responses):
            return "ranks two responses the same, which a ranking of more than two cannot; split it into pairs"
    return comparison(group)


def _watch_displacement(folder: RunFolder, step: int, figures: Mapping[str, Any]) -> None:
    """Say once, there and in run.json, that the chosen responses have become unlikely themselves.

    Only the difference to the rejected ones is trained, and both may fall together, to the good of neither (Razin et
    al. 2024, arXiv:2410.08847).
    """
    shift = figures["chosen_shift"]
    if shift is None or shift >= -DISPLACED or "displacement" in folder.record.get("warnings", {}):
        return
    message = (
        f"held-out chosen responses lost {-shift:.2f} nats a token against the reference by step {step} (likelihood "
        f"displacement, warned of from {DISPLACED}); raise --beta, set --sft-coefficient, or lower --learning-rate"
    )
    logger.warning("%s", message)
    folder.note("warnings", displacement={"step": step, "chosen_shift": shift, "message": message})


def _accuracy(figures: Mapping[str, Any]) -> str:
    if figures["accuracy"] is None:
        return f"held-out accuracy of implicit rewards unknown: all {figures['pairs']} pairs are ties"
    low, high = figures["accuracy_interval"]
    return (
        f"held-out accuracy of implicit rewards {figures['accuracy']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}, {figures['pairs']} pairs)"
    )


def _summary(results: Mapping[str, Any]) -> str:
    if "report" not in results:
        return "Not measured: no held-out pairs."
    text = f"{_accuracy(results['report']).capitalize()}."
    if results["kl"] is not None and results["kl"]["mean"] is not None:
        text += f" KL {results['kl']['mean']:.2f} nats a response from the reference."
    return text


def _formula(config: DPOConfig) -> str:
    return FORMULA[config.loss] + (" − sft_coefficient · log π(chosen)/|chosen|" if config.sft_coefficient else "")


def _comparisons(
    config: DPOConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    train, held_out = read_split(
        config.data,
        config.eval_data,
        seed=config.seed,
        usable=lambda group: _usable(group, config.loss),
        max_eval_rows=config.max_eval_rows,
    )
    train, held_out = _compared(train, config.data), _compared(held_out, config.eval_data or config.data)
    if not train:
        raise DataError(f"{config.data}: each row's responses all have one score; there is nothing to compare")
    length = config.max_length or context_length(model)
    encoded, truncation = encode_all(train, tokenizer, max_length=length)
    if truncation.message():
        logger.warning("%s: %s", config.data, truncation.message())
    return encoded, encode_all(held_out, tokenizer, max_length=length)[0] if held_out else []


def _compared(groups: Sequence[Group], data: str) -> list[Group]:
    """The groups as comparisons: of scored responses the best against the worst, flat groups left out and counted."""
    pairs = [best_against_worst(group) if isinstance(group.label, Scores) else group for group in groups]
    compared = [pair for pair in pairs if pair is not None]
    if len(compared) < len(pairs):
        flat = len(pairs) - len(compared)
        logger.info("%s: %d of %d rows left out, their responses all have one score", data, flat, len(pairs))
    return compared
