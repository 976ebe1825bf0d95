"""Overoptimization, measured: how gold and proxy move as a policy leaves its start, where gold turns, which checkpoint
is recommended.

    kleash overopt --run runs/ppo --gold runs/held-out-reward --best-of 16 --out runs/overopt

Takes the checkpoints of a run, spaced evenly in √KL, and pools of best-of-n, samples the same prompts by the same
streams from each, and scores every response with the reward that was optimised and with a better one. Learns nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kleash.checks.attribution import leave_one_out
from kleash.checks.gates import check_parents
from kleash.data.batch import GroupBatch
from kleash.data.chat import encode_all, end_ids
from kleash.data.formats import to_row
from kleash.data.group import EncodedGroup, Group, Response
from kleash.data.split import prompt_only, read_usable
from kleash.errors import ConfigError, InputError
from kleash.evals import overoptimization
from kleash.io import read_jsonl, write_json, write_text
from kleash.models.forward import response_logprobs
from kleash.models.inference import micro_batches
from kleash.models.load import autocast, context_length, freeze, load_policy
from kleash.objectives import kl
from kleash.progress import Progress
from kleash.rewards.reward import Reward, build_reward
from kleash.run import RunFolder, derive_seed, read_record
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups
from kleash.stages.best_of_n import one_score_a_text
from kleash.stages.data_configs import OveroptConfig
from kleash.stages.score import score_groups

logger = logging.getLogger("kleash")

Row = dict[str, Any]

SHOWN_BY_RULE, SHOWN_AT_RANDOM = 4, 2
"""Prompts whose samples before and after are shown: those with the most proxy gained for gold lost, and others."""
TOKENS_AT_ONCE = 8192


def run(config: OveroptConfig, *, proxy: Reward | None = None, gold: Reward | None = None) -> RunFolder:
    """Measure every point, then say what the curve says.

    Args:
        config: the settings.
        proxy: a live reward in place of `config.proxy`.
        gold: a live reward in place of `config.gold`.

    Returns:
        The finished run: `samples.jsonl` holds every response with both scores, metrics.jsonl a row a point, `results`
        of run.json the analysis of each curve, `shown.json` samples before and after the turn with what the proxy
        likes.

    Raises:
        ConfigError: something is neither given nor to be had from the run; the message names it.
        GateError: the proxy or the gold reward failed its own gate.
    """
    config = _filled_from_run(config, live_proxy=proxy is not None)
    folder = RunFolder.open(config.out, stage="overopt", config=config)
    if folder.finished:
        return folder
    for role, live in (("proxy", proxy), ("gold", gold)):
        name = getattr(config, role)
        if live is None and name is not None:
            check_parents(folder, role=role, parent=name, force=config.force)
    assert config.model is not None
    start, tokenizer = load_policy(config.model, device=config.device)
    prompts = _read_prompts(config, start, tokenizer)
    build: Callable[[str], Reward] = lambda name: build_reward(  # noqa: E731
        name, policy_tokenizer=tokenizer, device=config.device, dtype=config.dtype
    )
    scorers = Scorers(proxy or build(str(config.proxy)), gold or build(config.gold))
    names = [overoptimization.name_of(prompt.source.prompt) for prompt in prompts]
    choose = overoptimization.choosing(names, share=config.choose_share, seed=config.seed)

    rows = _done(folder)
    todo = [
        point for point in _points(config) if (point.source, point.step) not in {(r["source"], r["step"]) for r in rows}
    ]
    with Progress(len(todo), "overopt") as progress:
        for number, point in enumerate(todo, start=1):
            policy = start if point.step == 0 else load_policy(point.weights, device=config.device)[0]
            new = measure(config, point, policy, freeze(start), tokenizer, prompts, scorers)
            for row in new:
                row["half"] = "choose" if choose[names.index(overoptimization.name_of(row["prompt"]))] else "report"
            folder.append("samples.jsonl", new)
            means = {key: float(np.mean([row[key] for row in new])) for key in ("gold", "proxy", "kl")}
            folder.log(point.step, {"source": point.source, **means})  # the point is done from here on
            rows += new
            progress.update(number, **means)

    kl_curves = kl_curves_of(rows)
    analyses = {
        name: overoptimization.analyse(kl_curve, choose=choose, seed=derive_seed(config.seed, "bootstrap"))
        for name, kl_curve in kl_curves.items()
    }
    main = next(iter(analyses))
    write_json(folder.path / "shown.json", shown(config, rows, analyses[main], prompts, scorers.proxy))
    words = {name: overoptimization.in_words(analysis) for name, analysis in analyses.items()}
    if "checkpoints" in analyses:
        words["checkpoints"] |= _caution(rows, analyses["checkpoints"]["recommended"]["point"])
    return folder.finish(roads=analyses, words=words)


def _caution(rows: Sequence[Row], recommended: int) -> dict[str, str]:
    """What speaks against the run's recommended checkpoint in spite of its gold."""
    said: dict[int, list[str]] = {}
    for row in rows:
        if row["source"] == "checkpoints":
            said.setdefault(row["step"], []).append(row["response"])
    warning = overoptimization.caution(
        said[recommended], said[0], overoptimization.point_name("checkpoints", recommended)
    )
    return {} if warning is None else {"caution": warning}


