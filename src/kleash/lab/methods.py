"""The methods of the demo: the same SFT model, trained with the same comparisons or the reward model made of them.

GRPO and DPO in addition to PPO; best-of-n, online DPO and RLAIF on request. Each is evaluated as PPO is: fresh
responses to the same held-out prompts from the same random streams, their k1 from the SFT model, the reward model's
score, and gold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NotRequired

import numpy as np

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Scores
from kleash.evals.best_of_n_curve import best_of_k, kl_of_best_of_k
from kleash.evals.policy_stats import mean_se
from kleash.io import read_jsonl
from kleash.lab.chain import gold_of, with_labels
from kleash.lab.curves import CurvePoint, Estimates, curve, read_samples
from kleash.lab.world import World
from kleash.lab.world.small_judge import QUALITIES, SMALL, SmallJudge, train_judges
from kleash.labels.constitution import Constitution
from kleash.rollout import build_components, evaluate, read_prompts
from kleash.run import RunFolder, derive_seed, read_record
from kleash.stages import best_of_n, dpo, generate, grpo, ppo, reward_model, score
from kleash.stages.ppo import PPOConfig

DPO_EVALUATIONS = 6
"""Points of DPO's curve."""

POOL = (1, 2, 4, 8, 16)
"""The n of best-of-n on the curve, all from one pool of the largest."""

ROUNDS = 3
"""Rounds of online DPO, with four responses to each prompt."""


@dataclass(frozen=True)
class DemoSetup:
    """What the methods share: the world, the demo's folder, and PPO's settings."""

    world: World
    out: Path
    ppo: PPOConfig
    comparisons: Path
    judge_steps: int = QUALITIES[-1]
    """Training steps of the judge of RLAIF."""


class MethodResult(Estimates):
    """The result of a method: gold, proxy and KL at its end, and its cost."""

    curve: list[CurvePoint]
    """The points from the SFT model to the end."""
    seconds: float
    """Evaluations included."""
    models: NotRequired[dict[str, int] | None]
    """Parameters of each model that was in memory at once, by name."""
    peak_memory: NotRequired[int | None]
    """Of the process, in bytes."""


def run_grpo(setup: DemoSetup) -> MethodResult:
    """GRPO: four responses a prompt in place of the value network, and otherwise PPO's settings."""
    shared = ("model", "data", "eval_data", "reward", "seed", "beta", "max_steps", "schedule", "max_new_tokens")
    grpo.run(
        grpo.GRPOConfig(
            **{name: getattr(setup.ppo, name) for name in shared}, out=setup.out / "grpo", force=True, group_size=4,
            batch_size=setup.ppo.batch_size // 4, inner_epochs=setup.ppo.inner_epochs,
            minibatches=setup.ppo.minibatches, learning_rate=setup.ppo.learning_rate,
            eval_every=2 * (setup.ppo.eval_every or 1),
        )
    )  # fmt: skip
    return method_result(setup, "grpo")


