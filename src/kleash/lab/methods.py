"""The other methods of the demo: from the same SFT model, with the same comparisons or the reward model made of them.

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

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Scores
from kleash.evals.best_of_n_curve import best_of_k, kl_of_best_of_k
from kleash.evals.policy_stats import mean_se
from kleash.io import read_jsonl
from kleash.lab import judges
from kleash.lab.experiment import labelled
from kleash.lab.measure import curve, without_choice
from kleash.lab.world.small_world import World
from kleash.labels.constitution import Constitution
from kleash.rollout import build_components, evaluate, read_prompts
from kleash.run import RunFolder, derive_seed, read_record
from kleash.stages import best_of_n, dpo, generate, grpo, ppo, reward_model, score
from kleash.stages.ppo import PPOConfig

DPO_EVALUATIONS = 6
"""Points of DPO's curve."""

POOL = (1, 2, 4, 8, 16)
"""The n of best-of-n that are drawn, all from a pool of the last."""

ROUNDS = 3
"""Rounds of online DPO, with four responses to each prompt."""


@dataclass(frozen=True)
class DemoSetup:
    """What the methods share: the world, where the demo lies, and PPO's settings, which they share."""

    world: World
    out: Path
    ppo: PPOConfig
    comparisons: Path
    judge_steps: int = judges.QUALITIES[-1]
    """Training of the judge of RLAIF."""


def take_grpo(setup: DemoSetup) -> dict[str, Any]:
    """GRPO: four responses a prompt in place of the value network, and otherwise PPO's settings."""
    shared = ("model", "data", "eval_data", "reward", "seed", "beta", "max_steps", "schedule", "max_new_tokens")
    grpo.run(
        grpo.GRPOConfig(
            **{name: getattr(setup.ppo, name) for name in shared}, out=setup.out / "grpo", force=True, group_size=4,
            batch_size=setup.ppo.batch_size // 4, inner_epochs=setup.ppo.inner_epochs,
            minibatches=setup.ppo.minibatches,
            learning_rate=setup.ppo.learning_rate, eval_every=2 * (setup.ppo.eval_every or 1),
        )
    )  # fmt: skip
    return method_result(setup, "grpo")


