"""SFT: supervised fine-tuning on demonstrations.

The first stage of the chain: it makes the policy coherent and on-task. Its model is both the start of policy training
and the reference from which the KL is measured.

    kleash sft --model base/ --data demonstrations.jsonl --out runs/sft

Left out: packing several rows into one (length-sorted micro-batches waste a few percent), loss on prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import sft_checks
from kleash.checks.gates import Check, record_checks
from kleash.checks.open_run import open_run, records_stop
from kleash.checks.sample_stats import Samples, describe, prompt_effect, responses_of, sample, usual_length
from kleash.data.batch import collate
from kleash.data.batching import microbatches
from kleash.data.group import EncodedGroup
from kleash.data.read import read_encoded
from kleash.data.split import demonstration, imitated
from kleash.data.stream import Rows, batches, rows_used, stream_state
from kleash.evals.intervals import number_prompts
from kleash.models.compute import Compute
from kleash.models.forward import Live, check_forward, response_logprobs
from kleash.models.load import context_length, load_policy
from kleash.models.trainable import make_trainable
from kleash.objectives import masked_sum
from kleash.progress import Progress
from kleash.run import RunFolder, StepMetrics
from kleash.stages.training_configs import SFTConfig
from kleash.training.after_training import after_training
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.loop import Loop, OnStep, State
from kleash.training.measurements import SAMPLED, Measurements, mean_tokens
from kleash.training.model_folder import write_model
from kleash.training.optim import Optimizer

SHOWN = ("loss", "eval_loss")
"""Figures of the progress bar."""

UNSAMPLED = 1e9
"""Parameters from which the gate does not sample on a CPU: it would take minutes."""

EFFECT_ROWS = 128
"""Held-out rows whose responses are also scored after another row's prompt."""

FORMULA = "loss = − Σ log π(y_t | x, y_<t) / (trained tokens of the step)"


@records_stop
def run(config: SFTConfig, *, policy: Live | None = None, on_step: OnStep | None = None) -> RunFolder:
    """Train on demonstrations and write a folder that `transformers` loads.

    Args:
        config: the settings.
        policy: a live model and tokenizer to train in place of loading `config.model`.
        on_step: called after each step is logged, see `Loop`.

    Returns:
        The finished run; run.json holds `eval_loss` (nats a token) before and after.
    """
    folder = open_run("sft", config, model=policy)
    if folder.finished:
        return folder
    model, tokenizer = load_policy(policy or config.model, device=config.device, adapter=config.adapter)
    make_trainable(model, **config.adapter_settings())
    train, held_out = read_demonstrations(config, model, tokenizer, folder.note)
    check_forward(model, collate([min(train, key=lambda group: group.length)], device=model.device))
    before = held_out_losses(model, held_out, config.compute)  # of the start, where the run resumes too
    steps = config.steps(len(train))
    optimizer = Optimizer(model, steps=steps, **config.optimizer_settings())
    best = BestCheckpoint(folder, config.keep_weights)
    state: State = {"model": model, "optimizer": optimizer, "best": best, **stream_state(train)}
    loop = Loop(folder, total=steps, state=state, shown=SHOWN, on_step=on_step, **config.loop_settings())
    folder.note("formulas", loss=FORMULA)
    for step, (_, groups) in loop.over(batches(train, **config.batch_settings(len(train)), start=loop.step)):
        metrics = update(model, groups, optimizer, config.compute)
        if held_out:
            metrics |= loop.evaluated(step, lambda step: evaluate(model, step, held_out, best, config.compute))
        loop.log(step, metrics)
    last = best.take(model, loop.step)
    after = best.figures.get(last, math.nan)
    write_model(folder, model, tokenizer, f"Held-out loss {after:.4f} nats a token.")
    after_training(folder, "checks", lambda: check(folder, model, tokenizer, train, held_out, before, after, config))
    return folder.finish(eval_loss_before=mean_loss(before), eval_loss=after, step=last, rows=rows_used(train))


def evaluate(
    model: PreTrainedModel, step: int, groups: Sequence[EncodedGroup], best: BestCheckpoint, compute: Compute
) -> StepMetrics:
    """The loss on the held-out rows after a step; keeps the weights if it is the least so far."""
    return {"eval_loss": best.update(model, step, held_out_loss(model, groups, compute))}


def held_out_loss(model: PreTrainedModel, groups: Sequence[EncodedGroup], compute: Compute) -> float:
    """−log π(response | prompt) a token, over all trained tokens of the groups; not a number where there are none."""
    return mean_loss(held_out_losses(model, groups, compute))


