"""Claim C9: DPO reaches most of the gain with fewer models. The demo's methods, and DPO and PPO at equal KL.

    python -m kleash.lab.claims.c09_methods [--seeds 5] [--out runs/methods]

At each seed the demo runs (`kleash demo --seed N`), which trains the same SFT model by PPO, GRPO and DPO; then DPO at
several β, whose KLs lie on both sides of PPO's. Prints tables of means ± one standard error over seeds; started again,
it does only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kleash.lab import demo, experiment
from kleash.lab.curves import Estimates
from kleash.lab.demo import Demo
from kleash.lab.experiment import Experiment, Figures
from kleash.lab.methods import METHODS, MORE_METHODS, MethodResult, method_result, run_dpo

DPO_BETAS = (0.1, 0.4, 0.8, 1.6)
"""Besides the demo's own, so that some DPO ends nearer to the SFT model than PPO does, and some further."""

MATCHED = "matched KL"
"""The arm that compares DPO with PPO at PPO's KL."""

COLUMNS = {"gold": "gold", "proxy": "proxy", "kl": "KL", "seconds": "seconds"}
MATCHED_COLUMNS = {"dpo": "DPO, gold", "ppo": "PPO, gold", "gap": "difference"}


def prepare(folder: Path, seed: int) -> None:
    """The demo."""
    demo.run(folder, seed=seed)


def prepare_all_methods(folder: Path, seed: int) -> None:
    """The demo with all methods."""
    demo.run(folder, seed=seed, all_methods=True)


def measure(folder: Path, seed: int, name: str) -> Figures:
    """The end of a method's curve; or DPO against PPO at PPO's KL."""
    if name == MATCHED:
        return at_matched_kl(Demo(folder, seed))
    result = result_of_method(Demo(folder, seed), name)
    return {key: result[key]["mean"] for key in ("gold", "proxy", "kl")} | {"seconds": result["seconds"]}


def result_of_method(of: Demo, name: str) -> MethodResult:
    """The result of a method; only what the demo has not done yet is run."""
    return method_result(of.setup, name) if name == "ppo" else (METHODS | MORE_METHODS)[name](of.setup)


def at_matched_kl(of: Demo) -> Figures:
    """Gold of DPO and of PPO at PPO's KL, and the difference; empty where no DPO run reaches that KL.

    DPO's gold is interpolated between its ends at several β.
    """
    dpo = result_of_method(of, "dpo")
    ends: list[Estimates] = [run_dpo(of.setup, beta=beta, name=f"dpo-{beta}") for beta in DPO_BETAS]
    start, end = dpo["curve"][0], method_result(of.setup, "ppo")
    kl, ppo = end["kl"]["mean"], end["gold"]["mean"]
    assert kl is not None and ppo is not None
    gold = gold_at_kl([start, *ends, dpo], kl)
    return {} if gold is None else {"dpo": gold, "ppo": ppo, "gap": gold - ppo}


def gold_at_kl(points: Sequence[Estimates], kl: float) -> float | None:
    """Gold at a KL, interpolated linearly in √KL between the points on either side of it; None beyond the last."""
    rows = [(point["kl"]["mean"], point["gold"]["mean"]) for point in points]
    pairs = sorted((max(0.0, nats) ** 0.5, gold) for nats, gold in rows if nats is not None and gold is not None)
    distances, golds = zip(*pairs, strict=True)
    value = float(np.interp(kl**0.5, distances, golds, right=np.nan))
    return None if np.isnan(value) else value


def build_experiment(*, all_methods: bool) -> Experiment[str]:
    """PPO and the demo's methods, and the comparison of DPO with PPO."""
    names = ("ppo", *METHODS, *(MORE_METHODS if all_methods else ()), MATCHED)
    return Experiment(
        name="methods",
        arms={name: name for name in names},
        prepare=prepare_all_methods if all_methods else prepare,
        measure=measure,
    )


def main() -> None:
    """Run and print."""
    parser = experiment.parser(__doc__, out=Path("runs/methods"))
    parser.add_argument("--all-methods", action="store_true", help="best-of-n, online DPO and RLAIF too")
    options = parser.parse_args()
    results = experiment.run_from(build_experiment(all_methods=options.all_methods), options)
    print(results.select(lambda name: name != MATCHED).table(COLUMNS, first="method"))
    print("\n" + results.select(lambda name: name == MATCHED).table(MATCHED_COLUMNS, first="at PPO's KL"))


if __name__ == "__main__":
    main()
