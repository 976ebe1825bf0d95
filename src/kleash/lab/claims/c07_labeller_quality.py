"""RLAIF inherits its labeller (claim C7): final gold against the accuracy of who labelled, on the small world.

    python -m kleash.lab.claims.c07_labeller_quality [--seeds 5] [--out runs/feedback] [--figure rlaif.svg]

For each seed the same pairs of SFT samples are labelled by five judges of graded quality, by the simulated people (one
of them a pair, and the opinion of all) and by gold itself; from each set of labels a reward model, and PPO on the same
KL penalty. Prints a table, mean ± one standard error over seeds; what is done is not done again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from kleash.io import write_json
from kleash.lab import experiment, judges
from kleash.lab.experiment import Bench
from kleash.lab.labellers import Labellers, People
from kleash.lab.measure import pm
from kleash.labels.labeller import Labeller
from kleash.labels.reward_labeller import RewardLabeller
from kleash.run import derive_seed

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


def labellers(prepared: Bench) -> dict[str, Labeller]:
    """Who labels, worst judge first."""
    world = prepared.world
    found: dict[str, Labeller] = {folder.name: judges.SmallJudge.load(folder) for folder in prepared.judges()}
    pool = Labellers(world, seed=derive_seed(prepared.seed, "labellers"))
    found |= {"people": People(pool), "everyone": People(pool, everyone=True)}
    found["gold"] = RewardLabeller(experiment.Gold(world), temperature=judges.TEMPERATURE, name="gold")
    return found


def measure(out: Path, seed: int) -> dict[str, dict[str, float]]:
    """Figures of each labeller of a seed, and of what its labels led to."""
    prepared = experiment.prepare(out, seed)
    return {
        name: experiment.once(out / f"labeller-{name}.json", partial(follow, prepared, name, labeller))
        for name, labeller in labellers(prepared).items()
    }


def follow(prepared: Bench, name: str, labeller: Labeller) -> dict[str, float]:
    """One labeller, from its verdicts to the policy."""
    world, pairs, measured = prepared.world, prepared.pairs("pairs"), prepared.pairs("measured")
    told = experiment.labeller_figures(world, measured, labeller.compare(measured))
    labels = experiment.labelled(pairs, [verdict.probability for verdict in labeller.compare(pairs)], name)
    folder = experiment.train_policy(prepared, name, labels)
    start, end = (experiment.policy_figures(world, folder, step) for step in (0, experiment.ROLLOUTS))
    reached = {"reward accuracy": experiment.reward_accuracy(prepared, name), "gain": end["gold"] - start["gold"]}
    return {**told, **end, **reached}


def slopes(found: Sequence[Mapping[str, Mapping[str, float]]]) -> list[float]:
    """Of each seed: rank correlation of final gold with the labeller's accuracy, over its labellers."""
    return [
        float(stats.spearmanr([own["accuracy"] for own in seed.values()], [own["gold"] for own in seed.values()])[0])
        for seed in found
    ]


def draw(found: Sequence[Mapping[str, Mapping[str, float]]], file: Path) -> None:
    """Final gold against accuracy: a point for each labeller and seed, and the means with their standard errors."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in found[0]:
        accuracy, gold = (np.array([seed[name][key] for seed in found]) for key in ("accuracy", "gold"))
        (points,) = axes.plot(accuracy, gold, "o", markersize=3, alpha=0.5)
        errors = [values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0 for values in (accuracy, gold)]
        axes.errorbar(accuracy.mean(), gold.mean(), errors[1], errors[0], "s", color=points.get_color(), capsize=3)
        axes.annotate(name, (accuracy.mean(), gold.mean()), (6, -12), textcoords="offset points", fontsize=8)
    start = fmean(own["gold"] - own["gain"] for seed in found for own in seed.values())
    axes.axhline(start, ls=":", color="grey")
    axes.set_xlabel("accuracy of the labeller against gold (dotted: SFT)")
    axes.set_ylabel("gold after PPO on its labels")
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    """Run and print."""
    parser = experiment.parser(__doc__)
    parser.add_argument("--figure", type=Path, help="draw final gold against accuracy here")
    options = parser.parse_args()
    found = experiment.over_seeds(measure, options)
    write_json(options.out / "rlaif.json", found)
    print(experiment.table({name: [seed[name] for seed in found] for name in found[0]}, COLUMNS, first="labeller"))
    of_judges = [{name: own for name, own in seed.items() if name.startswith("judge")} for seed in found]
    print(
        f"\nRank correlation of final gold with accuracy: {pm(slopes(of_judges))} over the judges, "
        f"{pm(slopes(found))} over all."
    )
    if options.figure:
        draw(found, options.figure)


if __name__ == "__main__":
    main()