@torch.no_grad()
def held_out_losses(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], compute: Compute
) -> Float[np.ndarray, "N 2"]:
    """−log π(response | prompt) of each group in nats, and its trained tokens."""
    losses = np.zeros((len(groups), 2))
    with Progress(len(groups), "held-out loss") as progress:
        for part in microbatches(groups, max_tokens=compute.micro_batch_tokens, device=model.device):
            batch = collate([groups[row] for row in part], device=model.device)
            with compute.autocast(model.device):
                logprobs, _ = response_logprobs(model, batch)
            losses[part, 0] = -masked_sum(logprobs.double(), batch.mask, -1).sum(-1).cpu().numpy()
            losses[part, 1] = batch.mask.sum((1, 2)).cpu().numpy()
            progress.update(progress.step + len(part), loss=mean_loss(losses))
    return losses


def mean_loss(losses: Float[np.ndarray, "N 2"]) -> float:
    """Nats a token, over all tokens; not a number where there are none."""
    nats, tokens = losses.sum(0)
    return float(nats / tokens) if tokens else math.nan


def update(
    model: PreTrainedModel, groups: Sequence[EncodedGroup], optimizer: Optimizer, compute: Compute
) -> StepMetrics:
    """One optimiser step on some demonstrations."""
    tokens = sum(sum(response.mask) for group in groups for response in group.responses)
    total = torch.zeros((), device=model.device)
    for part in microbatches(groups, max_tokens=compute.micro_batch_tokens, device=model.device):
        batch = collate([groups[row] for row in part], device=model.device)
        with compute.autocast(model.device):
            logprobs, _ = response_logprobs(model, batch)
        loss = -masked_sum(logprobs, batch.mask) / tokens
        optimizer.backward(loss)
        total += loss.detach()
    return {"loss": total, "tokens": tokens, **optimizer.step()}


def check(
    folder: RunFolder,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[EncodedGroup],
    held_out: Sequence[EncodedGroup],
    before: Float[np.ndarray, "N 2"],
    after: float,
    config: SFTConfig,
) -> None:
    """Check the model on held-out rows: loss, effect of the prompt, and samples."""
    measurements = Measurements(folder, model, train, **config.measure_settings(len(train)))
    prompts = list({group.prompt_ids: group for group in held_out}.values())[: config.gate_prompts]
    sampling: Samples | None = None
    unsampled = "there are no held-out prompts"
    if config.gate_prompts == 0:
        unsampled = "gate_prompts is 0"
    elif model.device.type == "cpu" and model.num_parameters() > UNSAMPLED:
        unsampled = "the model is large for a CPU; `kleash check` does it"
    elif prompts:
        limit = usual_length(train, most=config.gate_max_new_tokens)
        work = 2 * (2 * mean_tokens(prompts) + (1 + SAMPLED) * limit)  # two samples each, read again for their entropy
        prompts = prompts[: measurements.count("samples", len(prompts), part=0.7, work=work)]
        draw = lambda: sample(model, tokenizer, prompts, limit=limit, seed=config.seed, dtype=config.dtype)  # noqa: E731
        sampling = measurements.keep("samples", Samples | None, lambda: (draw() or (None, None))[1])
        unsampled = "no held-out prompt leaves room for a response"
    rows = measurements.count(
        "effect of the prompt", min(EFFECT_ROWS, len(held_out)), part=0.3, work=3 * mean_tokens(held_out)
    )
    some, gain = held_out[:rows], before[:rows].copy()
    losses = lambda: held_out_losses(model, some, config.compute)[:, 0].tolist()  # noqa: E731
    gain[:, 0] -= measurements.keep("held-out rows", list[float], losses)
    effect = lambda: prompt_effect(model, some, dtype=config.dtype).tolist()  # noqa: E731
    checks: list[Check] = sft_checks.sft(
        before=mean_loss(before),
        after=after,
        gain=gain,
        prompts=number_prompts([group.prompt_ids for group in some]),
        rows=len(held_out),
        effect=np.array(measurements.keep("effect of the prompt", list[float], effect)) if held_out else None,
        samples=sampling,
        demonstrations=describe(responses_of(train), tokenizer),
        unsampled=unsampled,
    )
    record_checks(folder, checks=checks)


def read_demonstrations(
    config: SFTConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, note: Callable[..., None]
) -> tuple[Rows, list[EncodedGroup]]:
    """The demonstrations to train on and those held out; of a preference the chosen response."""
    return read_encoded(
        config.data, config.eval_data, tokenizer, usable=demonstration,
        prepare=lambda groups: [imitated(group) for group in groups], response_column=config.response_column,
        max_length=config.max_length or context_length(model), max_eval_rows=config.max_eval_rows, seed=config.seed,
        row_format=config.row_format, note=note, streaming=config.streaming,
    )  # fmt: skip
