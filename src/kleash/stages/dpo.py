"""DPO: direct preference optimisation on comparisons, without reward model or sampling.

A policy's log-ratio to its reference is an implicit reward, so the Bradley–Terry loss of a reward model trains the
policy directly, with the same optimum as PPO: π* ∝ π_ref·exp(r/β). The other losses differ in how they treat noisy
labels, certain labels, and length.

    kleash dpo --model runs/sft --data comparisons.jsonl --out runs/dpo --beta 0.1

Rows of scored responses count as their best against their worst, so that online DPO is a recipe: `kleash generate`,
`kleash score`, `kleash dpo`, again (recipes/online-dpo.yaml).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks import monitors, policy_checks
from kleash.checks.gates import record_checks
from kleash.checks.open_run import open_run, records_stop
from kleash.checks.reward_report import pairs_of, preference_figures
from kleash.data.batch import collate
from kleash.data.batching import microbatches
from kleash.data.group import EncodedGroup, Group, Ranking, Scores
from kleash.data.read import read_encoded
from kleash.data.split import best_against_worst, comparison
from kleash.data.stream import Rows, Stream, batches, rows_used, stream_state
from kleash.evals.policy_stats import MeanSE, mean_se
from kleash.evals.preference_report import PreferenceReport
from kleash.evals.report_values import as_json
from kleash.io import write_text
from kleash.models.forward import Live, check_forward, response_logprobs
from kleash.models.inference import summed_logprobs
from kleash.models.load import context_length, freeze, frozen_copy, load_policy
from kleash.models.lora import can_be_disabled, has_adapters, keep_reference
from kleash.models.reference import Reference, kept_logprobs
from kleash.models.trainable import make_trainable
from kleash.objectives import LOSSES, implicit_rewards, kl, masked_sum, plackett_luce_loss
from kleash.rewards.build import build_reward
from kleash.rewards.reward import Reward, RowCheck, opinions
from kleash.rollout.rollout import with_logprobs
from kleash.run import RunFolder, StepMetrics, derive_seed
from kleash.sampling.sampler import build_sampler, sample_groups
from kleash.stages.training_configs import DPOConfig
from kleash.training.after_training import after_training
from kleash.training.best_checkpoint import BestCheckpoint
from kleash.training.loop import Loop, OnStep, State
from kleash.training.measurements import SAMPLED, Measurements
from kleash.training.model_folder import model_card, parameters_held, save_snapshot, write_model
from kleash.training.optim import Optimizer

logger = logging.getLogger("kleash")

SHOWN = ("loss", "margin", "accuracy", "eval_accuracy", "eval_kl")
"""Figures of the progress bar."""

MEASURED = ("loss", "margin", "chosen_logprob", "rejected_logprob", "chosen_shift")
"""Metrics that are measured on the held-out rows too."""

DISPLACED = 0.1
"""The run warns if the held-out chosen responses become less likely than under the reference by this many nats a token:
each of their tokens is then a tenth less likely."""


@records_stop
def run(config: DPOConfig, *, policy: Live | None = None, on_step: OnStep | None = None) -> RunFolder:
    """Train a policy on comparisons and write a folder that `transformers` loads.

    Args:
        config: the settings.
        policy: a live model and tokenizer to train in place of loading `config.model`.
        on_step: called after each step is logged, see `Loop`.

    Returns:
        The finished run; run.json holds the report on held-out pairs and the KL to the reference under `results`.
    """
    folder = open_run("dpo", config, model=policy)
    if folder.finished:
        return folder
    model, tokenizer = load_policy(policy or config.model, device=config.device, adapter=config.adapter)
    train, held_out = read_comparisons(config, model, tokenizer, folder.note)
    check_forward(model, collate([min(train, key=lambda group: group.length)], device=model.device))
    references = References(folder, config, model, train, held_out, live=policy is not None)
    pairs = HeldOut(config, train, held_out, references.held_out)
    limits = Measurements(folder, model, train, **config.measure_settings(len(train)))
    kl_meter = KLMeter(config, tokenizer, held_out, references.load, limits)
    make_trainable(model, **config.adapter_settings())
    steps = config.steps(len(train))
    optimizer = Optimizer(model, steps=steps, **config.optimizer_settings())
    best = BestCheckpoint(folder, config.keep_weights)
    state: State = {"model": model, "optimizer": optimizer, "best": best, **stream_state(train)}
    loop = Loop(folder, total=steps, state=state, shown=SHOWN, on_step=on_step, **config.loop_settings())
    folder.note("formulas", loss=formula(config))
    folder.note("models", **parameters_held(policy=model, reference=references.in_memory))
    for step, (rows, groups) in loop.over(batches(train, **config.batch_settings(len(train)), start=loop.step)):
        metrics = update(model, groups, references.of(rows, groups), optimizer, config)
        if held_out:
            metrics |= loop.evaluated(step, lambda step: measure_held_out(folder, model, step, pairs, best))
        if held_out and config.kl_due(step, steps):
            with loop.measuring(step):
                metrics |= kl_meter.measure(model, step)
        save_snapshot(folder, step, model, tokenizer, every=config.snapshot_every)
        loop.log(step, metrics)
    last = best.take(model, loop.step)
    write_model(folder, model, tokenizer, "", merge=False)
    results = after_training(folder, "report", lambda: report(folder, model, last, pairs, kl_meter)) or {}
    return folder.finish(step=last, rows=rows_used(train), **results)


def group_loss(
    policy: Float[Tensor, "P K"],
    reference: Float[Tensor, "P K"],
    lengths: Int[Tensor, "P K"],
    groups: Sequence[EncodedGroup],
    config: DPOConfig,
) -> tuple[Float[Tensor, " P"], dict[str, Tensor]]:
    """The configured loss, one per prompt, with its metrics (docs/stages/dpo.md).

    Args:
        policy, reference: log-probabilities summed over the tokens of each response; some losses read no reference.
        lengths: how many tokens those are.
        groups: whose labels count; of one K.
        config: selects the loss.
    """
    if policy.shape[-1] > 2:
        ranks = torch.tensor([_ranks(group.source) for group in groups], device=policy.device)
        loss, metrics = plackett_luce_loss(policy, reference, ranks, beta=config.beta)
    else:
        p = policy.new_tensor([_probability(group.source) for group in groups])
        options = {"label_smoothing": config.label_smoothing, "gamma": config.gamma_ratio * config.beta}
        loss, metrics = LOSSES[config.loss](policy, reference, lengths, p=p, beta=config.beta, options=options)
    extremes = torch.tensor([_best_and_worst(group.source) for group in groups], device=policy.device)
    chosen, rejected = policy.gather(-1, extremes).unbind(-1)
    tokens = lengths.gather(-1, extremes)[:, 0].clamp(min=1)
    loss = loss - config.sft_coefficient * chosen / tokens
    metrics = {**metrics, "chosen_logprob": chosen.detach(), "rejected_logprob": rejected.detach()}
    if LOSSES[config.loss].needs_reference:
        metrics["chosen_shift"] = (chosen.detach() - reference.gather(-1, extremes)[:, 0]) / tokens
    return loss, metrics


def update(
    model: PreTrainedModel,
    groups: Sequence[EncodedGroup],
    references: Sequence[Tensor],
    optimizer: Optimizer,
    config: DPOConfig,
) -> StepMetrics:
    """One optimiser step on some comparisons; `references` are log π_ref of each group's responses."""
    totals: dict[str, Tensor] = {}
    for part in microbatches(groups, max_tokens=config.micro_batch_tokens, device=model.device):
        chosen = [groups[row] for row in part]
        batch = collate(chosen, device=model.device)
        with config.compute.autocast(model.device):
            logprobs, _ = response_logprobs(model, batch)
        policy = masked_sum(logprobs, batch.mask, -1)
        reference = torch.stack([references[row] for row in part]).to(policy)
        loss, metrics = group_loss(policy, reference, batch.mask.sum(-1), chosen, config)
        optimizer.backward(loss.sum() / len(groups))
        for name, value in {"loss": loss.detach(), **metrics}.items():
            totals[name] = totals.get(name, torch.zeros((), device=model.device)) + value.sum() / len(groups)
    return {**totals, **optimizer.step()}


