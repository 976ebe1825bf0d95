"""The demo: the whole chain on the small world, base model to report.

base → SFT → sampled pairs, labelled by simulated people → reward model → PPO with a KL penalty and without → the other
methods (GRPO, DPO) → report. The stages are the ones of the command line, on plain files; only the world, its people
and its truth are simulated. Gold is computed from what the stages wrote (`samples.jsonl`), so that no stage knows there
is a truth.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kleash.data.chat import encode_all, end_ids
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Response
from kleash.io import read_jsonl, write_json
from kleash.lab import measure, methods
from kleash.lab.labellers import Labellers
from kleash.lab.world import pretrain
from kleash.lab.world.small_world import World
from kleash.models.forward import response_logprobs
from kleash.models.load import load_policy
from kleash.objectives import kl
from kleash.report.html import write_report
from kleash.rewards.learned import LearnedReward
from kleash.run import RunFolder, derive_seed, versions
from kleash.sampling.local import LocalSampler
from kleash.sampling.sampler import decode_groups
from kleash.stages import generate, ppo, reward_model, sft


@dataclass(frozen=True)
class Size:
    """How much of everything; the default takes about five minutes on two cores."""

    base_tokens: int = 1_400_000
    demonstrations: int = 1500
    pairs: int = 6000
    validation_pairs: int = 1500
    biased_share: float = 0.3
    beta: float = 0.2
    rollouts: int = 50
    batch_size: int = 64
    eval_every: int = 5
    choose_prompts: int = 96
    test_prompts: int = 192
    max_new_tokens: int = 40
    ppo_learning_rate: float = 1e-4
    judge_steps: int = 600


def run(out: Path, *, seed: int = 0, size: Size | None = None, all_methods: bool = False) -> dict[str, Any]:
    """Run the chain, or what is left of it, and write `report.html` and `summary.json`.

    Args:
        out: folder to write to.
        seed: of the world and of every stage.
        size: how much of everything.
        all_roads: best-of-n, online DPO and RLAIF as well, which takes twice as long.

    Returns:
        The summary.
    """
    size = size or Size()
    began = time.monotonic()
    world = World(seed)
    seconds: dict[str, float] = {}

    def timed(name: str, folder: Any) -> Any:
        seconds[name] = round(time.monotonic() - began - sum(seconds.values()), 2)
        return folder

    timed("base", pretrain.run(pretrain.PretrainConfig(out=out / "base", seed=seed, tokens=size.base_tokens)))
    files = _write_prompts(world, out, size, seed)
    sft_run = timed(
        "sft",
        sft.run(
            sft.SFTConfig(
                model=str(out / "base"), data=str(files["demonstrations"]), out=out / "sft", seed=seed,
                epochs=2, batch_size=32, learning_rate=1e-3, eval_every=20,
            )
        ),
    )  # fmt: skip
    for name in ("comparisons", "validation"):
        _compare(world, out, size, seed, files, name)
    timed("comparisons", None)
    reward_run = timed("reward", _learn_reward(out, size, seed, files, "reward"))
    # Of other comparisons: PPO is watched with it and never optimises it.
    timed("validation", _learn_reward(out, size, seed, files, "validation"))
    runs = {}
    for name, beta in {"ppo": size.beta, "ppo-no-leash": 0.0}.items():
        # The arm without a KL penalty is there to fail, so no gate may stop it.
        runs[name] = timed(name, ppo.run(ppo_config(out, size, seed, files, name, beta), reward=None))
    with_penalty = ppo_config(out, size, seed, files, "ppo", size.beta)
    setup = methods.DemoSetup(world, out, with_penalty, files["comparisons"], size.judge_steps)
    taken = {
        name: timed(name, take(setup))
        for name, take in (methods.METHODS | (methods.MORE_METHODS if all_methods else {})).items()
    }
    summary = _summarise(world, out, size, seed, runs)
    timed("measuring", None)
    summary |= {
        "seed": seed,
        "beta": size.beta,
        "seconds": round(time.monotonic() - began, 1),
        "stages": seconds,
        "roads": {"ppo": methods.method_result(setup, "ppo"), **taken},
        "reward_model": reward_run.record["results"].get("report"),
        "gates": {
            run.record["stage"] if name not in runs else name: run.record["gates"].get("out")
            for name, run in {"sft": sft_run, "reward": reward_run, **runs}.items()
        },
        "versions": versions(),
    }
    write_json(out / "summary.json", summary)
    write_report(out)
    return summary


def _learn_reward(out: Path, size: Size, seed: int, files: Mapping[str, Path], name: str) -> RunFolder:
    """The reward model of the comparisons, or the one that is held out, from other comparisons and another seed."""
    held_out = name == "validation"
    return reward_model.run(
        reward_model.RewardConfig(
            model=str(out / "sft"), data=str(files["validation" if held_out else "comparisons"]), out=out / name,
            seed=derive_seed(seed, "hold-out") % 2**31 if held_out else seed, batch_size=64, learning_rate=1e-3,
            centre_samples=256, centre_max_new_tokens=size.max_new_tokens, eval_every=20, max_eval_rows=1000,
        )
    )  # fmt: skip


def ppo_config(out: Path, size: Size, seed: int, files: Mapping[str, Path], name: str, beta: float) -> ppo.PPOConfig:
    """Settings of an arm of PPO, which writes to `out/name`."""
    return ppo.PPOConfig(
        model=str(out / "sft"), data=str(files["prompts"]), eval_data=str(files["held_out"]),
        reward=str(out / "reward"), hold_out=str(out / "validation"), out=out / name,
        seed=seed, beta=beta, max_steps=size.rollouts,
        batch_size=size.batch_size, inner_epochs=2, minibatches=2, learning_rate=size.ppo_learning_rate,
        value_learning_rate=5e-4, schedule="constant", max_new_tokens=size.max_new_tokens,
        eval_every=size.eval_every, snapshot_every=size.eval_every, force=True,
    )  # fmt: skip


def _write_prompts(world: World, out: Path, size: Size, seed: int) -> dict[str, Path]:
    """The files the stages read, written once."""
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    held_out = [
        Group(group.prompt, columns={**group.columns, "split": split, "world": seed})
        for split, count in (("choose", size.choose_prompts), ("test", size.test_prompts))
        for group in world.prompts(count, split, seed=derive_seed(seed, split))  # type: ignore[arg-type]
    ]
    rows: dict[str, list[Group]] = {
        "demonstrations": world.demonstrations(size.demonstrations, seed=derive_seed(seed, "demonstrations")),
        "to_compare": world.prompts(size.pairs, "train", seed=derive_seed(seed, "comparisons")),
        "to_validate": world.prompts(size.validation_pairs, "train", seed=derive_seed(seed, "hold-out comparisons")),
        "prompts": world.prompts(2000, "train", seed=derive_seed(seed, "prompts")),
        "held_out": held_out,
    }
    files = {
        name: data / f"{name}.jsonl" for name in (*rows, "samples", "comparisons", "validation-samples", "validation")
    }
    for name, groups in rows.items():
        if not files[name].exists():
            write_groups(groups, files[name])
    return files


def _compare(world: World, out: Path, size: Size, seed: int, files: Mapping[str, Path], name: str) -> None:
    """Sample two responses a prompt from the SFT model and have the simulated people compare them."""
    if files[name].exists():
        return
    prompts, samples, purpose = {
        "comparisons": ("to_compare", "samples", "labellers"),
        "validation": ("to_validate", "validation-samples", "hold-out labellers"),
    }[name]
    generate.run(
        generate.GenerateConfig(
            model=str(out / "sft"), data=str(files[prompts]), out=files[samples], n=2, seed=seed,
            max_new_tokens=size.max_new_tokens, rows_at_once=512,
        )
    )  # fmt: skip
    people = Labellers(world, biased_share=size.biased_share, seed=derive_seed(seed, purpose))
    write_groups(people.label(read_groups(files[samples])), files[name])


def _summarise(world: World, out: Path, size: Size, seed: int, runs: Mapping[str, Any]) -> dict[str, Any]:
    curves = {name: measure.curve(world, read_jsonl(run.path / "samples.jsonl")) for name, run in runs.items()}
    held_out = list(read_groups(out / "data" / "held_out.jsonl"))
    test = [group for group in held_out if group.columns["split"] == "test"]
    base = _base_samples(out, size, seed, test)
    policies: dict[str, Any] = {"base": _policy(world, base)}
    policies["sft"] = _policy(world, _rows(runs["ppo"], step=0, split="test"))
    for name, run in runs.items():
        best = max(curves[name], key=lambda point: point["gold_choose"])
        policies[name] = _policy(world, _rows(run, step=curves[name][-1]["step"], split="test"))
        policies[name]["gold_peak"] = {"step": best["step"], "gold": best["gold"], "kl": best["kl"]}
    public = {name: measure.without_choice(curve) for name, curve in curves.items()}
    return {"policies": policies, "curves": public, "samples": _side_by_side(world, base, policies, curves, runs)}


def _policy(world: World, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    groups = [Group(row["prompt"], (Response(row["response"], finished=row["finished"]),)) for row in rows]
    sample = rows[0]
    return {
        **measure.figures(world, rows),
        "profile": world.profile(groups),
        "sample": {
            "prompt": sample["prompt"],
            "response": sample["response"],
            "gold": measure.gold(world, sample),
            "proxy": sample["score"],
        },
    }


def _rows(run: Any, *, step: int, split: str) -> list[dict[str, Any]]:
    rows = read_jsonl(run.path / "samples.jsonl")
    return [row for row in rows if row["step"] == step and row["split"] == split]


def _base_samples(out: Path, size: Size, seed: int, prompts: Iterable[Group]) -> list[dict[str, Any]]:
    """Base samples on the test prompts, with their proxy and their KL from the SFT model."""
    model, tokenizer = load_policy(out / "base")
    reference, _ = load_policy(out / "sft")
    reward = LearnedReward.load(out / "reward", policy_tokenizer=tokenizer)
    encoded = encode_all(list(prompts), tokenizer)[0]
    sampler = LocalSampler(model, tokenizer, max_new_tokens=size.max_new_tokens)
    batch = sampler([group.prompt_ids for group in encoded], group_size=1, seed=derive_seed(seed, "base samples"))
    groups = decode_groups(batch, [group.source for group in encoded], tokenizer, end_ids(tokenizer))
    with torch.no_grad():
        assert batch.sampler_logprobs is not None
        kl_per_token = kl.k1(batch.sampler_logprobs, response_logprobs(reference, batch)[0])
    nats = kl.per_sequence(kl_per_token, batch.mask)[:, 0].tolist()
    return [
        {"prompt": g.prompt, "response": g.responses[0].text, "finished": g.responses[0].finished, "score": s, "kl": n}
        for g, s, n in zip(groups, reward(groups)[:, 0].tolist(), nats, strict=True)
    ]


def _side_by_side(
    world: World,
    base: Sequence[Mapping[str, Any]],
    policies: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    runs: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Two test prompts of each kind, answered by every policy through training."""
    first = {row["prompt"]: row for row in _rows(runs["ppo"], step=0, split="test")}
    tables: dict[tuple[str, int | None], dict[str, Mapping[str, Any]]] = {
        ("base", None): {row["prompt"]: row for row in base},
        ("sft", 0): dict(first),
    }
    for name, run in runs.items():
        steps = [point["step"] for point in curves[name]]
        wanted = {steps[len(steps) // 3], policies[name]["gold_peak"]["step"], steps[-1]} - {0}
        for step in sorted(wanted):
            tables[name, step] = {row["prompt"]: row for row in _rows(run, step=step, split="test")}
    chosen: dict[str, list[str]] = {}
    for prompt, row in first.items():
        chosen.setdefault(row["kind"], [])
        if len(chosen[row["kind"]]) < 2:
            chosen[row["kind"]].append(prompt)
    return [
        {
            "prompt": prompt,
            "kind": kind,
            "answers": [
                {
                    "policy": policy,
                    "step": step,
                    "response": table[prompt]["response"],
                    "gold": measure.gold(world, table[prompt]),
                    "proxy": table[prompt]["score"],
                    "parts": world.explain(prompt, table[prompt]["response"], table[prompt]["finished"]),
                }
                for (policy, step), table in tables.items()
            ],
        }
        for kind, prompts in chosen.items()
        for prompt in prompts
    ]  # fmt: skip
