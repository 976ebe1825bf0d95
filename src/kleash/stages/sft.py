"""Supervised fine-tuning: imitate demonstrations.

The first link of the chain: it makes the policy coherent and on-task, and its result is both the launch point of the
policy and the anchor that the leash is tied to.

    kleash sft --model base/ --data demonstrations.jsonl --out runs/sft

Left out: packing several rows into one (length-sorted micro-batches waste a few percent), loss on prompts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import outcomes
from kleash.checks.gates import Check, gate_in, gate_out
from kleash.checks.samples import describe, prompt_effect, responses_of, sample, usual_length
from kleash.data.batch import collate
from kleash.data.batching import batch_at, microbatches
from kleash.data.chat import encode_all
from kleash.data.group import EncodedGroup
from kleash.data.split import demonstration, imitated, read_split
from kleash.models.forward import check_forward, response_logprobs
from kleash.models.load import autocast, context_length, load_policy, save_model
from kleash.models.lora import merge_lora
from kleash.objectives.reduce import masked_sum
from kleash.progress import Progress
from kleash.run import RunFolder
from kleash.stages.artifacts import inputs_of, model_card
from kleash.stages.trainable import make_trainable
from kleash.stages.training_configs import SFTConfig
from kleash.training import checkpoint
from kleash.training.optim import Optimizer
from kleash.training.selection import Selection
from kleash.training.trackers import Trackers, require

logger = logging.getLogger("kleash")

SHOWN = ("loss", "eval_loss")
"""Figures of the progress bar."""

UNSAMPLED = 1e9
"""Parameters from which the gate leaves sampling on a CPU alone: it would take minutes."""

EFFECT_ROWS = 128
"""Held-out rows whose responses are tried after another row's prompt."""

FORMULA = "loss = − Σ log π(y_t | x, y_<t) / (trained tokens of the step)"


