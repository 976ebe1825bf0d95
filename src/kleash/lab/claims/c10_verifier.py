"""Claim C10, in part: GRPO without a value network learns sums from a verifier, and nothing from a random reward.

    python -m kleash.lab.claims.c10_verifier [--seeds 5] [--out runs/methods]

At each seed the demo runs (`kleash demo --seed N`), and GRPO trains its SFT model on the world's sums with the verifier
`number`; a control arm is trained in the same way with a random reward. Prints a table of means ± one standard error
over seeds; started again, it does only what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group
from kleash.lab import demo, experiment
from kleash.lab.experiment import Experiment, Figures
from kleash.lab.world import World
from kleash.lab.world.world import Split
from kleash.stages import generate, grpo

SAMPLES = 16
"""Responses to each held-out sum."""

COLUMNS = {"accuracy": "accuracy", "seconds": "seconds", "kl": "KL"}


class RandomReward:
    """1 or 0 at random, drawn again at every call: it carries no information."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        shape = (len(groups), len(groups[0].responses))
        return torch.randint(2, shape, generator=self.generator).float()


def sums(world: World, split: Split) -> list[Group]:
    """Every prompt of a split that asks for a sum, once, with its answer."""
    prompts = {group.prompt_text: group for group in world.prompts(4000, split) if group.columns["kind"] == "sum"}
    return [Group(text, columns={"answer": str(sum(world.tasks[text].numbers or ()))}) for text in sorted(prompts)]


def prepare(folder: Path, seed: int) -> None:
    """The demo, and files of sums."""
    demo.run(folder, seed=seed)
    (folder / "sums").mkdir(exist_ok=True)
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        write_groups(sums(World(seed), split), folder / "sums" / f"{split}.jsonl")


def measure(folder: Path, seed: int, reward: str | None) -> Figures:
    """Accuracy on held-out sums, and the cost of training.

    Args:
        folder: of the seed.
        seed: which.
        reward: `number` or `random`; None measures the SFT model.
    """
    if reward is None:
        return {"accuracy": accuracy(World(seed), folder / "sft", folder / "sums", "sft")}
    run = grpo.run(
        grpo.GRPOConfig(
            model=str(folder / "sft"), data=str(folder / "sums" / "train.jsonl"), reward=reward,
            out=folder / "sums" / f"grpo-{reward}", seed=seed, beta=0.05, group_size=8, batch_size=16, max_steps=80,
            max_new_tokens=40, learning_rate=1.5e-4, schedule="constant", force=True,
        ),
        reward=RandomReward(seed) if reward == "random" else None,
    )  # fmt: skip
    right = accuracy(World(seed), run.path, folder / "sums", reward)
    return {"accuracy": right, "seconds": run.record["seconds"], "kl": run.metrics()[-1]["kl"]}


def accuracy(world: World, model: Path, folder: Path, name: str) -> float:
    """Share of the responses to held-out sums, sampled at temperature 1, that are right by the world's truth."""
    config = generate.GenerateConfig(
        model=str(model), data=str(folder / "test.jsonl"), out=folder / f"{name}.jsonl", n=SAMPLES, max_new_tokens=40,
        seed=1,
    )  # fmt: skip
    return world.profile(read_groups(generate.run(config)))["sums"]


EXPERIMENT = Experiment(
    name="verifier",
    arms={"SFT": None, "GRPO, verifier": "number", "GRPO, random reward": "random"},
    prepare=prepare,
    measure=measure,
)


def main() -> None:
    """Run and print."""
    results = experiment.run_from(EXPERIMENT, experiment.parser(__doc__, out=Path("runs/methods")).parse_args())
    print(results.table(COLUMNS, first="sums"))


if __name__ == "__main__":
    main()
