"""Over-optimisation: gold and proxy against KL, the fitted scaling law, the recommended checkpoint.

    kleash overopt --run runs/ppo --gold runs/gold-reward --best-of 16 --out runs/overopt

Takes the checkpoints of a run, spaced evenly in √KL, and pools of best-of-n, samples from each of them to the same
prompts with the same streams of random numbers, and scores every response with the proxy (the reward that the policy
was trained against) and with gold (a better one). It does not train. Gao et al. 2022, arXiv:2210.10760.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks.attribution import leave_one_out
from kleash.checks.gates import check_parents
from kleash.data.batch import GroupBatch
from kleash.data.chat import encode_all
from kleash.data.formats import to_row
from kleash.data.group import EncodedGroup, Group, Response, prompt_key
from kleash.data.row_format import RowFormat
from kleash.data.split import prompt_only, read_usable
from kleash.errors import ConfigError, InputError, RewardError
from kleash.evals.best_of_n_report import one_score_a_text
from kleash.evals.overoptimization import (
    Analysis,
    KLCurve,
    Source,
    analyse,
    best_of_n_kl_curve,
    caution,
    checkpoints_curve,
    choosing_prompts,
    in_words,
    point_name,
    spaced_checkpoints,
)
from kleash.evals.report_values import as_json
from kleash.io import Json, read_jsonl, write_json, write_text
from kleash.models.compute import Compute
from kleash.models.inference import batch_logprobs
from kleash.models.load import context_length, freeze, load_policy
from kleash.models.reference import Reference
from kleash.objectives import kl
from kleash.progress import Progress
from kleash.rewards.build import AnyReward, as_reward, reward_name
from kleash.rewards.identity import live_fingerprint
from kleash.rewards.reward import Reward, RowCheck
from kleash.run import RunFolder, derive_seed, read_record
from kleash.sampling.sampler import build_sampler, sample_groups
from kleash.stages.data_configs import OveroptConfig
from kleash.stages.score import score_groups
from kleash.training.after_training import Skipped, or_skip
from kleash.unfinished import refuse_unfinished_run

logger = logging.getLogger("kleash")

Row = Json
"""A row of samples.jsonl: a response at a point, with its scores and its KL."""

SHOWN_BY_RULE, SHOWN_AT_RANDOM = 4, 2
"""Prompts whose samples before and after are shown: those with the most proxy gained for gold lost, and others."""


@dataclass(frozen=True)
class Point:
    """Where to sample: a checkpoint of the run, or a pool from the start."""

    source: Source
    step: int
    weights: str
    responses: int


@dataclass(frozen=True)
class Measuring:
    """The models, rewards and prompts of all measurements."""

    start: PreTrainedModel
    """Frozen; the KL is measured from it."""
    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[EncodedGroup]
    proxy: Reward
    gold: Reward
    max_new_tokens: int
    temperature: float
    stop: tuple[str, ...]
    seed: int
    compute: Compute


def run(config: OveroptConfig, *, proxy: AnyReward | None = None, gold: AnyReward | None = None) -> RunFolder:
    """Measure every point, then analyse the curves.

    Args:
        config: the settings.
        proxy: a live reward in place of `config.proxy`, anything that `as_reward` takes.
        gold: the same in place of `config.gold`.

    Returns:
        The finished run: `samples.jsonl` holds every response with both scores, metrics.jsonl a row per point,
            `results` of run.json the analysis of each curve, `shown.json` samples before and after the peak with their
            attributions.

    Raises:
        ConfigError: a setting is given neither here nor by the run; the message names it.
        DataError: a reward cannot read a row.
        GateError: the proxy or the gold reward failed its own checks.
        RewardError: a reward has no opinion of a response.
    """
    config = _completed_from_run(config, live_proxy=proxy is not None)
    rewards = {"proxy": proxy, "gold": gold}
    inputs = {role: live_fingerprint(value, reward_name(value)) for role, value in rewards.items() if value is not None}
    folder = RunFolder.open(config.out, stage="overopt", config=config, inputs=inputs)
    if folder.finished:
        return folder
    for role, live in rewards.items():
        if live is None:
            check_parents(folder, role=role, parent=getattr(config, role), force=config.force)
    measuring = _measuring(config, proxy, gold)
    names = [prompt_key(prompt.source.prompt) for prompt in measuring.prompts]
    choose = choosing_prompts(names, share=config.choose_share, seed=config.seed)
    half = {name: "choose" if chooses else "report" for name, chooses in zip(names, choose, strict=True)}

    rows = _finished_rows(folder)
    finished = {(row["source"], row["step"]) for row in rows}
    points = [point for point in _points(config) if (point.source, point.step) not in finished]
    with Progress(len(points), "overopt") as progress:
        for number, point in enumerate(points, start=1):
            policy = measuring.start if point.step == 0 else load_policy(point.weights, device=config.device)[0]
            new = [{**row, "half": half[prompt_key(row["prompt"])]} for row in measure(point, policy, measuring)]
            folder.append("samples.jsonl", new)
            means = {key: float(np.mean([row[key] for row in new])) for key in ("gold", "proxy", "kl")}
            folder.log(point.step, {"source": point.source, **means})  # the point is finished from here on
            rows += new
            progress.update(number, **means)
    return _conclude(folder, rows, measuring, choose, seed=config.seed)


def measure(point: Point, policy: PreTrainedModel, measuring: Measuring) -> list[Row]:
    """Sample a policy on every prompt, with the same streams at every point, and score each response twice."""
    sampler = build_sampler(
        policy, measuring.tokenizer, max_new_tokens=measuring.max_new_tokens, temperature=measuring.temperature,
        stop=measuring.stop, dtype=measuring.compute.dtype,
    )  # fmt: skip
    seed = derive_seed(measuring.seed, "overopt")
    batch, groups = sample_groups(
        sampler, measuring.tokenizer, measuring.prompts, group_size=point.responses, seed=seed
    )
    proxy, gold = (_scores(reward, groups) for reward in (measuring.proxy, measuring.gold))
    kls = np.zeros(batch.shape[:2])
    if policy is not measuring.start:
        kls = _kl(batch, policy, measuring, exact=sampler.exact)
    return [
        {
            **group.columns,
            "source": point.source,
            "step": point.step,
            "prompt": to_row(Group(group.prompt))["prompt"],
            "response": response.text,
            "finished": response.finished,
            "proxy": proxy[p][k],
            "gold": gold[p][k],
            "kl": float(kls[p, k]),
        }
        for p, group in enumerate(groups)
        for k, response in enumerate(group.responses)
    ]


def _scores(reward: Reward, groups: Sequence[Group]) -> list[list[float]]:
    """Scores of every response: a curve over some of them would not be the policy's."""
    scores = score_groups(reward, groups)[0]
    for group, row in zip(groups, scores, strict=True):
        if any(map(math.isnan, row)):
            raise RewardError(
                f"a reward has no opinion of a response to the prompt {group.prompt_text[:60]!r}, and overopt compares "
                "proxy and gold on every response; give prompts that both know as --data"
            )
    return scores