def take_dpo(setup: DemoSetup, *, beta: float | None = None, name: str = "dpo") -> dict[str, Any]:
    """DPO on the comparisons that the reward model was made of, at the same β or another."""
    pairs = len(setup.comparisons.read_text().splitlines())
    run = dpo.run(
        dpo.DPOConfig(
            model=setup.ppo.model, data=str(setup.comparisons), out=setup.out / name, seed=setup.ppo.seed,
            beta=setup.ppo.beta if beta is None else beta, batch_size=64, learning_rate=3e-4,
            snapshot_every=max(1, pairs // 64 // DPO_EVALUATIONS), max_eval_rows=300, kl_samples=0, force=True,
        )
    )  # fmt: skip
    snapshots = run.path.glob("snapshots/step-*")
    _measure(setup, run, {int(path.name.removeprefix("step-")): path for path in sorted(snapshots)})
    return method_result(setup, name)


def take_online_dpo(setup: DemoSetup) -> dict[str, Any]:
    """DPO on answers of its own, the best by the reward model against the worst, in rounds on one reference.

    All rounds together have as many prompts as PPO's rollouts.
    """
    folder, model = setup.out / "online-dpo", setup.ppo.model
    assert setup.ppo.max_steps is not None
    prompts = setup.ppo.max_steps * setup.ppo.batch_size // ROUNDS
    folder.mkdir(exist_ok=True)
    rounds: dict[int, RunFolder] = {}
    for number in range(1, ROUNDS + 1):
        answers = generate.run(
            generate.GenerateConfig(
                model=model, data=setup.ppo.data, out=folder / f"answers-{number}.jsonl", n=4, max_rows=prompts,
                max_new_tokens=setup.ppo.max_new_tokens, seed=derive_seed(setup.ppo.seed, "online dpo", number),
                rows_at_once=512,
            )
        )  # fmt: skip
        scored = score.run(
            score.ScoreConfig(reward=setup.ppo.reward, data=str(answers), out=folder / f"scored-{number}.jsonl")
        )
        rounds[number] = dpo.run(
            dpo.DPOConfig(
                model=model, reference=None if number == 1 else setup.ppo.model, data=str(scored), beta=setup.ppo.beta,
                out=folder / f"round-{number}", seed=setup.ppo.seed, batch_size=64, learning_rate=2e-4, kl_samples=0,
                max_eval_rows=300, force=True,
            )
        )  # fmt: skip
        model = str(rounds[number].path)
    _measure(setup, rounds[ROUNDS], {number: run.path for number, run in rounds.items()})
    return method_result(setup, f"online-dpo/round-{ROUNDS}") | {
        "seconds": sum(run.record["seconds"] for run in rounds.values())
    }


def take_rlaif(setup: DemoSetup) -> dict[str, Any]:
    """RLAIF: a small judge with the small world's constitution compares what people compared; the rest is PPO's way.

    A label is the mean over the principles, which says what each says so many times more quietly: the KL penalty is as
    many times weaker. The proxy is of the judge's own reward model.
    """
    began = time.monotonic()
    folder, labels = setup.out / "rlaif", setup.out / "rlaif" / "labels.jsonl"
    constitution = Constitution.load(judges.SMALL)
    if not labels.exists():
        (trained,) = judges.train_judges(
            setup.world, setup.out / "base", folder, seed=setup.ppo.seed, qualities=(setup.judge_steps,)
        )
        judge = judges.SmallJudge.load(trained, constitution=constitution)
        pairs = [replace(group, label=None, columns={}) for group in read_groups(setup.comparisons)]
        write_groups(labelled(pairs, [verdict.probability for verdict in judge.compare(pairs)], judge.name), labels)
    learned = reward_model.run(
        reward_model.RewardConfig(
            model=setup.ppo.model, data=str(labels), out=folder / "reward", seed=setup.ppo.seed, batch_size=64,
            learning_rate=1e-3, centre_samples=256, centre_max_new_tokens=setup.ppo.max_new_tokens, force=True,
        )
    )  # fmt: skip
    seconds = round(time.monotonic() - began, 3)
    beta = setup.ppo.beta / len(constitution.principles)
    ppo.run(setup.ppo.model_copy(update={"reward": str(learned.path), "out": folder / "ppo", "beta": beta}))
    method = method_result(setup, "rlaif/ppo")
    return method | {"seconds": round(method["seconds"] + seconds, 3)}


def take_best_of_n(setup: DemoSetup) -> dict[str, Any]:
    """The best of n responses by the reward model, on the test prompts; nothing is trained."""
    began = time.monotonic()
    folder = setup.out / "best-of-n"
    folder.mkdir(exist_ok=True)
    assert setup.ppo.eval_data is not None
    best_of_n.run(
        best_of_n.BestOfNConfig(
            model=setup.ppo.model, data=setup.ppo.eval_data, out=folder / "best.jsonl", reward=setup.ppo.reward,
            n=POOL[-1],
            seed=setup.ppo.seed, max_new_tokens=setup.ppo.max_new_tokens, rows_at_once=512,
        )
    )  # fmt: skip
    pool = [group for group in read_groups(folder / "best.pool.jsonl") if group.columns["split"] == "test"]
    proxy = np.array([group.label.values for group in pool if isinstance(group.label, Scores)])
    gold = np.array([[setup.world.gold(g.prompt_text, r.text, r.finished) for r in g.responses] for g in pool])
    measured = {
        "gold": best_of_k(gold, chosen_by=proxy),
        "proxy": best_of_k(proxy, chosen_by=proxy),
        "kl": kl_of_best_of_k(proxy),
    }
    points = [{"step": k, **{name: mean_se(rows[:, k - 1]) for name, rows in measured.items()}} for k in POOL]
    return {**points[-1], "curve": points, "seconds": round(time.monotonic() - began, 3)}


METHODS: dict[str, Callable[[DemoSetup], dict[str, Any]]] = {"grpo": take_grpo, "dpo": take_dpo}
"""Methods of every demo."""

MORE_METHODS: dict[str, Callable[[DemoSetup], dict[str, Any]]] = {
    "best-of-n": take_best_of_n,
    "online-dpo": take_online_dpo,
    "rlaif": take_rlaif,
}
"""Methods that are asked for."""


def method_result(setup: DemoSetup, name: str) -> dict[str, Any]:
    """What a run's folder says of its method: the curve from the SFT model on, and what it took.

    Returns:
        `gold`, `proxy`, `kl` at the end, `curve`, `seconds` with the evaluations, `models` (parameters of each that was
        held at once), `peak_memory` of the process in bytes.
    """
    record = read_record(setup.out / name) or {}
    start = [row for row in read_jsonl(setup.out / "ppo" / "samples.jsonl") if row["step"] == 0]
    own = [row for row in read_jsonl(setup.out / name / "samples.jsonl") if row["step"] > 0]
    points = without_choice(curve(setup.world, [*start, *own]))
    return {
        **points[-1],
        "curve": points,
        "seconds": round(record["seconds"] + record.get("measured", {}).get("seconds", 0.0), 3),
        "models": record.get("models"),
        "peak_memory": record.get("peak_memory", {}).get("host"),
    }


def _measure(setup: DemoSetup, run: RunFolder, models: Mapping[int, Path]) -> None:
    """Write what PPO's evaluation says of each model, by step, to samples.jsonl of a run, unless it is there."""
    if "measured" in run.record:
        return
    began = time.monotonic()
    (run.path / "samples.jsonl").unlink(missing_ok=True)  # of an attempt that was cut short
    ppo = setup.ppo
    for step, path in models.items():
        parts = build_components(
            str(path), ppo.reward, reference=ppo.model, max_new_tokens=ppo.max_new_tokens, temperature=1.0,
            compute=ppo.compute,
        )  # fmt: skip
        _, held_out = read_prompts(parts, ppo.data, ppo.eval_data, **ppo.prompt_settings())
        evaluate(parts, held_out, run, step, seed=ppo.seed)
    run.note("measured", seconds=round(time.monotonic() - began, 3))