@dataclass(frozen=True)
class Scorers:
    """The reward that was optimised and the one that is believed."""

    proxy: Reward
    gold: Reward


@dataclass(frozen=True)
class Point:
    """Where to sample: a checkpoint of the run, or a pool from the start."""

    source: overoptimization.Source
    step: int
    weights: str
    responses: int


def measure(
    config: OveroptConfig,
    point: Point,
    policy: PreTrainedModel,
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EncodedGroup],
    scorers: Scorers,
) -> list[Row]:
    """Sample every prompt from one policy, by the same streams at every point, and score each response twice."""
    assert config.max_new_tokens is not None and config.temperature is not None
    ends = end_ids(tokenizer)
    sampler = LocalSampler(
        policy, tokenizer, max_new_tokens=config.max_new_tokens, temperature=config.temperature, end_ids=ends
    )
    with autocast(config.dtype, policy.device):
        ids = [prompt.prompt_ids for prompt in prompts]
        batch = sampler(ids, group_size=point.responses, seed=derive_seed(config.seed, "overopt"))
    groups = decode_groups(batch, [prompt.source for prompt in prompts], tokenizer, ends)
    proxy, gold = (score_groups(reward, groups)[0] for reward in (scorers.proxy, scorers.gold))
    kl_per_response = np.zeros(batch.shape[:2]) if policy is start else kl_from_start(start, policy, batch, config)
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
            "kl": float(kl_per_response[p, k]),
        }
        for p, group in enumerate(groups)
        for k, response in enumerate(group.responses)
    ]


@torch.no_grad()
def kl_from_start(
    start: PreTrainedModel, policy: PreTrainedModel, batch: GroupBatch, config: OveroptConfig
) -> np.ndarray:
    """k1 of each response, summed over its tokens, in nats: [P, K]."""
    assert config.temperature is not None
    temperature = config.temperature

    def logprobs(model: PreTrainedModel) -> torch.Tensor:
        out = torch.zeros(batch.mask.shape, device=policy.device)
        for part in micro_batches(batch, range(batch.shape[0]), max_tokens=TOKENS_AT_ONCE):
            index = torch.tensor(part, device=policy.device)
            groups = batch.select(index)
            with autocast(config.dtype, policy.device):
                values, _ = response_logprobs(model, groups, temperature=temperature)
            out[index, :, : groups.shape[2]] = torch.where(groups.mask, values.float(), 0)
        return out

    # In float32 the sampler's numbers are those of the forward pass; else they are computed again.
    own = batch.sampler_logprobs if config.dtype == "float32" else logprobs(policy)
    assert own is not None
    return kl.per_sequence(kl.k1(own, logprobs(start)), batch.mask).cpu().double().numpy()