def run(config: SFTConfig, *, policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> RunFolder:
    """Train on demonstrations and write a folder that `transformers` loads.

    Args:
        config: the settings.
        policy: a live model and tokenizer to train in place of loading `config.model`.

    Returns:
        The finished run; run.json holds `eval_loss` (nats a token) before and after.
    """
    require(config.trackers)
    folder = RunFolder.open(config.out, stage="sft", config=config, inputs=inputs_of(config, model=policy))
    if folder.finished:
        return folder
    gate_in(folder, role="model", parent=config.model, force=config.force)
    model, tokenizer = policy or load_policy(config.model, device=config.device)
    make_trainable(model, config)
    train, held_out = _demonstrations(config, model, tokenizer)
    check_forward(model, collate([min(train, key=lambda group: group.length)], device=model.device))
    steps = config.steps(len(train))
    folder.note("formulas", loss=FORMULA)

    optimizer = Optimizer(model, steps=steps, **config.optimizer_settings())
    parts: checkpoint.Parts = {"model": model, "optimizer": optimizer}
    state = checkpoint.restore(folder, parts)
    selection = Selection(folder, config.keep_weights, step=state.get("best_step", 0), least=state.get("best_figure"))
    after = math.nan
    before = state.get("before", evaluate(model, held_out, config) if held_out else math.nan)
    with Progress(steps, "sft", start=state["step"]) as progress, Trackers(config.trackers, folder) as trackers:
        for step in range(state["step"] + 1, steps + 1):
            rows = batch_at(step - 1, len(train), config.batch_size, config.seed)
            metrics = _step(model, optimizer, [train[row] for row in rows], config)
            if held_out and config.due(step, steps):
                metrics["eval_loss"] = after = evaluate(model, held_out, config)
                selection.offer(model, step, after)
            row = folder.log(step, metrics)
            trackers.log(step, row)
            progress.update(step, **{name: row[name] for name in SHOWN if row.get(name) is not None})
            if step % config.save_interval(steps) == 0 and step < steps:
                checkpoint.save(folder, step, parts, keep=config.keep_states, before=before, **selection.numbers)

    checkpoint.save(folder, steps, parts, keep=config.keep_states, before=before, **selection.numbers)
    chosen = selection.take(model, steps)
    if held_out and (chosen != steps or math.isnan(after)):
        after = evaluate(model, held_out, config)
    gate_out(folder, checks=_checks(model, tokenizer, train, held_out, before, after, config))
    merge_lora(model)
    save_model(folder.path, model, tokenizer, model_card(folder, f"Held-out loss {after:.4f} nats a token."))
    return folder.finish(eval_loss_before=before, eval_loss=after, step=chosen, rows=len(train))


@torch.no_grad()
def evaluate(model: PreTrainedModel, groups: Sequence[EncodedGroup], config: SFTConfig) -> float:
    """−log π(response | prompt) a token, over all trained tokens of the groups."""
    total, count, done = 0.0, 0, 0
    with Progress(len(groups), "held-out loss") as progress:
        for part in microbatches(groups, max_tokens=config.micro_batch_tokens):
            batch = collate([groups[row] for row in part], device=model.device)
            with autocast(config.dtype, model.device):
                logprobs, _ = response_logprobs(model, batch)
            total -= float(masked_sum(logprobs, batch.mask))
            count += int(batch.mask.sum())
            done += len(part)
            progress.update(done, loss=total / count)
    return total / count


def _checks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    before: float,
    after: float,
    config: SFTConfig,
) -> list[Check]:
    """Has it learnt to answer as the data do, on prompts it has not seen?"""
    prompts = list({group.prompt_ids: group for group in held_out}.values())[: config.gate_prompts]
    drawn, unsampled = None, "there are no held-out prompts"
    if config.gate_prompts == 0:
        unsampled = "gate_prompts is 0"
    elif model.device.type == "cpu" and model.num_parameters() > UNSAMPLED:
        unsampled = "the model is large for a CPU; `kleash check` does it"
    elif prompts:
        limit = usual_length(train, most=config.gate_max_new_tokens)
        drawn = sample(model, tokenizer, prompts, limit=limit, seed=config.seed, dtype=config.dtype)
        unsampled = "no held-out prompt leaves room for a response"
    return outcomes.sft(
        before=before,
        after=after,
        rows=len(held_out),
        effect=prompt_effect(model, held_out[:EFFECT_ROWS], dtype=config.dtype) if held_out else None,
        samples=drawn[1] if drawn else None,
        demonstrations=describe(responses_of(train), tokenizer),
        unsampled=unsampled,
    )


def _step(
    model: PreTrainedModel, optimizer: Optimizer, groups: Sequence[EncodedGroup], config: SFTConfig
) -> dict[str, float | torch.Tensor]:
    tokens = sum(sum(response.mask) for group in groups for response in group.responses)
    total = torch.zeros((), device=model.device)
    for part in microbatches(groups, max_tokens=config.micro_batch_tokens):
        batch = collate([groups[row] for row in part], device=model.device)
        with autocast(config.dtype, model.device):
            logprobs, _ = response_logprobs(model, batch)
        loss = -masked_sum(logprobs, batch.mask) / tokens
        optimizer.backward(loss)
        total += loss.detach()
    return {"loss": total, "tokens": tokens, **optimizer.step()}


def _demonstrations(
    config: SFTConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[EncodedGroup], list[EncodedGroup]]:
    train, held_out = read_split(
        config.data, config.eval_data, seed=config.seed, usable=demonstration, max_eval_rows=config.max_eval_rows,
        response_column=config.response_column,
    )  # fmt: skip
    length = config.max_length or context_length(model)
    encoded, truncation = encode_all([imitated(group) for group in train], tokenizer, max_length=length)
    if truncation.message():
        logger.warning("%s: %s", config.data, truncation.message())
    rows = [imitated(group) for group in held_out]
    return encoded, encode_all(rows, tokenizer, max_length=length)[0] if rows else []