Figures = tuple[dict[str, float | None], PreferenceReport]
"""The loss and its metrics on held-out rows, and the report on their implicit rewards."""


def evaluate(
    model: PreTrainedModel,
    held_out: Sequence[EncodedGroup],
    references: Sequence[Tensor],
    train: Sequence[EncodedGroup],
    config: DPOConfig,
) -> Figures:
    """The loss and its metrics on held-out rows, and the report on their implicit rewards, over all pairs at once."""
    logprobs = summed_logprobs(model, held_out, compute=config.compute)
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
        per_length = lengths if LOSSES[config.loss].per_length else None
        rewards += implicit_rewards(policy, reference, beta=config.beta, lengths=per_length).tolist()
        ordered += groups
    return means, preference_figures(ordered, rewards, train)


def measure_held_out(
    folder: RunFolder, model: PreTrainedModel, step: int, pairs: HeldOut, best: BestCheckpoint
) -> StepMetrics:
    """What metrics.jsonl has of the held-out rows after a step; keeps the weights if they are the best so far."""
    means, figures = pairs.measure(model, step)
    best.update(model, step, means["loss"] or 0.0)
    warn_of_displacement(folder, step, means)
    return eval_metrics(means, figures)


def eval_metrics(means: Mapping[str, float | None], figures: PreferenceReport) -> StepMetrics:
    """What metrics.jsonl has of a measurement on held-out rows."""
    return {**{f"eval_{name}": value for name, value in means.items()}, "eval_accuracy": figures.accuracy}


