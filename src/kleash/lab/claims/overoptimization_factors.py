"""What moves the turn: KL penalty, members, how they are combined, and comparisons, on the small world.

    python -m kleash.lab.claims.overoptimization_factors [--seeds 5] [--out runs/overoptimization] [--workers 1]

For each seed one base and one SFT model; 1,000 or 4,000 comparisons; reward models of 1, 3 or 5 members, combined by
mean, worst case or averaged weights (WARM); and PPO against each at three β. Gold is measured after every rollout, on
prompts that choose the peak and on others that report it. Prints tables; what is done is not done again.

The members go from one head, so that their weights can be averaged; the same members serve every way of combining.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group
from kleash.evals.overoptimization import KLCurve, analyse, curve_of_checkpoints
from kleash.io import read_jsonl, write_json
from kleash.lab.experiment import begin
from kleash.lab.labellers import Labellers
from kleash.lab.measure import gold, pm
from kleash.lab.world.small_world import World
from kleash.models.average import average_weights
from kleash.models.load import load_policy, load_reward_model
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward
from kleash.run import derive_seed
from kleash.stages import generate, ppo, reward_ensemble, reward_model

BETAS = (0.0, 0.05, 0.2)
COMPARISONS = (1000, 4000)
MEMBERS = 5
WAYS = (("single", 1), ("mean", 5), ("worst", 5), ("warm", 5), ("mean", 3), ("worst", 3), ("warm", 3))
"""How members are combined, and how many."""

MEASURED = 96
"""Prompts drawn that choose, and as many that report."""

ROLLOUTS = 30
MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class Arm:
    """One policy of the experiment."""

    seed: int
    comparisons: int
    way: str
    members: int
    beta: float

    @property
    def name(self) -> str:
        """Its folder."""
        return f"ppo-{self.comparisons}-{self.way}-{self.members}-beta-{self.beta:g}"


def arms(seed: int) -> Iterator[Arm]:
    """All policies of a seed."""
    for way, members in WAYS:
        for beta in BETAS:
            for comparisons in COMPARISONS:
                yield Arm(seed, comparisons, way, members, beta)


def prepare(out: Path, seed: int) -> None:
    """Base, SFT, comparisons, prompts and reward models of a seed."""
    world = World(seed)
    data = out / "data"
    rows = {
        "demonstrations": world.demonstrations(1500, seed=derive_seed(seed, "demonstrations")),
        "to_compare": world.prompts(max(COMPARISONS), "train", seed=derive_seed(seed, "comparisons")),
        "measured": world.prompts(1000, "train", seed=derive_seed(seed, "measured comparisons")),
        "prompts": world.prompts(2000, "train", seed=derive_seed(seed, "prompts")),
        "held_out": [
            Group(group.prompt, columns={**group.columns, "split": split})
            for split in ("choose", "test")
            for group in world.prompts(MEASURED, split, seed=derive_seed(seed, split))
        ],
    }
    begin(out, seed, rows)
    people = Labellers(world, seed=derive_seed(seed, "labellers"))
    for name, compared in (("to_compare", "comparisons"), ("measured", "held-out-comparisons")):
        if not (data / f"{compared}.jsonl").exists():
            samples = generate.run(
                generate.GenerateConfig(
                    model=str(out / "sft"), data=str(data / f"{name}.jsonl"), out=data / f"{name}-samples.jsonl", n=2,
                    seed=derive_seed(seed, name) % 2**31, max_new_tokens=MAX_NEW_TOKENS, rows_at_once=512,
                )
            )  # fmt: skip
            write_groups(people.label(read_groups(samples)), data / f"{compared}.jsonl")
    labelled = list(read_groups(data / "comparisons.jsonl"))
    for count in COMPARISONS:
        file = data / f"comparisons-{count}.jsonl"
        if not file.exists():
            write_groups(labelled[:count], file)
        reward_ensemble.run(
            reward_ensemble.EnsembleConfig(
                model=str(out / "sft"), data=str(file), eval_data=str(data / "held-out-comparisons.jsonl"),
                out=out / f"reward-{count}", seed=seed, members=MEMBERS, average_weights=True,
                epochs=2 if count < 2000 else 1, batch_size=32, learning_rate=1e-3, centre_samples=256,
                centre_max_new_tokens=MAX_NEW_TOKENS, force=True,
            )
        )  # fmt: skip


def reward_of(out: Path, arm: Arm) -> Reward:
    """The reward of an arm: the first of the members that were trained on its comparisons, combined in its way."""
    tokenizer = load_policy(out / "sft")[1]
    folder = out / f"reward-{arm.comparisons}"
    paths = [folder / "members" / str(index) for index in range(arm.members)]
    if arm.way == "warm":
        loaded = [load_reward_model(path) for path in paths]
        average_weights([model for model, _ in loaded])
        model, own = loaded[0]
        settings = reward_model.RewardConfig(
            model=str(out / "sft"), data="", out=out, centre_data=str(folder / "comparisons" / "centre.jsonl")
        )
        reward_model.centre(model, own, [], settings)
        return LearnedReward(model, own, policy_tokenizer=tokenizer)
    members = [LearnedReward.load(path, policy_tokenizer=tokenizer) for path in paths]
    return members[0] if arm.way == "single" else EnsembleReward(members, combine=arm.way)  # type: ignore[arg-type]


def train_against(out: Path, arm: Arm) -> Path:
    """PPO against an arm's reward, gold unseen; then gold of what it wrote, as `curve.npz` in its folder."""
    file = out / arm.name / "curve.npz"
    if file.exists():
        return file
    config = ppo.PPOConfig(
        model=str(out / "sft"), data=str(out / "data" / "prompts.jsonl"),
        eval_data=str(out / "data" / "held_out.jsonl"), reward=str(out / f"reward-{arm.comparisons}"),
        out=out / arm.name, seed=arm.seed, beta=arm.beta, max_steps=ROLLOUTS, batch_size=64, inner_epochs=2,
        minibatches=2, learning_rate=7e-5, value_learning_rate=5e-4, schedule="constant",
        max_new_tokens=MAX_NEW_TOKENS, eval_every=1, save_every=ROLLOUTS, force=True,
    )  # fmt: skip
    ppo.run(config, reward=reward_of(out, arm))
    world, rows = World(arm.seed), read_jsonl(out / arm.name / "samples.jsonl")
    kl_curve = curve_of_checkpoints([{**row, "gold": gold(world, row)} for row in rows])
    choosing = {row["prompt"]: row["split"] == "choose" for row in rows}
    numbers = {name: getattr(kl_curve, name).astype(np.float32) for name in ("gold", "proxy", "kl")}
    with file.with_suffix(".tmp").open("wb") as temporary:
        np.savez_compressed(
            temporary,
            points=kl_curve.points,
            prompts=kl_curve.prompts,
            choose=[choosing[p] for p in kl_curve.prompts],
            **numbers,
        )
    file.with_suffix(".tmp").replace(file)
    return file


