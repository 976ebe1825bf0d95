"""Claim C8: a constitution specifies its labeller: removing a principle removes its effect.

    python -m kleash.lab.claims.c08_constitution [--seeds 5] [--out runs/feedback]

At each seed the best small judge compares the same pairs by each principle of the small world's constitution. The
labels are the mean over the principles, of the whole constitution and of the constitution without one of them; each set
of labels gives a reward model, and PPO against it with a KL penalty. Prints the reward of the policies by each
principle, mean ± one standard error over seeds, and what a removal changed; started again, it does only what is
missing.

A mean over n principles states each of them n times more weakly, so β is divided by n.
"""

from __future__ import annotations

from pathlib import Path

import torch

from kleash.lab import chain, experiment
from kleash.lab.chain import PreparedSeed
from kleash.lab.experiment import Experiment, Figures, Results
from kleash.lab.world.small_judge import SMALL, SmallJudge
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


def measure(folder: Path, seed: int, removed: str | None) -> Figures:
    """Figures of the policy of a constitution; those of the SFT model it started from are called `SFT NAME`.

    Args:
        folder: of the seed.
        seed: which.
        removed: name of the principle to leave out.
    """
    prepared = PreparedSeed(folder, seed)
    constitution = Constitution.load(SMALL)
    pairs = prepared.pairs("pairs")
    judge = SmallJudge.load(prepared.judges()[-1], constitution=constitution)
    by_principle = judge.by_principle(pairs)[0].double()  # [P, M]
    weights = torch.tensor(
        [principle.weight * (principle.name != removed) for principle in constitution.principles], dtype=torch.float64
    )
    p = by_principle @ (weights / weights.sum())
    arm = WHOLE if removed is None else f"without-{removed}"
    labels = chain.with_labels(pairs, p.tolist(), arm.replace("-", " ", 1))
    policy = chain.train_policy(prepared, arm, labels, beta=chain.BETA / len(constitution.principles))
    start, end = (chain.policy_figures(prepared.world, policy, step) for step in (0, chain.ROLLOUTS))
    return end | {f"SFT {name}": value for name, value in start.items()}


EXPERIMENT = Experiment(
    name="constitution",
    arms={WHOLE: None, **{f"without {name}": name for name in REMOVED}},
    prepare=chain.prepare,
    measure=measure,
)


def main() -> None:
    """Run and print."""
    results = experiment.run_from(EXPERIMENT, experiment.parser(__doc__, out=Path("runs/feedback")).parse_args())
    start = [
        {name.removeprefix("SFT "): value for name, value in row.items() if name.startswith("SFT ")}
        for row in results.arms[WHOLE]
    ]
    results = Results({"SFT": start, **results.arms})
    names = [principle.name for principle in Constitution.load(SMALL).principles]
    columns = {f"principle/{name}": name for name in names} | COLUMNS
    print(results.table(columns, first="labels by"))
    changes = Results({f"{name}, less {WHOLE}": rows for name, rows in results.less(lambda _: WHOLE).arms.items()})
    print("\n" + changes.table(columns, first="what it changed"))


if __name__ == "__main__":
    main()