class HeldOut:
    """Held-out comparisons, and their latest figures.

    Args:
        config: the loss.
        train: the training rows, on which the length baseline is fitted.
        groups: the held-out rows.
        references: log π_ref of their responses.
    """

    def __init__(
        self,
        config: DPOConfig,
        train: Sequence[EncodedGroup],
        groups: Sequence[EncodedGroup],
        references: Sequence[Tensor],
    ) -> None:
        self.config, self.train, self.groups, self.references = config, train, groups, references
        self.latest: tuple[int, Figures] | None = None

    def measure(self, model: PreTrainedModel, step: int) -> Figures:
        """The figures of `evaluate` after a step; a step that was just measured is not measured again."""
        if self.latest is None or self.latest[0] != step:
            self.latest = step, evaluate(model, self.groups, self.references, self.train, self.config)
        return self.latest[1]


class KLMeter:
    """KL(π ‖ π_ref) a response, in nats: k1 on fresh responses to held-out prompts, from the same streams each time.

    Args:
        config: how many responses, and how long.
        tokenizer: the policy's.
        held_out: the rows of the prompts; prompts that leave no room for a response are skipped.
        load_reference: loads the reference, which takes no memory between measurements.
        measurements: limits how many responses, and keeps the last figure.
    """

    def __init__(
        self,
        config: DPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        held_out: Sequence[EncodedGroup],
        load_reference: Callable[[], Reference],
        measurements: Measurements,
    ) -> None:
        self.config, self.tokenizer, self.load_reference = config, tokenizer, load_reference
        self.measurements = measurements
        tokens = sum(len(group.prompt_ids) for group in held_out) / max(1, len(held_out))
        work = 3 * tokens + (2 + SAMPLED) * config.max_new_tokens  # sampled, then read by the reference and the policy
        self.samples = measurements.count("KL from the reference", config.kl_samples, part=1, work=work)
        self.prompts = list({group.prompt_ids: group for group in held_out}.values())
        names = {"validation_reward": config.hold_out, "gold": config.gold}
        self.rewards: dict[str, Reward] = {name: build_reward(reward) for name, reward in names.items() if reward}
        rows = [group.source for group in self.prompts]
        if self.samples:
            RowCheck(*self.rewards.values())(rows, range(1, len(rows) + 1), "held-out prompts")
        self.latest: tuple[int, MeanSE] | None = None

    @torch.no_grad()
    def measure(self, model: PreTrainedModel, step: int) -> StepMetrics:
        """`eval_kl` after a step, and the monitors of these responses (docs/metrics.md, Monitors)."""
        config = self.config
        room = (context_length(model) or 1 << 30) - config.max_new_tokens
        prompts = [group for group in self.prompts if len(group.prompt_ids) <= room][: self.samples]
        if not prompts:
            self.latest = step, mean_se([])
            return {"eval_kl": None}
        sampler = build_sampler(
            model, self.tokenizer, max_new_tokens=config.max_new_tokens, stop=config.stop, dtype=config.dtype
        )
        batch, groups = sample_groups(
            sampler, self.tokenizer, prompts, group_size=self.samples // len(prompts),
            seed=derive_seed(config.seed, "measure kl"),
        )  # fmt: skip
        batch = with_logprobs(batch, model, self.load_reference(), exact=sampler.exact, compute=config.compute)
        assert batch.old_logprobs is not None and batch.reference_logprobs is not None
        nats = kl.per_sequence(kl.k1(batch.old_logprobs, batch.reference_logprobs), batch.mask).float().cpu()
        self.latest = step, mean_se(nats)
        scores = {f"eval_{name}": float(opinions(reward, groups).nanmean()) for name, reward in self.rewards.items()}
        return {"eval_kl": self.latest[1]["mean"], **monitors.describe_responses(groups), **scores}

    def figures(self, model: PreTrainedModel, step: int) -> MeanSE:
        """Mean and standard error after a step; a step that was just measured is not measured again."""

        def measure() -> MeanSE:
            if self.latest is None or self.latest[0] != step:
                self.measure(model, step)
            assert self.latest is not None
            return self.latest[1]

        return self.measurements.keep("KL from the reference", MeanSE, measure)