def analysed(file: Path) -> dict[str, Any]:
    """What `evals.overoptimization` says of an arm."""
    with np.load(file) as held:
        numbers = {name: held[name].astype(np.float64) for name in ("gold", "proxy", "kl")}
        kl_curve = KLCurve("checkpoints", tuple(held["points"].tolist()), tuple(held["prompts"].tolist()), **numbers)
        return analyse(kl_curve, choose=held["choose"])


def figures(analysis: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an arm's table."""
    points, peak = analysis["points"], analysis["peak"]
    best, end = points[peak["index"]], points[-1]
    return {
        "gold at its peak": best["gold"]["mean"],
        "gold at the end": end["gold"]["mean"],
        "KL at the peak": best["kl"]["mean"],
        "KL at the end": end["kl"]["mean"],
        "proxy at the end": end["proxy"]["mean"],
        "turned": float(analysis["peak_test"]["result"] == "turned"),
    }


def foretold(analysis: Mapping[str, Any]) -> dict[str, float] | None:
    """How well the law, fitted before the turn, says where the turn is; None where nothing turned.

    The turn is where the law fitted to all points has its peak: single points of a flat top are chosen by noise.
    """
    whole, early = analysis["fit"], analysis["early_fit"]
    if analysis["peak_test"]["result"] != "turned" or whole is None or whole["peak_distance"]["value"] is None:
        return None
    at = whole["peak_distance"]["value"]
    told = None if early is None else early["peak_distance"]["value"]
    if told is None:
        return {"fitted": 0.0}
    measured = analysis["peak"]["distance"]
    return {
        "fitted": 1.0,
        "off the law's": abs(told - at) / at,
        "off the measured": abs(told - measured) / measured if measured else math.inf,
        "gold lost": early["cost_of_following_law"]["lost"]["mean"],
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--out", type=Path, default=Path("runs/overoptimization"))
    parser.add_argument("--workers", type=int, default=1, help="policies that are trained side by side")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    folders = {seed: options.out / f"seed-{seed}" for seed in seeds}
    everyone = [arm for seed in seeds for arm in arms(seed)]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(prepare, folders.values(), seeds))
        files = list(pool.map(train_against, [folders[arm.seed] for arm in everyone], everyone))
        analyses = dict(zip(everyone, pool.map(analysed, files), strict=True))
    write_json(
        options.out / "overoptimization.json",
        [{**asdict(arm), **figures(found), "foretold": foretold(found)} for arm, found in analyses.items()],
    )
    print(table({arm: figures(found) for arm, found in analyses.items()}))
    print(law_table({arm: foretold(found) for arm, found in analyses.items()}))


def table(found: Mapping[Arm, Mapping[str, float]]) -> str:
    """Figures of each kind of arm, mean ± standard error over seeds."""
    names = list(next(iter(found.values())))
    lines = [f"| comparisons | reward | β | {' | '.join(names)} |", "|---" * (3 + len(names)) + "|"]
    kinds = dict.fromkeys((arm.comparisons, arm.way, arm.members, arm.beta) for arm in found)
    for kind in sorted(kinds, key=lambda kind: (kind[3], kind[0])):
        own = [row for arm, row in found.items() if (arm.comparisons, arm.way, arm.members, arm.beta) == kind]
        comparisons, way, members, beta = kind
        cells = [pm([row[name] for row in own], 2) for name in names[:-1]]
        cells.append(f"{sum(row['turned'] for row in own):.0f} of {len(own)}")
        lines.append(f"| {comparisons} | {way} {members} | {beta:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def law_table(found: Mapping[Arm, Mapping[str, float] | None]) -> str:
    """How well the law foretells the turn, by β, the seed that settled the fit apart."""
    lines = [
        "| seeds | β | turned | law could be fitted before | within 25 % of the law's peak | … of the measured one | "
        "median error | gold lost by following it |",
        "|---" * 8 + "|",
    ]
    for name, seeds in (("0", lambda seed: seed == 0), ("others", lambda seed: seed != 0)):
        for beta in BETAS:
            own = [row for arm, row in found.items() if seeds(arm.seed) and arm.beta == beta]
            turned = [row for row in own if row is not None]
            fitted = [row for row in turned if row["fitted"]]
            if not own:
                continue
            cells = [f"{len(turned)} of {len(own)}", str(len(fitted))]
            for key in ("off the law's", "off the measured"):
                cells.append(str(sum(row[key] <= 0.25 for row in fitted)))
            cells.append(f"{median(row['off the measured'] for row in fitted):.2f}" if fitted else "–")
            cells.append(pm([row["gold lost"] for row in fitted], 2))
            lines.append(f"| {name} | {beta:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