def _kl(batch: GroupBatch, policy: PreTrainedModel, measuring: Measuring, *, exact: bool) -> np.ndarray:
    """k1 of each response, summed over its tokens, in nats: [P, K]."""
    settings: Json = {"temperature": measuring.temperature, "compute": measuring.compute}
    policy_logprobs = batch.sampler_logprobs if exact else None
    if policy_logprobs is None:
        policy_logprobs = batch_logprobs(policy, batch, **settings)
    reference = Reference(measuring.start).logprobs(batch, **settings)
    return kl.per_sequence(kl.k1(policy_logprobs, reference), batch.mask).cpu().double().numpy()


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[Source, KLCurve]:
    """The curves that were measured, the run's first."""
    curves: dict[Source, KLCurve] = {}
    steps = [row for row in rows if row["source"] == "checkpoints"]
    if steps:
        curves["checkpoints"] = checkpoints_curve(steps)
    pools: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["source"] == "best-of-n":
            pools.setdefault(prompt_key(row["prompt"]), []).append(row)
    if pools:
        gold = np.array([[row["gold"] for row in pool] for pool in pools.values()])
        proxy = np.array([_one_score_a_text(pool) for pool in pools.values()])
        curves["best-of-n"] = best_of_n_kl_curve(pools, gold, proxy)
    return curves


def _conclude(
    folder: RunFolder, rows: Sequence[Row], measuring: Measuring, choose: np.ndarray, *, seed: int
) -> RunFolder:
    """Analyse the curves, write samples of both sides of the peak, and finish the run."""
    analyses = {
        source: analyse(curve, choose=choose, seed=derive_seed(seed, "bootstrap"))
        for source, curve in curves_of(rows).items()
    }
    words = {source: in_words(analysis) for source, analysis in analyses.items()}
    if "checkpoints" in analyses:
        words["checkpoints"] |= _caution(rows, analyses["checkpoints"].recommended.point)
    main = next(iter(analyses.values()))
    write_json(folder.path / "shown.json", shown_samples(rows, main, measuring, seed=seed))
    return folder.finish(roads={source: as_json(analysis) for source, analysis in analyses.items()}, words=words)