def report(folder: RunFolder, model: PreTrainedModel, step: int, pairs: HeldOut, kl_meter: KLMeter) -> StepMetrics:
    """Report and KL of the final weights, with their checks and model card."""
    results: StepMetrics = {}
    if pairs.groups:
        measured = pairs.config.kl_due(step, step)
        means, figures = pairs.measure(model, step)
        results = {"report": means | as_json(figures), "kl": kl_meter.figures(model, step) if measured else None}
        record_checks(folder, checks=policy_checks.direct(figures, kl=results["kl"]))
    write_text(folder.path / "README.md", model_card(folder, _summary(results)))
    return results


class References:
    """Log π_ref(y|x) of each response: computed once and kept in the folder; of a stream's rows when they come.

    Made before anything is trained or restored, while the policy has its initial weights.

    Args:
        folder: the run.
        config: names the reference, and the loss; zeros where it has no reference.
        policy: as it starts.
        train, held_out: the rows.
        live: whether the policy was given as a model, so that no folder has its initial weights.

    Attributes:
        held_out: of the held-out rows.
        load: loads the reference, for what is measured.
        in_memory: the reference that a stream's rows need; None where there is none.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: DPOConfig,
        policy: PreTrainedModel,
        train: Rows,
        held_out: Sequence[EncodedGroup],
        *,
        live: bool,
    ) -> None:
        self.compute = config.compute
        needed, streamed = LOSSES[config.loss].needs_reference, isinstance(train, Stream)
        groups = [*([] if streamed else train), *held_out]
        parent = "reference" if config.reference else "model"
        logprobs = [torch.zeros(len(group.responses)) for group in groups]
        if needed and groups:
            logprobs = kept_logprobs(
                folder.path / "reference", groups, policy=policy, name=config.reference,
                model_sha256=folder.record["inputs"][parent]["sha256"], compute=config.compute,
            )  # fmt: skip
        split = len(groups) - len(held_out)
        self.train, self.held_out = logprobs[:split], logprobs[split:]
        self.load = reference_loader(config, policy, live=live)
        self.in_memory = self.load() if needed and streamed else None

    def of(self, rows: Sequence[int], groups: Sequence[EncodedGroup]) -> list[Float[Tensor, " _"]]:
        """Those of some training rows, given by their numbers and as they are."""
        if self.in_memory is not None:
            return self.in_memory.summed_logprobs(groups, compute=self.compute)
        if self.train:
            return [self.train[row] for row in rows]
        return [torch.zeros(len(group.responses)) for group in groups]


def reference_loader(config: DPOConfig, model: PreTrainedModel, *, live: bool) -> Callable[[], Reference]:
    """A function that loads the reference for each measurement of the KL, so that it takes no memory in between."""
    if config.reference is None and has_adapters(model):  # one that is trained on
        keep_reference(model)
    if config.reference is None and (has_adapters(model) or can_be_disabled(config.lora)):
        return lambda: Reference(model)  # evaluated with its adapters as they came: new ones disabled
    if live and config.reference is None and (config.kl_due(1, 1) or config.streaming):
        frozen = frozen_copy(model)  # the initial weights of a live model are stored nowhere else
        return lambda: Reference(frozen)
    return lambda: Reference(freeze(load_policy(config.reference or config.model, device=config.device)[0]))


def _probability(group: Group) -> float:
    """P(response 0 ≻ response 1) of a pair."""
    ((first, _, p),) = pairs_of(group)
    return p if first == 0 else 1 - p


def _ranks(group: Group) -> tuple[int, ...]:
    assert isinstance(group.label, Ranking)
    return group.label.ranks


def _best_and_worst(group: Group) -> tuple[int, int]:
    """Indices of the most and the least preferred response; of a tied pair the first counts as the better one."""
    if len(group.responses) == 2:
        return (0, 1) if _probability(group) >= 0.5 else (1, 0)
    ranks = _ranks(group)
    return ranks.index(min(ranks)), ranks.index(max(ranks))


def _usable(group: Group, loss: str) -> str | None:
    """The fault of a row for this stage, or None."""
    if isinstance(group.label, Ranking) and len(group.responses) > 2:
        if loss != "sigmoid":
            return f"ranks {len(group.responses)} responses, and loss {loss} compares two; take --loss sigmoid"
        if len(set(group.label.ranks)) < len(group.responses):
            return "ranks two responses the same, which a ranking of more than two cannot; split it into pairs"
    return comparison(group)


def warn_of_displacement(folder: RunFolder, step: int, figures: Mapping[str, Any]) -> None:
    """Warn once, in the log and in run.json, that the chosen responses have become less likely.

    Only the difference to the rejected ones is trained, so both may become less likely (likelihood displacement, Razin
    et al. 2024, arXiv:2410.08847).
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


def formula(config: DPOConfig) -> str:
    """The formula of the loss, for run.json (F2)."""
    term = " − sft_coefficient · log π(chosen)/|chosen|" if config.sft_coefficient else ""
    return LOSSES[config.loss].formula + term


def read_comparisons(
    config: DPOConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, note: Callable[..., None]
) -> tuple[Rows, list[EncodedGroup]]:
    """The comparisons to train on and those held out."""
    return read_encoded(
        config.data, config.eval_data, tokenizer, usable=lambda group: _usable(group, config.loss),
        prepare=_compared, max_length=config.max_length or context_length(model),
        max_eval_rows=config.max_eval_rows, seed=config.seed,
        row_format=config.row_format, note=note, streaming=config.streaming,
    )  # fmt: skip


def _compared(groups: Sequence[Group]) -> list[Group]:
    """The groups as comparisons: of scored responses the best against the worst; groups with equal scores are left
    out.
    """
    pairs = [best_against_worst(group) if isinstance(group.label, Scores) else group for group in groups]
    return [pair for pair in pairs if pair is not None]
