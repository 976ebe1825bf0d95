"""The other roads of the demo: from the same SFT model, with the same comparisons or the reward model made of them.

GRPO and DPO beside PPO; best-of-n, online DPO and RLAIF on request. Each is measured as PPO is: fresh responses to the
same held-out prompts by the same streams, their k1 from the SFT model, the reward model's score, and gold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kleash.data.chat import end_ids
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Scores
from kleash.evals.best_of_n import best_of_k, kl_of_best_of_k
from kleash.evals.policy import mean_se
from kleash.feedback.constitution import Constitution
from kleash.lab.chain import labelled
from kleash.lab.curves import curve, without_choice
from kleash.lab.world import small_judge
from kleash.lab.world.world import World
from kleash.models.load import freeze, load_policy
from kleash.rewards.reward import build_reward
from kleash.run import RunFolder, derive_seed, read_jsonl, read_record
from kleash.sampling.local import LocalSampler
from kleash.stages import best_of_n, dpo, generate, grpo, ppo, reward_model, score
from kleash.stages.ppo import PPOConfig
from kleash.stages.rollouts import Actors, evaluate, read_prompts

DPO_EVALUATIONS = 6
"""Points of DPO's curve."""

POOL = (1, 2, 4, 8, 16)
"""The n of best-of-n that are drawn, all from a pool of the last."""

ROUNDS = 3
"""Rounds of online DPO, with four responses to each prompt."""


@dataclass(frozen=True)
class Way:
    """What the roads have in common: the world, where the demo lies, and PPO's settings, which they share."""

    world: World
    out: Path
    ppo: PPOConfig
    comparisons: Path
    judge_steps: int = small_judge.QUALITIES[-1]
    """Schooling of the judge of RLAIF."""


def take_grpo(way: Way) -> dict[str, Any]:
    """GRPO: four responses a prompt in place of the value network, and otherwise PPO's settings."""
    shared = ("model", "data", "eval_data", "reward", "seed", "beta", "max_steps", "schedule", "max_new_tokens")
    grpo.run(
        grpo.GRPOConfig(
            **{name: getattr(way.ppo, name) for name in shared}, out=way.out / "grpo", force=True, group_size=4,
            batch_size=way.ppo.batch_size // 4, inner_epochs=way.ppo.inner_epochs, minibatches=way.ppo.minibatches,
            learning_rate=way.ppo.learning_rate, eval_every=2 * (way.ppo.eval_every or 1),
        )
    )  # fmt: skip
    return travelled(way, "grpo")


