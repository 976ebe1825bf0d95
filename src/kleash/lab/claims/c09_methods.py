"""The roads on the small world, over seeds: DPO against PPO at the same KL, and GRPO on sums with a checkable answer.

    python -m kleash.lab.claims.c09_methods [--seeds 5] [--out runs/roads]

For each seed the demo runs (`kleash demo --seed N`), then from its SFT model GRPO learns the world's sums from the
verifier `number`, and a control arm the same way from a random reward. Prints tables of means ± one standard error over
seeds; what is done is not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group
from kleash.evals.policy import mean_se
from kleash.lab import demo, methods
from kleash.lab.world.world import World
from kleash.stages import generate, grpo

ARMS = {"verifier": "number", "random reward": "coin"}
DPO_BETAS = (0.1, 0.4, 0.8, 1.6)
"""Besides the demo's own, so that some DPO ends nearer to the SFT model than PPO does, and some further."""

SAMPLES = 16
"""Responses to each held-out sum."""


class Coin:
    """1 or 0 by chance, drawn anew at every call: nothing in it can be learned."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        shape = (len(groups), len(groups[0].responses))
        return torch.randint(2, shape, generator=self.generator).float()


def sums(world: World, split: Any) -> list[Group]:
    """Every prompt of a split that asks for a sum, once, with its answer."""
    prompts = {group.prompt_text: group for group in world.prompts(4000, split) if group.columns["kind"] == "sum"}
    return [Group(text, columns={"answer": str(sum(world.tasks[text].numbers or ()))}) for text in sorted(prompts)]


def accuracy(world: World, model: Path, data: Path, out: Path) -> float:
    """Share of responses to held-out sums, sampled at temperature 1, that the world's truth calls right."""
    config = generate.GenerateConfig(model=str(model), data=str(data), out=out, n=SAMPLES, max_new_tokens=40, seed=1)
    return world.profile(read_groups(generate.run(config)))["sums"]


def learn_sums(seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Accuracy of the SFT model and of both arms on held-out sums, and what the arms took."""
    world, out = World(seed), folder / "sums"
    out.mkdir(exist_ok=True)
    files = {split: out / f"{split}.jsonl" for split in ("train", "test")}
    for split, file in files.items():
        write_groups(sums(world, split), file)
    found = {"SFT": {"accuracy": accuracy(world, folder / "sft", files["test"], out / "sft.jsonl")}}
    for arm, reward in ARMS.items():
        run = grpo.run(
            grpo.GRPOConfig(
                model=str(folder / "sft"), data=str(files["train"]), reward=reward, out=out / arm.replace(" ", "-"),
                seed=seed, beta=0.05, group_size=8, batch_size=16, max_steps=80, max_new_tokens=40,
                learning_rate=1.5e-4, schedule="constant", force=True,
            ),
            reward=Coin(seed) if reward == "coin" else None,
        )  # fmt: skip
        right = accuracy(world, run.path, files["test"], out / f"{arm.replace(' ', '-')}.jsonl")
        found[arm] = {"accuracy": right, "seconds": run.record["seconds"], "kl": run.metrics()[-1]["kl"]}
    return found


def at_kl(points: list[dict[str, Any]], kl: float) -> float | None:
    """Gold at a KL, straight in √KL between the points on either side of it; None beyond the last."""
    distance, gold = zip(*sorted((max(0.0, p["kl"]["mean"]) ** 0.5, p["gold"]["mean"]) for p in points), strict=True)
    found = float(np.interp(kl**0.5, distance, gold, right=np.nan))
    return None if np.isnan(found) else found


def matched(seed: int, folder: Path, summary: dict[str, Any]) -> dict[str, float]:
    """Gold of DPO less gold of PPO at PPO's KL: DPO's from its end at several β, whose KLs lie on both sides."""
    size = demo.Size()
    files = {name: folder / "data" / f"{name}.jsonl" for name in ("prompts", "held_out", "comparisons")}
    ppo = demo.ppo_config(folder, size, seed, files, "ppo", size.beta)
    way = methods.Way(World(seed), folder, ppo, files["comparisons"])
    ends = [methods.take_dpo(way, beta=beta, name=f"dpo-{beta}") for beta in DPO_BETAS] + [summary["roads"]["dpo"]]
    start, end = summary["roads"]["dpo"]["curve"][0], summary["roads"]["ppo"]
    gold = at_kl([start, *ends], end["kl"]["mean"])
    for point in ends:
        print(f"seed {seed}: DPO gold {point['gold']['mean']:.3f} at KL {point['kl']['mean']:.3f}")
    return {} if gold is None else {"dpo": gold, "ppo": end["gold"]["mean"], "gap": gold - end["gold"]["mean"]}


def pm(values: list[float]) -> str:
    """Mean ± standard error of what is there."""
    estimate = mean_se(values)
    return (
        "–" if estimate["mean"] is None else f"{estimate['mean']:.3f} ± {estimate['se'] or 0:.3f} (n = {len(values)})"
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--out", type=Path, default=Path("runs/roads"))
    parser.add_argument("--all-roads", action="store_true")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    summaries, compared, learned = [], [], []
    for seed in seeds:
        folder = options.out / f"demo-{seed}"
        summaries.append(demo.run(folder, seed=seed, all_roads=options.all_roads))
        compared.append(matched(seed, folder, summaries[-1]))
        learned.append(learn_sums(seed, folder))
        print(json.dumps({"seed": seed, "sums": learned[-1], "matched": compared[-1]}), flush=True)

    print("\n| road | gold | proxy | KL | seconds |\n|---|---|---|---|---|")
    for road in summaries[0]["roads"]:
        taken = [summary["roads"][road] for summary in summaries]
        cells = [pm([own[key]["mean"] for own in taken]) for key in ("gold", "proxy", "kl")]
        print("|", " | ".join([road, *cells, pm([own["seconds"] for own in taken])]), "|")
    print("\n| at PPO's KL: | gold |\n|---|---|")
    for name in ("ppo", "dpo", "gap"):
        print("|", " | ".join([name, pm([one[name] for one in compared if one])]), "|")
    print("\n| sums: | accuracy | seconds | KL |\n|---|---|---|---|")
    for arm in learned[0]:
        cells = [pm([one[arm][key] for one in learned if key in one[arm]]) for key in ("accuracy", "seconds", "kl")]
        print("|", " | ".join([arm, *cells]), "|")


if __name__ == "__main__":
    main()