def kl_curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[overoptimization.Source, overoptimization.KLCurve]:
    """The curves that were measured, the run's first."""
    kl_curves: dict[overoptimization.Source, overoptimization.KLCurve] = {}
    steps = [row for row in rows if row["source"] == "checkpoints"]
    if steps:
        kl_curves["checkpoints"] = overoptimization.curve_of_checkpoints(steps)
    pools: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["source"] == "best-of-n":
            pools.setdefault(overoptimization.name_of(row["prompt"]), []).append(row)
    if pools:
        gold, proxy = (np.array([[row[key] for row in pool] for pool in pools.values()]) for key in ("gold", "proxy"))
        for place, pool in enumerate(pools.values()):  # rounding must not make a text better than itself
            proxy[place] = _one_score_a_text(pool)
        kl_curves["best-of-n"] = overoptimization.curve_of_best_of_n(pools, gold, proxy)
    return kl_curves


# -- samples before and after ------------------------------------------------------------------------------------------


def shown(
    config: OveroptConfig,
    rows: Sequence[Row],
    analysis: overoptimization.Figures,
    prompts: Sequence[EncodedGroup],
    proxy: Reward,
) -> dict[str, Any]:
    """Samples of the peak beside samples of the end, with what the proxy likes in each; of the reporting prompts.

    Where gold is best at the end, the start stands in the peak's place. Shown are the prompts with the largest sum of
    proxy gained and gold lost, each in units of its standard deviation over prompts, then some drawn at random.
    """
    points = [row["point"] for row in analysis["points"]]
    before = analysis["peak"]["point"] if analysis["peak"]["point"] != points[-1] else points[0]
    sides = [_picked(rows, analysis["source"], point) for point in (before, points[-1])]
    change = {
        key: np.array([sides[1][name][key] - sides[0][name][key] for name in sides[0]]) for key in ("proxy", "gold")
    }
    worst = change["proxy"] / (change["proxy"].std() or 1.0) - change["gold"] / (change["gold"].std() or 1.0)
    names = [list(sides[0])[place] for place in np.argsort(-worst, kind="stable")]
    rest = sorted(names[SHOWN_BY_RULE:], key=lambda name: derive_seed(config.seed, "shown", name))
    columns = {overoptimization.name_of(prompt.source.prompt): prompt.source for prompt in prompts}

    def answer(row: Row) -> Row:
        source = columns[overoptimization.name_of(row["prompt"])]
        liked = leave_one_out(proxy, source.prompt, row["response"], **{**source.columns, "finished": row["finished"]})
        kept = {key: row[key] for key in ("response", "finished", "proxy", "gold", "kl")}
        return kept | {"pieces": [{"text": text, "drop": drop} for text, drop in liked]}

    chosen = [(name, "rule") for name in names[:SHOWN_BY_RULE]] + [(name, "random") for name in rest[:SHOWN_AT_RANDOM]]
    return {
        "source": analysis["source"],
        "before": before,
        "after": points[-1],
        "prompts": [
            {
                "prompt": columns[name].prompt_text,
                "by": by,
                "before": answer(sides[0][name]),
                "after": answer(sides[1][name]),
            }
            for name, by in chosen
        ],
    }


