"""Claim C11: gold turns while the proxy rises. What moves the peak: β, the ensemble, and the number of comparisons.

    python -m kleash.lab.claims.c11_overoptimization [--seeds 5] [--out runs/overoptimization] [--workers 1]

At each seed there are one base and one SFT model; 1,000 or 4,000 comparisons; reward models of 1, 3 or 5 members,
combined by their mean, their worst case or averaged weights (WARM); and PPO against each at three β. Gold is measured
after every rollout, on prompts that choose the peak and on others that report it. Prints tables; started again, it does
only what is missing.

The members start from one head, so that their weights can be averaged; all combinations use the same members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group
from kleash.evals.overoptimization import KLCurve, analyse, checkpoints_curve
from kleash.evals.report_values import as_json
from kleash.io import replacing
from kleash.lab import chain, curves, experiment
from kleash.lab.experiment import Experiment, Figures, Results
from kleash.lab.world import World
from kleash.lab.world.labellers import Labellers
from kleash.lab.world.world import Split
from kleash.models.average import average_weights
from kleash.models.load import load_policy, load_reward_model
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward
from kleash.run import derive_seed
from kleash.stages import ppo, reward_ensemble, reward_model

Combination = Literal["single", "mean", "worst", "warm"]

BETAS = (0.0, 0.05, 0.2)
COMPARISONS = (1000, 4000)
MEMBERS = 5
ENSEMBLES: tuple[tuple[Combination, int], ...] = (
    ("single", 1), ("mean", 5), ("worst", 5), ("warm", 5), ("mean", 3), ("worst", 3), ("warm", 3),
)  # fmt: skip
"""How members are combined, and how many."""

PROMPTS = 96
"""Prompts that choose, and as many that report."""

ROLLOUTS = 30

COLUMNS = ("gold at its peak", "gold at the end", "KL at the peak", "KL at the end", "proxy at the end")


@dataclass(frozen=True)
class Arm:
    """One policy of the experiment."""

    comparisons: int
    combination: Combination
    members: int
    beta: float

    @property
    def name(self) -> str:
        """Its name, and a part of its folder's."""
        return f"{self.comparisons}-{self.combination}-{self.members}-beta-{self.beta:g}"


ARMS = tuple(
    Arm(comparisons, combination, members, beta)
    for combination, members in ENSEMBLES
    for beta in BETAS
    for comparisons in COMPARISONS
)


def prepare(folder: Path, seed: int) -> None:
    """Base, SFT, comparisons, prompts and reward models of a seed."""
    world, data = World(seed), folder / "data"
    splits: tuple[Split, ...] = ("choose", "test")
    rows = {
        "demonstrations": world.demonstrations(1500, seed=derive_seed(seed, "demonstrations")),
        "to_compare": world.prompts(max(COMPARISONS), "train", seed=derive_seed(seed, "comparisons")),
        "measured": world.prompts(1000, "train", seed=derive_seed(seed, "measured comparisons")),
        "prompts": world.prompts(2000, "train", seed=derive_seed(seed, "prompts")),
        "held_out": [
            Group(group.prompt, columns={**group.columns, "split": split})
            for split in splits
            for group in world.prompts(PROMPTS, split, seed=derive_seed(seed, split))
        ],
    }
    chain.prepare_models(folder, seed, rows)
    people = Labellers(world, seed=derive_seed(seed, "labellers"))
    for name, comparisons in (("to_compare", "comparisons"), ("measured", "held-out-comparisons")):
        if not (data / f"{comparisons}.jsonl").exists():
            samples = chain.sample_pairs(folder, seed, name)
            write_groups(people.label(read_groups(samples)), data / f"{comparisons}.jsonl")
    pairs = list(read_groups(data / "comparisons.jsonl"))
    for count in COMPARISONS:
        file = data / f"comparisons-{count}.jsonl"
        if not file.exists():
            write_groups(pairs[:count], file)
        reward_ensemble.run(
            reward_ensemble.EnsembleConfig(
                model=str(folder / "sft"), data=str(file), eval_data=str(data / "held-out-comparisons.jsonl"),
                out=folder / f"reward-{count}", seed=seed, members=MEMBERS, average_weights=True,
                epochs=2 if count < 2000 else 1, batch_size=32, learning_rate=1e-3, centre_samples=256,
                centre_max_new_tokens=chain.MAX_NEW_TOKENS, force=True,
            )
        )  # fmt: skip