def _caution(rows: Sequence[Row], point: int) -> dict[str, str]:
    """A warning about the recommended checkpoint of a run, if there is reason for one."""
    responses: dict[int, list[str]] = {}
    for row in rows:
        if row["source"] == "checkpoints":
            responses.setdefault(row["step"], []).append(row["response"])
    warning = caution(responses[point], responses[0], point_name("checkpoints", point))
    return {} if warning is None else {"caution": warning}


# -- samples before and after ------------------------------------------------------------------------------------------


def shown_samples(rows: Sequence[Row], analysis: Analysis, measuring: Measuring, *, seed: int) -> Json:
    """Samples of the peak and of the end to the reporting prompts, with the proxy's attribution to their sentences.

    Where gold is best at the end, the start takes the peak's place. Shown are the prompts with the largest sum of
    proxy gained and gold lost, each in units of its standard deviation over prompts, then some drawn at random.
    """
    start, end = analysis.points[0].point, analysis.points[-1].point
    before = analysis.peak.point if analysis.peak.point != end else start
    first, last = (_samples_at(rows, analysis.source, point) for point in (before, end))
    sources = {prompt_key(prompt.source.prompt): prompt.source for prompt in measuring.prompts}
    names = _by_proxy_gained_and_gold_lost(first, last)
    rest = sorted(names[SHOWN_BY_RULE:], key=lambda name: derive_seed(seed, "shown", name))
    picks = [(name, "rule") for name in names[:SHOWN_BY_RULE]] + [(name, "random") for name in rest[:SHOWN_AT_RANDOM]]
    return {
        "source": analysis.source,
        "before": before,
        "after": end,
        "prompts": [
            {
                "prompt": sources[name].prompt_text,
                "by": by,
                "before": _attributed(first[name], sources[name], measuring.proxy),
                "after": _attributed(last[name], sources[name], measuring.proxy),
            }
            for name, by in picks
        ],
    }


def _by_proxy_gained_and_gold_lost(first: Mapping[str, Row], last: Mapping[str, Row]) -> list[str]:
    """Names of the prompts, the largest sum of proxy gained and gold lost first."""
    change = {key: np.array([last[name][key] - first[name][key] for name in first]) for key in ("proxy", "gold")}
    worst = change["proxy"] / (change["proxy"].std() or 1.0) - change["gold"] / (change["gold"].std() or 1.0)
    return [list(first)[index] for index in np.argsort(-worst, kind="stable")]


def _attributed(row: Row, source: Group, proxy: Reward) -> Row:
    """A sample with its pieces and the drop of the proxy's score without each; no drops where that fails."""
    columns = {**source.columns, "finished": row["finished"]}
    drops = or_skip("attribution", lambda: leave_one_out(proxy, source.prompt, row["response"], **columns))
    sample = {key: row[key] for key in ("response", "finished", "proxy", "gold", "kl")}
    if isinstance(drops, Skipped):
        return sample | {"pieces": [{"text": row["response"], "drop": 0.0}], "skipped": drops.skipped}
    return sample | {"pieces": [{"text": text, "drop": drop} for text, drop in drops]}


def _samples_at(rows: Sequence[Row], source: Source, point: int) -> dict[str, Row]:
    """One response to each reporting prompt: the first of a checkpoint, or the best of the first n of a pool."""
    pools: dict[str, list[Row]] = {}
    for row in rows:
        if row["half"] == "report" and row["source"] == source and (source == "best-of-n" or row["step"] == point):
            pools.setdefault(prompt_key(row["prompt"]), []).append(row)
    n = point if source == "best-of-n" else 1
    return {name: max(pool[:n], key=lambda row: row["proxy"]) for name, pool in pools.items()}


# -- what to measure ---------------------------------------------------------------------------------------------------


def _completed_from_run(config: OveroptConfig, *, live_proxy: bool) -> OveroptConfig:
    """The config, completed with the run's settings."""
    record = _record(config.run) if config.run is not None else None
    of_run = record["config"] if record is not None else {}
    values = {
        "model": config.model or of_run.get("reference") or of_run.get("model"),
        "proxy": config.proxy or of_run.get("reward"),
        "data": config.data or of_run.get("eval_data"),
        "columns": config.columns or (of_run.get("columns") if config.data is None else None),
        "as_chat": bool(of_run.get("as_chat")) if config.as_chat is None else config.as_chat,
        "max_new_tokens": config.max_new_tokens or of_run.get("max_new_tokens"),
        "temperature": config.temperature or of_run.get("temperature") or 1.0,
        "stop": tuple(of_run.get("stop") or ()) if config.stop is None else config.stop,
    }
    for name, value in values.items():
        if value is None and name != "columns" and not (name == "proxy" and live_proxy):
            reason = f"{config.run} does not name one" if record is not None else "there is no --run to take it from"
            raise ConfigError(f"'{name}' is missing, and {reason}; give --{name.replace('_', '-')}")
    if config.run is None and config.best_of < 2:
        raise ConfigError("there is nothing to measure; give the --run of a policy, or --best-of 2 or more, or both")
    return config.model_copy(update=values)