def _picked(rows: Sequence[Row], source: overoptimization.Source, point: int) -> dict[str, Row]:
    """One response to each reporting prompt: the first of a checkpoint, or the best of the first n of a pool."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row["half"] == "report" and row["source"] == source and (source == "best-of-n" or row["step"] == point):
            found.setdefault(overoptimization.name_of(row["prompt"]), []).append(row)
    n = point if source == "best-of-n" else 1
    return {name: max(of_one[:n], key=lambda row: row["proxy"]) for name, of_one in found.items()}


# -- what to measure ---------------------------------------------------------------------------------------------------


def _filled_from_run(config: OveroptConfig, *, live_proxy: bool) -> OveroptConfig:
    """The config with everything that the run knows."""
    record = _record(config.run) if config.run is not None else None
    of_run = record["config"] if record is not None else {}
    values = {
        "model": config.model or of_run.get("reference") or of_run.get("model"),
        "proxy": config.proxy or of_run.get("reward"),
        "data": config.data or of_run.get("eval_data"),
        "max_new_tokens": config.max_new_tokens or of_run.get("max_new_tokens"),
        "temperature": config.temperature or of_run.get("temperature") or 1.0,
    }
    for name, value in values.items():
        if value is None and not (name == "proxy" and live_proxy):
            whence = f"{config.run} does not name one" if record is not None else "there is no --run to take it from"
            raise ConfigError(f"'{name}' is missing, and {whence}; give --{name.replace('_', '-')}")
    if config.run is None and config.best_of < 2:
        raise ConfigError("there is nothing to measure; give the --run of a policy, or --best-of 2 or more, or both")
    return config.model_copy(update=values)


def _record(run: Path) -> dict[str, Any]:
    record = read_record(run)
    if record is None:
        raise InputError(f"{run} holds no run.json; give the folder of a ppo, grpo or dpo run")
    return record


def _points(config: OveroptConfig) -> list[Point]:
    """What to sample from, the start first."""
    points = []
    if config.run is not None:
        weights = _checkpoints(config.run)
        logged = {
            row["step"]: nats
            for row in read_jsonl(config.run / "metrics.jsonl")
            if (nats := row.get("eval_kl") if row.get("eval_kl") is not None else row.get("kl")) is not None
        }
        steps = overoptimization.spaced_checkpoints(sorted(weights), logged, config.points)
        points += [Point("checkpoints", step, weights.get(step, ""), config.samples) for step in (0, *steps)]
    if config.best_of:
        points.append(Point("best-of-n", 0, "", config.best_of))
    return points


def _checkpoints(run: Path) -> dict[int, str]:
    """Folder of the weights after each step that were kept, the final ones among them."""
    kept = {int(path.name.removeprefix("step-")): str(path) for path in (run / "snapshots").glob("step-*")}
    last = _record(run)["results"].get("step")
    if last and last not in kept:
        kept[last] = str(run)
    if not kept:
        raise InputError(f"{run} holds neither snapshots nor final weights; train with --snapshot-every and let it end")
    return kept


def _read_prompts(
    config: OveroptConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[EncodedGroup]:
    """The prompts, each once, that leave room for a response."""
    assert config.data is not None and config.max_new_tokens is not None
    first = {overoptimization.name_of(group.prompt): group for group in reversed(read_usable(config.data, prompt_only))}
    groups = [Group(group.prompt, columns=group.columns) for group in reversed(first.values())]
    context = context_length(model)
    encoded, lost = encode_all(groups, tokenizer, max_length=context and context - config.max_new_tokens)
    if lost.message():
        logger.warning("%s: %s", config.data, lost.message())
    return encoded


def _done(folder: RunFolder) -> list[Row]:
    """Samples of the points that were finished; what a kill left of another is forgotten."""
    done = folder.metrics()
    points = {(row["source"], row["step"]) for row in done}
    rows = [row for row in read_jsonl(folder.path / "samples.jsonl") if (row["source"], row["step"]) in points]
    for name, kept in (("metrics.jsonl", done), ("samples.jsonl", rows)):
        write_text(folder.path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    return rows


def _one_score_a_text(pool: Sequence[Mapping[str, Any]]) -> list[float]:
    texts = tuple(Response(row["response"], finished=row["finished"]) for row in pool)
    return one_score_a_text(Group("", texts), [row["proxy"] for row in pool])