def run_dpo(setup: DemoSetup, *, beta: float | None = None, name: str = "dpo") -> MethodResult:
    """DPO on the reward model's comparisons, at PPO's β or another."""
    pairs = len(read_jsonl(setup.comparisons))
    run = dpo.run(
        dpo.DPOConfig(
            model=setup.ppo.model, data=str(setup.comparisons), out=setup.out / name, seed=setup.ppo.seed,
            beta=setup.ppo.beta if beta is None else beta, batch_size=64, learning_rate=3e-4,
            snapshot_every=max(1, pairs // 64 // DPO_EVALUATIONS), max_eval_rows=300, kl_samples=0, force=True,
        )
    )  # fmt: skip
    snapshots = run.path.glob("snapshots/step-*")
    evaluate_models(setup, run, {int(path.name.removeprefix("step-")): path for path in sorted(snapshots)})
    return method_result(setup, name)


def run_online_dpo(setup: DemoSetup) -> MethodResult:
    """DPO on the policy's own responses, the best by the reward model against the worst, in rounds with one reference.

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
        scores = score.run(
            score.ScoreConfig(reward=setup.ppo.reward, data=str(answers), out=folder / f"scored-{number}.jsonl")
        )
        rounds[number] = dpo.run(
            dpo.DPOConfig(
                model=model, reference=None if number == 1 else setup.ppo.model, data=str(scores),
                beta=setup.ppo.beta, out=folder / f"round-{number}", seed=setup.ppo.seed, batch_size=64,
                learning_rate=2e-4, kl_samples=0, max_eval_rows=300, force=True,
            )
        )  # fmt: skip
        model = str(rounds[number].path)
    evaluate_models(setup, rounds[ROUNDS], {number: run.path for number, run in rounds.items()})
    result = method_result(setup, f"online-dpo/round-{ROUNDS}")
    return {**result, "seconds": sum(run.record["seconds"] for run in rounds.values())}


def run_rlaif(setup: DemoSetup) -> MethodResult:
    """RLAIF: a small judge with the small world's constitution labels the pairs that people labelled; then PPO.

    A label is the mean over n principles, which states each of them n times more weakly, so β is divided by n. The
    proxy is the reward model that is trained on the judge's labels.
    """
    start = time.monotonic()
    folder, labels = setup.out / "rlaif", setup.out / "rlaif" / "labels.jsonl"
    constitution = Constitution.load(SMALL)
    if not labels.exists():
        (trained,) = train_judges(
            setup.world, setup.out / "base", folder, seed=setup.ppo.seed, qualities=(setup.judge_steps,)
        )
        judge = SmallJudge.load(trained, constitution=constitution)
        pairs = [replace(group, label=None, columns={}) for group in read_groups(setup.comparisons)]
        write_groups(with_labels(pairs, [label.probability for label in judge.compare(pairs)], judge.name), labels)
    reward = reward_model.run(
        reward_model.RewardConfig(
            model=setup.ppo.model, data=str(labels), out=folder / "reward", seed=setup.ppo.seed, batch_size=64,
            learning_rate=1e-3, centre_samples=256, centre_max_new_tokens=setup.ppo.max_new_tokens, force=True,
        )
    )  # fmt: skip
    seconds = round(time.monotonic() - start, 3)
    beta = setup.ppo.beta / len(constitution.principles)
    ppo.run(setup.ppo.model_copy(update={"reward": str(reward.path), "out": folder / "ppo", "beta": beta}))
    result = method_result(setup, "rlaif/ppo")
    return {**result, "seconds": round(result["seconds"] + seconds, 3)}


def run_best_of_n(setup: DemoSetup) -> MethodResult:
    """The best of n responses by the reward model, on the test prompts; nothing is trained."""
    start = time.monotonic()
    folder = setup.out / "best-of-n"
    folder.mkdir(exist_ok=True)
    assert setup.ppo.eval_data is not None
    best_of_n.run(
        best_of_n.BestOfNConfig(
            model=setup.ppo.model, data=setup.ppo.eval_data, out=folder / "best.jsonl", reward=setup.ppo.reward,
            n=POOL[-1], seed=setup.ppo.seed, max_new_tokens=setup.ppo.max_new_tokens, rows_at_once=512,
        )
    )  # fmt: skip
    pool = [group for group in read_groups(folder / "best.pool.jsonl") if group.columns["split"] == "test"]
    scores = np.array([group.label.values for group in pool if isinstance(group.label, Scores)])
    gold = best_of_k(gold_of(setup.world, pool), chosen_by=scores)
    proxy, kl = best_of_k(scores, chosen_by=scores), kl_of_best_of_k(scores)
    points: list[CurvePoint] = [
        {"step": k, "gold": mean_se(gold[:, k - 1]), "proxy": mean_se(proxy[:, k - 1]), "kl": mean_se(kl[:, k - 1])}
        for k in POOL
    ]
    return result_of(points, seconds=round(time.monotonic() - start, 3))


Method = Callable[[DemoSetup], MethodResult]

METHODS: dict[str, Method] = {"grpo": run_grpo, "dpo": run_dpo}
"""Methods of every demo."""

MORE_METHODS: dict[str, Method] = {"best-of-n": run_best_of_n, "online-dpo": run_online_dpo, "rlaif": run_rlaif}
"""Methods of a demo with --all-methods."""


def method_result(setup: DemoSetup, name: str) -> MethodResult:
    """The result of the method whose run is in folder `name`; its curve starts with PPO's samples of the SFT model."""
    record = read_record(setup.out / name) or {}
    start = [row for row in read_samples(setup.out / "ppo") if row["step"] == 0]
    later = [row for row in read_samples(setup.out / name) if row["step"] > 0]
    seconds = round(record["seconds"] + record.get("measured", {}).get("seconds", 0.0), 3)
    result = result_of(curve(setup.world, [*start, *later]), seconds=seconds)
    return {**result, "models": record.get("models"), "peak_memory": record.get("peak_memory", {}).get("host")}


def result_of(points: list[CurvePoint], *, seconds: float) -> MethodResult:
    """The result of a curve: the figures of its last point, the curve, and the seconds it took."""
    return {**points[-1], "curve": points, "seconds": seconds}  # type: ignore[typeddict-item]


def evaluate_models(setup: DemoSetup, run: RunFolder, models: Mapping[int, Path]) -> None:
    """Evaluate models of a run as PPO evaluates its own, and write its samples.jsonl, unless that is done.

    Args:
        setup: its PPO settings say on which prompts and with which reward.
        run: the run.
        models: the folder of each model, by the step it counts as.
    """
    if "measured" in run.record:
        return
    start = time.monotonic()
    (run.path / "samples.jsonl").unlink(missing_ok=True)  # of an attempt that was interrupted
    settings = setup.ppo
    for step, path in models.items():
        parts = build_components(
            str(path), settings.reward, reference=settings.model, max_new_tokens=settings.max_new_tokens,
            temperature=1.0, compute=settings.compute,
        )  # fmt: skip
        _, held_out = read_prompts(parts, **settings.prompt_settings())
        evaluate(parts, held_out, run, step, seed=settings.seed)
    run.note("measured", seconds=round(time.monotonic() - start, 3))