def reward_of(folder: Path, arm: Arm) -> Reward:
    """The reward of an arm: the first of the members that were trained on its comparisons, combined."""
    tokenizer = load_policy(folder / "sft")[1]
    ensemble = folder / f"reward-{arm.comparisons}"
    paths = [ensemble / "members" / str(index) for index in range(arm.members)]
    if arm.combination == "warm":
        pairs = [load_reward_model(path) for path in paths]
        average_weights([model for model, _ in pairs])
        model, reward_tokenizer = pairs[0]
        settings = reward_model.RewardConfig(
            model=str(folder / "sft"), data="", out=folder,
            centre_data=str(ensemble / "comparisons" / "centre.jsonl"),
        )  # fmt: skip
        reward_model.centre(model, reward_model.centring_rows(reward_tokenizer, settings), settings.compute)
        return LearnedReward(model, reward_tokenizer, policy_tokenizer=tokenizer)
    members = [LearnedReward.load(path, policy_tokenizer=tokenizer) for path in paths]
    if arm.combination == "single":
        return members[0]
    return EnsembleReward(members, combine=arm.combination)


def train(folder: Path, seed: int, arm: Arm) -> Path:
    """PPO against an arm's reward, which does not see gold; returns its folder."""
    out = folder / f"ppo-{arm.name}"
    config = ppo.PPOConfig(
        model=str(folder / "sft"), data=str(folder / "data" / "prompts.jsonl"),
        eval_data=str(folder / "data" / "held_out.jsonl"), reward=str(folder / f"reward-{arm.comparisons}"), out=out,
        seed=seed, beta=arm.beta, max_steps=ROLLOUTS, batch_size=64, inner_epochs=2, minibatches=2,
        learning_rate=7e-5, value_learning_rate=5e-4, schedule="constant", max_new_tokens=chain.MAX_NEW_TOKENS,
        eval_every=1, save_every=ROLLOUTS, force=True,
    )  # fmt: skip
    ppo.run(config, reward=reward_of(folder, arm))
    return out


def curve_of(folder: Path, seed: int, arm: Arm) -> Path:
    """Train an arm and write gold, proxy and KL of its samples to `curve.npz` in its folder; returns the file."""
    file = folder / f"ppo-{arm.name}" / "curve.npz"
    if file.exists():
        return file
    world, rows = World(seed), curves.read_samples(train(folder, seed, arm))
    curve = checkpoints_curve([{**row, "gold": curves.gold(world, row)} for row in rows])
    chooses = {row["prompt"]: row["split"] == "choose" for row in rows}
    numbers = {name: getattr(curve, name).astype(np.float32) for name in ("gold", "proxy", "kl")}
    with replacing(file) as temporary, temporary.open("wb") as content:
        np.savez_compressed(
            content, points=curve.points, prompts=curve.prompts, choose=[chooses[p] for p in curve.prompts], **numbers
        )
    return file


def measure(folder: Path, seed: int, arm: Arm) -> Figures:
    """Train an arm and analyse its curve."""
    with np.load(curve_of(folder, seed, arm)) as arrays:
        numbers = {name: arrays[name].astype(np.float64) for name in ("gold", "proxy", "kl")}
        curve = KLCurve("checkpoints", tuple(arrays["points"].tolist()), tuple(arrays["prompts"].tolist()), **numbers)
        analysis = as_json(analyse(curve, choose=arrays["choose"]))
    return peak_figures(analysis) | prediction_figures(analysis)