def _record(run: Path) -> Json:
    record = read_record(run)
    if record is None:
        raise InputError(f"{run} holds no run.json; give the folder of a ppo, grpo or dpo run")
    return record


def _points(config: OveroptConfig) -> list[Point]:
    """The points to measure, the start first."""
    points = []
    if config.run is not None:
        weights = _checkpoints(config.run)
        logged = {
            row["step"]: nats
            for row in read_jsonl(config.run / "metrics.jsonl")
            if (nats := row.get("eval_kl") if row.get("eval_kl") is not None else row.get("kl")) is not None
        }
        steps = spaced_checkpoints(sorted(weights), logged, config.points)
        points += [Point("checkpoints", step, weights.get(step, ""), config.samples) for step in (0, *steps)]
    if config.best_of:
        points.append(Point("best-of-n", 0, "", config.best_of))
    return points


def _checkpoints(run: Path) -> dict[int, str]:
    """Folders of the saved weights by step, including the final ones."""
    folders = {int(path.name.removeprefix("step-")): str(path) for path in (run / "snapshots").glob("step-*")}
    last = _record(run)["results"].get("step")
    if last and last not in folders:
        folders[last] = str(run)
    if not folders:
        refuse_unfinished_run(run)
        raise InputError(f"{run} holds neither snapshots nor final weights; train with --snapshot-every and let it end")
    return folders


def _measuring(config: OveroptConfig, proxy: AnyReward | None, gold: AnyReward | None) -> Measuring:
    """Load the models, rewards and prompts of a completed config."""
    assert config.model is not None and config.data is not None
    assert config.max_new_tokens is not None and config.temperature is not None and config.stop is not None
    start, tokenizer = load_policy(config.model, device=config.device)

    def build(name: str | None, live: AnyReward | None) -> Reward:
        value = str(name) if live is None else live
        return as_reward(value, policy_tokenizer=tokenizer, compute=Compute(config.device, config.dtype))

    rewards = build(config.proxy, proxy), build(config.gold, gold)
    context = context_length(start)
    room = None if context is None else context - config.max_new_tokens
    return Measuring(
        start=freeze(start),
        tokenizer=tokenizer,
        prompts=_read_prompts(config, tokenizer, rewards, max_length=room),
        proxy=rewards[0],
        gold=rewards[1],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        stop=config.stop,
        seed=config.seed,
        compute=Compute(config.device, config.dtype),
    )


def _read_prompts(
    config: OveroptConfig, tokenizer: PreTrainedTokenizerBase, rewards: Sequence[Reward], *, max_length: int | None
) -> list[EncodedGroup]:
    """The prompts, each once, that leave room for a response."""
    data, row_format = str(config.data), RowFormat(config.columns, bool(config.as_chat))
    rows = read_usable(data, prompt_only, row_format=row_format, keep=RowCheck(*rewards))
    first = {prompt_key(group.prompt): group for group in reversed(rows)}
    groups = [Group(group.prompt, columns=group.columns) for group in reversed(first.values())]
    encoded, truncation = encode_all(groups, tokenizer, max_length=max_length)
    if truncation.message():
        logger.warning("%s: %s", data, truncation.message())
    return encoded


def _finished_rows(folder: RunFolder) -> list[Row]:
    """Samples of the finished points; rows of an interrupted point are removed."""
    metrics = folder.metrics()
    points = {(row["source"], row["step"]) for row in metrics}
    rows = [row for row in read_jsonl(folder.path / "samples.jsonl") if (row["source"], row["step"]) in points]
    for name, content in (("metrics.jsonl", metrics), ("samples.jsonl", rows)):
        write_text(folder.path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))
    return rows


def _one_score_a_text(pool: Sequence[Mapping[str, Any]]) -> list[float]:
    """Scores of a pool, equal for equal texts: rounding must not separate them."""
    texts = tuple(Response(row["response"], finished=row["finished"]) for row in pool)
    return one_score_a_text(Group("", texts), [row["proxy"] for row in pool])
