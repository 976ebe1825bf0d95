"""Claim C7: RLAIF inherits its labeller. Final gold against the labeller's accuracy, on the small world.

    python -m kleash.lab.claims.c07_labeller [--seeds 5] [--out runs/feedback] [--figure labeller.svg]

At each seed the same pairs of SFT samples are labelled by five judges of graded quality, by the simulated people (one
person for each pair, and all of them) and by gold; each set of labels gives a reward model, and PPO against it with the
same KL penalty. Prints a table, mean ± one standard error over seeds; started again, it does only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy import stats

from kleash.lab import chain, experiment
from kleash.lab.chain import PreparedSeed
from kleash.lab.experiment import Experiment, Figures, Results
from kleash.lab.world import small_judge
from kleash.lab.world.labellers import Labellers, People
from kleash.lab.world.small_judge import SmallJudge
from kleash.labels.labeller import Labeller
from kleash.labels.reward_labeller import RewardLabeller
from kleash.run import derive_seed

JUDGES = tuple(f"judge-{steps}" for steps in small_judge.QUALITIES)

COLUMNS = {
    "accuracy": "labeller's accuracy",
    "sure": "mean \\|P − ½\\|",
    "first": "advantage of the first",
    "order": "effect of the order",
    "reward accuracy": "reward model's accuracy",
    "gold": "final gold",
    "gain": "gold above SFT",
    "proxy": "proxy",
    "kl": "KL",
}


def labeller_of(prepared: PreparedSeed, name: str) -> Labeller:
    """The labeller of an arm: a judge, `people`, `everyone` or `gold`."""
    if name in JUDGES:
        return SmallJudge.load(prepared.judges()[JUDGES.index(name)])
    if name == "gold":
        return RewardLabeller(chain.GoldReward(prepared.world), temperature=small_judge.TEMPERATURE, name="gold")
    pool = Labellers(prepared.world, seed=derive_seed(prepared.seed, "labellers"))
    return People(pool, everyone=name == "everyone")


def measure(folder: Path, seed: int, name: str) -> Figures:
    """Figures of one labeller, and of the policy that its labels lead to."""
    prepared = PreparedSeed(folder, seed)
    world, pairs, evaluation = prepared.world, prepared.pairs("pairs"), prepared.pairs("measured")
    labeller = labeller_of(prepared, name)
    quality = chain.labeller_figures(world, evaluation, labeller.compare(evaluation))
    labels = chain.with_labels(pairs, [label.probability for label in labeller.compare(pairs)], name)
    policy = chain.train_policy(prepared, name, labels)
    start, end = (chain.policy_figures(world, policy, step) for step in (0, chain.ROLLOUTS))
    accuracy = chain.reward_accuracy(prepared, name)
    return {**quality, **end, "reward accuracy": accuracy, "gain": end["gold"] - start["gold"]}


EXPERIMENT = Experiment(
    name="labeller",
    arms={name: name for name in (*JUDGES, "people", "everyone", "gold")},
    prepare=chain.prepare,
    measure=measure,
)


def column(rows: Sequence[Figures], name: str) -> Float[np.ndarray, " N"]:
    """One figure of several rows, all of which have it."""
    return np.array([row[name] for row in rows], dtype=np.float64)


def rank_correlations(results: Results) -> list[float]:
    """At each seed: the rank correlation of final gold with the labeller's accuracy, over the labellers."""
    seeds = zip(*results.arms.values(), strict=True)
    return [float(stats.spearmanr(column(rows, "accuracy"), column(rows, "gold"))[0]) for rows in seeds]


def draw(results: Results, file: Path) -> None:
    """Final gold against accuracy: a point for each labeller and seed, and the means with their standard errors."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, rows in results.arms.items():
        accuracy, gold = column(rows, "accuracy"), column(rows, "gold")
        (points,) = axes.plot(accuracy, gold, "o", markersize=3, alpha=0.5)
        errors = [values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0 for values in (accuracy, gold)]
        axes.errorbar(accuracy.mean(), gold.mean(), errors[1], errors[0], "s", color=points.get_color(), capsize=3)
        axes.annotate(name, (accuracy.mean(), gold.mean()), (6, -12), textcoords="offset points", fontsize=8)
    start = fmean(float((column(rows, "gold") - column(rows, "gain")).mean()) for rows in results.arms.values())
    axes.axhline(start, ls=":", color="grey")
    axes.set_xlabel("accuracy of the labeller against gold (dotted: SFT)")
    axes.set_ylabel("gold after PPO on its labels")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Run and print."""
    parser = experiment.parser(__doc__, out=Path("runs/feedback"))
    parser.add_argument("--figure", type=Path, help="draw final gold against accuracy in this file")
    options = parser.parse_args()
    results = experiment.run_from(EXPERIMENT, options)
    print(results.table(COLUMNS, first="labeller"))
    only_judges = results.select(JUDGES.__contains__)
    over_judges, over_all = (experiment.mean_and_error(rank_correlations(part)) for part in (only_judges, results))
    print(f"\nRank correlation of final gold with accuracy: {over_judges} over the judges, {over_all} over all.")
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
