"""What moves the turn: leash, members, how they are combined, and comparisons, on the small world.

    python -m kleash.lab.goodhart [--seeds 5] [--out runs/goodhart]

For each seed one base and one SFT model; 1,000 or 4,000 comparisons; reward models of 1, 3 or 5 members, combined by
mean, worst case or averaged weights (WARM); and PPO against each at three β. Gold is measured every second rollout, on
prompts that choose the peak and on others that report it. Prints tables; what is done is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group
from kleash.lab import pretrain
from kleash.lab.labellers import Labellers
from kleash.lab.world import World
from kleash.models.average import average_weights
from kleash.models.load import load_policy, load_reward_model
from kleash.rewards.ensemble import EnsembleReward
from kleash.rewards.learned import LearnedReward
from kleash.rewards.reward import Reward
from kleash.run import derive_seed
from kleash.stages import generate, ppo, reward_ensemble, reward_model, sft

BETAS = (0.0, 0.05, 0.2)
COMPARISONS = (1000, 4000)
MEMBERS = 5
WAYS = (("single", 1), ("mean", 3), ("worst", 3), ("warm", 3), ("mean", 5), ("worst", 5), ("warm", 5))
"""How members are combined, and how many."""

ROLLOUTS = 48
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
    for beta in BETAS:
        for comparisons in COMPARISONS:
            for way, members in WAYS:
                yield Arm(seed, comparisons, way, members, beta)


def prepare(out: Path, seed: int) -> None:
    """Base, SFT, comparisons, prompts and reward models of a seed."""
    world = World(seed)
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    base = pretrain.run(pretrain.PretrainConfig(out=out / "base", seed=seed, tokens=1_400_000))
    rows = {
        "demonstrations": world.demonstrations(1500, seed=derive_seed(seed, "demonstrations")),
        "to_compare": world.prompts(max(COMPARISONS), "train", seed=derive_seed(seed, "comparisons")),
        "measured": world.prompts(1000, "train", seed=derive_seed(seed, "measured comparisons")),
        "prompts": world.prompts(2000, "train", seed=derive_seed(seed, "prompts")),
        "held_out": [
            Group(group.prompt, columns={**group.columns, "split": split})
            for split, count in (("choose", 96), ("test", 192))
            for group in world.prompts(count, split, seed=derive_seed(seed, split))  # type: ignore[arg-type]
        ],
    }
    for name, groups in rows.items():
        if not (data / f"{name}.jsonl").exists():
            write_groups(groups, data / f"{name}.jsonl")
    sft.run(
        sft.SFTConfig(
            model=str(base.path), data=str(data / "demonstrations.jsonl"), out=out / "sft", seed=seed, epochs=2,
            batch_size=32, learning_rate=1e-3, force=True,
        )
    )  # fmt: skip
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
        for warm in (False, True):
            reward_ensemble.run(
                reward_ensemble.EnsembleConfig(
                    model=str(out / "sft"), data=str(file), eval_data=str(data / "held-out-comparisons.jsonl"),
                    out=out / f"reward-{count}{'-warm' if warm else ''}", seed=seed, members=MEMBERS,
                    average_weights=warm, epochs=2 if count < 2000 else 1, batch_size=32, learning_rate=1e-3,
                    centre_samples=256, centre_max_new_tokens=MAX_NEW_TOKENS, force=True,
                )
            )  # fmt: skip


def reward_of(out: Path, arm: Arm) -> Reward:
    """The reward of an arm: some of the members that were trained on its comparisons."""
    tokenizer = load_policy(out / "sft")[1]
    folder = out / f"reward-{arm.comparisons}{'-warm' if arm.way == 'warm' else ''}"
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


def climb(out: Path, arm: Arm) -> None:
    """PPO against an arm's reward, gold unseen."""
    config = ppo.PPOConfig(
        model=str(out / "sft"), data=str(out / "data" / "prompts.jsonl"),
        eval_data=str(out / "data" / "held_out.jsonl"), reward=str(out / f"reward-{arm.comparisons}"),
        out=out / arm.name, seed=arm.seed, beta=arm.beta, max_steps=ROLLOUTS, batch_size=64, inner_epochs=2,
        minibatches=2, learning_rate=1e-4, value_learning_rate=5e-4, schedule="constant",
        max_new_tokens=MAX_NEW_TOKENS, eval_every=2, save_every=ROLLOUTS, force=True,
    )  # fmt: skip
    ppo.run(config, reward=reward_of(out, arm))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--out", type=Path, default=Path("runs/goodhart"))
    options = parser.parse_args()
    for seed in range(options.first, options.first + options.seeds):
        out = options.out / f"seed-{seed}"
        prepare(out, seed)
        for arm in arms(seed):
            climb(out, arm)
            print(seed, arm.name, flush=True)


if __name__ == "__main__":
    main()
