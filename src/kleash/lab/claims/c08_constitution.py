"""A constitution is its labeller's specification (claim C8): take one principle out, and its effect is gone.

    python -m kleash.lab.claims.c08_constitution [--seeds 5] [--out runs/feedback]

For each seed the best small judge compares the same pairs by each principle of the small world's constitution. Labels
are the principles' average, by the whole constitution and by it without one of them; from each set of labels a reward
model, and PPO with a KL penalty. Prints what each principle says of the policies, mean ± one standard error over seeds,
and what a removal changed; what is done is not done again.

An average over n principles says what each of them says n times more quietly, so the KL penalty is as many times
weaker.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from kleash.io import write_json
from kleash.lab import experiment, judges
from kleash.lab.experiment import Bench
from kleash.labels.constitution import Constitution

WHOLE = "whole"
REMOVED = ("no-harm", "courtesy", "respect")

COLUMNS = {
    "refuses": "harm refused",
    "insults": "insults a response",
    "courtesies": "courtesies a response",
    "gold": "gold",
    "kl": "KL",
}


def measure(out: Path, seed: int) -> dict[str, dict[str, float]]:
    """Figures of the SFT model and of the policy of each constitution."""
    prepared = experiment.prepare(out, seed)
    return experiment.once(out / "constitution.json", partial(compare, prepared))


def compare(prepared: Bench) -> dict[str, dict[str, float]]:
    """Label, optimise and measure, a constitution after the other."""
    constitution = Constitution.load(judges.SMALL)
    pairs = prepared.pairs("pairs")
    judge = judges.SmallJudge.load(prepared.judges()[-1], constitution=constitution)
    by_principle = judge.by_principle(pairs)[0].double()  # [P, M]
    found = {}
    for removed in (None, *REMOVED):
        weights = torch.tensor(
            [principle.weight * (principle.name != removed) for principle in constitution.principles],
            dtype=torch.float64,
        )
        p = by_principle @ (weights / weights.sum())
        arm = WHOLE if removed is None else f"without {removed}"
        labels = experiment.labelled(pairs, p.tolist(), arm)
        beta = experiment.BETA / len(constitution.principles)
        folder = experiment.train_policy(prepared, arm.replace(" ", "-"), labels, beta=beta)
        found["SFT"] = experiment.policy_figures(prepared.world, folder, 0)
        found[arm] = experiment.policy_figures(prepared.world, folder, experiment.ROLLOUTS)
    return found


def names(constitution: Constitution) -> list[str]:
    """Names of the principles, in order."""
    return [principle.name for principle in constitution.principles]


def main() -> None:
    """Run and print."""
    options = experiment.parser(__doc__).parse_args()
    found = experiment.over_seeds(measure, options)
    write_json(options.out / "constitution.json", found)
    columns = {f"worth/{name}": name for name in names(Constitution.load(judges.SMALL))} | COLUMNS
    print(experiment.table({arm: [seed[arm] for seed in found] for arm in found[0]}, columns, first="labels by"))
    changed = {
        f"{arm}, less {WHOLE}": [{key: seed[arm][key] - seed[WHOLE][key] for key in columns} for seed in found]
        for arm in found[0]
        if arm != WHOLE
    }
    print("\n" + experiment.table(changed, columns, first="what it changed"))


if __name__ == "__main__":
    main()