def peak_figures(analysis: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of an arm's table."""
    points, peak = analysis["points"], analysis["peak"]
    best, end = points[peak["index"]], points[-1]
    return {
        "gold at its peak": best["gold"]["mean"],
        "gold at the end": end["gold"]["mean"],
        "KL at the peak": best["kl"]["mean"],
        "KL at the end": end["kl"]["mean"],
        "proxy at the end": end["proxy"]["mean"],
        "turned": float(analysis["peak_test"]["outcome"] == "turned"),
    }


def prediction_figures(analysis: Mapping[str, Any]) -> dict[str, float | None]:
    """How well the scaling law, fitted before the peak, predicts the peak; nothing where gold did not turn.

    The peak is that of the law fitted to all points: which point of a flat top is highest is noise.

    Returns:
        `fitted`, 1 where the law could be fitted before the peak, else 0; if it could, the relative errors `off the
        law's` and `off the measured` peak, and `gold lost` by stopping at the predicted one.
    """
    whole, early = analysis["fit"], analysis["early_fit"]
    if analysis["peak_test"]["outcome"] != "turned" or whole is None or whole["peak_distance"]["value"] is None:
        return {}
    prediction = None if early is None else early["peak_distance"]["value"]
    if prediction is None:
        return {"fitted": 0.0}
    law, peak = whole["peak_distance"]["value"], analysis["peak"]["distance"]
    return {
        "fitted": 1.0,
        "off the law's": abs(prediction - law) / law,
        "off the measured": abs(prediction - peak) / peak if peak else float("inf"),
        "gold lost": early["cost_of_following_law"]["lost"]["mean"],
    }


EXPERIMENT = Experiment(name="overoptimization", arms={arm.name: arm for arm in ARMS}, prepare=prepare, measure=measure)


def main() -> None:
    """Run and print."""
    options = experiment.parser(__doc__, out=Path("runs/overoptimization")).parse_args()
    results = experiment.run_from(EXPERIMENT, options)
    print(peak_table(results))
    print(law_table(results, range(options.first, options.first + options.seeds)))


def peak_table(results: Results) -> str:
    """Figures of each arm, mean ± standard error over seeds."""
    rows = []
    for arm in sorted(ARMS, key=lambda arm: (arm.beta, arm.comparisons)):
        seeds = results.arms[arm.name]
        means = [experiment.mean_and_error([row[name] for row in seeds], 2) for name in COLUMNS]
        turned = f"{sum(row['turned'] or 0 for row in seeds):.0f} of {len(seeds)}"
        rows.append([str(arm.comparisons), f"{arm.combination} {arm.members}", f"{arm.beta:g}", *means, turned])
    return experiment.markdown_table(["comparisons", "reward", "β", *COLUMNS, "turned"], rows)


def law_table(results: Results, seeds: Sequence[int]) -> str:
    """How well the law predicts the peak, by β; seed 0, on which the fit was developed, is shown separately."""
    rows = []
    for name, group in (("0", [seed for seed in seeds if seed == 0]), ("others", [seed for seed in seeds if seed])):
        for beta in BETAS:
            figures = [results.arms[arm.name][seeds.index(seed)] for arm in ARMS if arm.beta == beta for seed in group]
            if figures:
                rows.append([name, f"{beta:g}", *law_cells(figures)])
    header = [
        "seeds", "β", "turned", "law could be fitted before", "within 25 % of the law's peak", "… of the measured one",
        "median error", "gold lost by following it",
    ]  # fmt: skip
    return experiment.markdown_table(header, rows)


def law_cells(figures: Sequence[Figures]) -> list[str]:
    """The cells of some arms in the table of the law."""
    turned = [row for row in figures if row.get("fitted") is not None]
    fitted = [row for row in turned if row["fitted"]]
    errors = {name: [row[name] or 0.0 for row in fitted] for name in ("off the law's", "off the measured")}
    return [
        f"{len(turned)} of {len(figures)}",
        str(len(fitted)),
        *(str(sum(error <= 0.25 for error in column)) for column in errors.values()),
        f"{median(errors['off the measured']):.2f}" if fitted else "–",
        experiment.mean_and_error([row["gold lost"] for row in fitted], 2),
    ]


if __name__ == "__main__":
    main()