def take_dpo(way: Way, *, beta: float | None = None, name: str = "dpo") -> dict[str, Any]:
    """DPO on the comparisons that the reward model was made of, at the same β or another."""
    pairs = len(way.comparisons.read_text().splitlines())
    run = dpo.run(
        dpo.DPOConfig(
            model=way.ppo.model, data=str(way.comparisons), out=way.out / name, seed=way.ppo.seed,
            beta=way.ppo.beta if beta is None else beta, batch_size=64, learning_rate=3e-4,
            snapshot_every=max(1, pairs // 64 // DPO_EVALUATIONS), max_eval_rows=300, kl_samples=0, force=True,
        )
    )  # fmt: skip
    snapshots = run.path.glob("snapshots/step-*")
    _measure(way, run, {int(path.name.removeprefix("step-")): path for path in sorted(snapshots)})
    return travelled(way, name)


def take_online_dpo(way: Way) -> dict[str, Any]:
    """DPO on answers of its own, the best by the reward model against the worst, in rounds on one reference.

    All rounds together have as many prompts as PPO's rollouts.
    """
    folder, model = way.out / "online-dpo", way.ppo.model
    assert way.ppo.max_steps is not None
    prompts = way.ppo.max_steps * way.ppo.batch_size // ROUNDS
    folder.mkdir(exist_ok=True)
    rounds: dict[int, RunFolder] = {}
    for number in range(1, ROUNDS + 1):
        answers = generate.run(
            generate.GenerateConfig(
                model=model, data=way.ppo.data, out=folder / f"answers-{number}.jsonl", n=4, max_rows=prompts,
                max_new_tokens=way.ppo.max_new_tokens, seed=derive_seed(way.ppo.seed, "online dpo", number),
                rows_at_once=512,
            )
        )  # fmt: skip
        scored = score.run(
            score.ScoreConfig(reward=way.ppo.reward, data=str(answers), out=folder / f"scored-{number}.jsonl")
        )
        rounds[number] = dpo.run(
            dpo.DPOConfig(
                model=model, reference=None if number == 1 else way.ppo.model, data=str(scored), beta=way.ppo.beta,
                out=folder / f"round-{number}", seed=way.ppo.seed, batch_size=64, learning_rate=2e-4, kl_samples=0,
                max_eval_rows=300, force=True,
            )
        )  # fmt: skip
        model = str(rounds[number].path)
    _measure(way, rounds[ROUNDS], {number: run.path for number, run in rounds.items()})
    return travelled(way, f"online-dpo/round-{ROUNDS}") | {
        "seconds": sum(run.record["seconds"] for run in rounds.values())
    }


def take_rlaif(way: Way) -> dict[str, Any]:
    """RLAIF: a small judge with the small world's constitution compares what people compared; the rest is PPO's way.

    A label is the mean over the principles, which says what each says so many times more quietly: the leash is as many
    times weaker. The proxy is of the judge's own reward model.
    """
    began = time.monotonic()
    folder, labels = way.out / "rlaif", way.out / "rlaif" / "labels.jsonl"
    constitution = Constitution.load(small_judge.SMALL)
    if not labels.exists():
        (taught,) = small_judge.school(
            way.world, way.out / "base", folder, seed=way.ppo.seed, qualities=(way.judge_steps,)
        )
        judge = small_judge.SmallJudge.load(taught, constitution=constitution)
        pairs = [replace(group, label=None, columns={}) for group in read_groups(way.comparisons)]
        write_groups(labelled(pairs, [verdict.probability for verdict in judge.compare(pairs)], judge.name), labels)
    learned = reward_model.run(
        reward_model.RewardConfig(
            model=way.ppo.model, data=str(labels), out=folder / "reward", seed=way.ppo.seed, batch_size=64,
            learning_rate=1e-3, centre_samples=256, centre_max_new_tokens=way.ppo.max_new_tokens, force=True,
        )
    )  # fmt: skip
    seconds = round(time.monotonic() - began, 3)
    beta = way.ppo.beta / len(constitution.principles)
    ppo.run(way.ppo.model_copy(update={"reward": str(learned.path), "out": folder / "ppo", "beta": beta}))
    road = travelled(way, "rlaif/ppo")
    return road | {"seconds": round(road["seconds"] + seconds, 3)}


def take_best_of_n(way: Way) -> dict[str, Any]:
    """The best of n responses by the reward model, on the test prompts; nothing is trained."""
    began = time.monotonic()
    folder = way.out / "best-of-n"
    folder.mkdir(exist_ok=True)
    assert way.ppo.eval_data is not None
    best_of_n.run(
        best_of_n.BestOfNConfig(
            model=way.ppo.model, data=way.ppo.eval_data, out=folder / "best.jsonl", reward=way.ppo.reward, n=POOL[-1],
            seed=way.ppo.seed, max_new_tokens=way.ppo.max_new_tokens, rows_at_once=512,
        )
    )  # fmt: skip
    pool = [group for group in read_groups(folder / "best.pool.jsonl") if group.columns["split"] == "test"]
    proxy = np.array([group.label.values for group in pool if isinstance(group.label, Scores)])
    gold = np.array([[way.world.gold(g.prompt_text, r.text, r.finished) for r in g.responses] for g in pool])
    measured = {
        "gold": best_of_k(gold, chosen_by=proxy),
        "proxy": best_of_k(proxy, chosen_by=proxy),
        "kl": kl_of_best_of_k(proxy),
    }
    points = [{"step": k, **{name: mean_se(rows[:, k - 1]) for name, rows in measured.items()}} for k in POOL]
    return {**points[-1], "curve": points, "seconds": round(time.monotonic() - began, 3)}


ROADS: dict[str, Callable[[Way], dict[str, Any]]] = {"grpo": take_grpo, "dpo": take_dpo}
"""Roads of every demo."""

MORE_ROADS: dict[str, Callable[[Way], dict[str, Any]]] = {
    "best-of-n": take_best_of_n,
    "online-dpo": take_online_dpo,
    "rlaif": take_rlaif,
}
"""Roads that are asked for."""


def travelled(way: Way, name: str) -> dict[str, Any]:
    """What a run's folder says of its road: the curve from the SFT model on, and what it took.

    Returns:
        `gold`, `proxy`, `kl` at the end, `curve`, `seconds` with the evaluations, `models` (parameters of each that was
        held at once), `peak_memory` of the process in bytes.
    """
    record = read_record(way.out / name) or {}
    start = [row for row in read_jsonl(way.out / "ppo" / "samples.jsonl") if row["step"] == 0]
    own = [row for row in read_jsonl(way.out / name / "samples.jsonl") if row["step"] > 0]
    points = without_choice(curve(way.world, [*start, *own]))
    return {
        **points[-1],
        "curve": points,
        "seconds": round(record["seconds"] + record.get("measured", {}).get("seconds", 0.0), 3),
        "models": record.get("models"),
        "peak_memory": record.get("peak_memory", {}).get("host"),
    }


def _measure(way: Way, run: RunFolder, models: Mapping[int, Path]) -> None:
    """Write what PPO's evaluation says of each model, by step, to samples.jsonl of a run, unless it is there."""
    if "measured" in run.record:
        return
    began = time.monotonic()
    (run.path / "samples.jsonl").unlink(missing_ok=True)  # of an attempt that was cut short
    reference, tokenizer = load_policy(way.ppo.model)
    held_out = read_prompts(way.ppo, reference, tokenizer)[1]
    reward = build_reward(way.ppo.reward, policy_tokenizer=tokenizer)
    for step, path in models.items():
        model = freeze(load_policy(path)[0])
        sampler = LocalSampler(model, tokenizer, max_new_tokens=way.ppo.max_new_tokens, end_ids=end_ids(tokenizer))
        evaluate(Actors(way.ppo, model, tokenizer, freeze(reference), reward, sampler), held_out, run, step)
    run.note("measured", seconds=round(time.monotonic() - began, 3))
