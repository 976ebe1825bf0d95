"""The chain that experiments share: a prepared seed, and the steps from labels to a measured policy.

A prepared seed has a base and an SFT model, pairs of the SFT model's responses to label, other pairs to evaluate on,
prompts, and small judges. From labels of the pairs come a reward model and a policy, trained by PPO with a KL penalty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, chosen_first
from kleash.lab import curves
from kleash.lab.world import World, pretrain, small_judge
from kleash.labels.labeller import LabelResult
from kleash.rewards.learned import LearnedReward
from kleash.run import derive_seed
from kleash.stages import generate, ppo, reward_model, sft

PAIRS = 1600
"""Pairs to label, each of two samples of the SFT model."""

EVALUATION_PAIRS = 600
"""Pairs of other samples, on which labellers and reward models are compared with gold."""

TEST_PROMPTS = 256
ROLLOUTS = 20
BETA = 0.2
MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class PreparedSeed:
    """The folder of a seed, prepared."""

    folder: Path
    seed: int

    @property
    def world(self) -> World:
        """Its world."""
        return World(self.seed)

    def pairs(self, name: str) -> list[Group]:
        """The pairs to label (`pairs`) or to evaluate on (`measured`), without those with an empty response."""
        groups = read_groups(self.folder / "data" / f"{name}-samples.jsonl")
        return [group for group in groups if all(response.text for response in group.responses)]

    def judges(self) -> list[Path]:
        """The folders of the judges, worst first; they are trained if they do not exist."""
        folder = self.folder / "judges"
        return small_judge.train_judges(self.world, self.folder / "base", folder, seed=self.seed)


def prepare_models(folder: Path, seed: int, rows: Mapping[str, Sequence[Group]]) -> None:
    """Write a seed's data files and train its base and SFT model.

    Args:
        folder: the seed's.
        seed: of the world and the models.
        rows: of each data file, by name; the SFT model is trained on `demonstrations`.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    base = pretrain.run(pretrain.PretrainConfig(out=folder / "base", seed=seed, tokens=1_400_000))
    for name, groups in rows.items():
        if not (data / f"{name}.jsonl").exists():
            write_groups(groups, data / f"{name}.jsonl")
    sft.run(
        sft.SFTConfig(
            model=str(base.path), data=str(data / "demonstrations.jsonl"), out=folder / "sft", seed=seed, epochs=2,
            batch_size=32, learning_rate=1e-3, force=True,
        )
    )  # fmt: skip


def sample_pairs(folder: Path, seed: int, name: str) -> Path:
    """Sample two responses of the SFT model to each prompt of `data/NAME.jsonl`; returns the file of the samples."""
    data = folder / "data"
    return generate.run(
        generate.GenerateConfig(
            model=str(folder / "sft"), data=str(data / f"{name}.jsonl"), out=data / f"{name}-samples.jsonl", n=2,
            seed=derive_seed(seed, name) % 2**31, max_new_tokens=MAX_NEW_TOKENS, rows_at_once=512,
        )
    )  # fmt: skip


def prepare(folder: Path, seed: int) -> PreparedSeed:
    """Prepare a seed: models, prompts, pairs and judges."""
    world, prepared = World(seed), PreparedSeed(folder, seed)
    rows = {
        "demonstrations": world.demonstrations(1500, seed=derive_seed(seed, "demonstrations")),
        "pairs": world.prompts(PAIRS, "train", seed=derive_seed(seed, "comparisons")),
        "measured": world.prompts(EVALUATION_PAIRS, "train", seed=derive_seed(seed, "measured comparisons")),
        "prompts": world.prompts(2000, "train", seed=derive_seed(seed, "prompts")),
        "test": world.prompts(TEST_PROMPTS, "test", seed=derive_seed(seed, "test")),
    }
    prepare_models(folder, seed, rows)
    for name in ("pairs", "measured"):
        sample_pairs(folder, seed, name)
    prepared.judges()
    return prepared


def with_labels(groups: Sequence[Group], probabilities: Sequence[float | None], annotator: str) -> list[Group]:
    """Pairs with soft labels, the more probably better response first; a pair without a label is left out."""
    return [
        chosen_first(replace(group, label=Preference(p, annotator)))
        for group, p in zip(groups, probabilities, strict=True)
        if p is not None
    ]


def train_policy(prepared: PreparedSeed, name: str, labels: Sequence[Group], *, beta: float = BETA) -> Path:
    """From labels to a policy: train a reward model on them, and PPO against it with a KL penalty.

    Args:
        prepared: the seed.
        name: of the arm; the folders are `reward-NAME` and `ppo-NAME`.
        labels: pairs with labels.
        beta: of the KL penalty.

    Returns:
        PPO's folder.
    """
    folder, data = prepared.folder, prepared.folder / "data"
    file = data / f"labels-{name}.jsonl"
    if not file.exists():
        write_groups(labels, file)
    reward_model.run(
        reward_model.RewardConfig(
            model=str(folder / "sft"), data=str(file), out=folder / f"reward-{name}", seed=prepared.seed,
            batch_size=32, learning_rate=1e-3, centre_samples=256, centre_max_new_tokens=MAX_NEW_TOKENS,
            max_eval_rows=100, force=True,
        )
    )  # fmt: skip
    ppo.run(
        ppo.PPOConfig(
            model=str(folder / "sft"), data=str(data / "prompts.jsonl"), eval_data=str(data / "test.jsonl"),
            reward=str(folder / f"reward-{name}"), out=folder / f"ppo-{name}", seed=prepared.seed, beta=beta,
            max_steps=ROLLOUTS, batch_size=64, inner_epochs=2, minibatches=2, learning_rate=1.5e-4,
            value_learning_rate=5e-4, schedule="constant", max_new_tokens=MAX_NEW_TOKENS, eval_every=ROLLOUTS,
            save_every=ROLLOUTS, force=True,
        )
    )  # fmt: skip
    return folder / f"ppo-{name}"


# --- figures ---------------------------------------------------------------------------------------------------------


class GoldReward:
    """The truth as a `Reward`, for a labeller that makes no errors."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        return torch.tensor(gold_of(self.world, groups), dtype=torch.float32)


def gold_of(world: World, groups: Sequence[Group]) -> Float[np.ndarray, "P K"]:
    """Gold of each response."""
    rows = [[world.gold(g.prompt_text, r.text, r.finished) for r in g.responses] for g in groups]
    return np.array(rows, dtype=np.float64)


def gold_difference(world: World, groups: Sequence[Group]) -> Float[np.ndarray, " P"]:
    """Gold of the first response minus gold of the second."""
    difference: Float[np.ndarray, " P"] = gold_of(world, groups) @ np.array([1.0, -1.0])
    return difference


def accuracy(difference: Float[np.ndarray, " P"], gold: Float[np.ndarray, " P"]) -> float:
    """Share of the pairs with a gold difference in which another difference has its sign; 0 counts as one half."""
    decided = np.abs(gold) > 1e-6
    return float((0.5 + 0.5 * np.sign(difference) * np.sign(gold))[decided].mean())


def labeller_figures(world: World, groups: Sequence[Group], labels: Sequence[LabelResult]) -> dict[str, float]:
    """Figures of a labeller from its labels of some pairs, none missing.

    Returns:
        `accuracy`, against gold, on the pairs with a gold difference; `sure`, the mean of |P − ½|; `first`, the mean
        advantage of the response shown first, in probability, and `order`, its mean size; both are 0 for a labeller
        that ignores the order.
    """
    p = np.array([label.probability for label in labels], dtype=np.float64)
    order = np.array([label.order_effect or 0.0 for label in labels])
    return {
        "accuracy": accuracy(p - 0.5, gold_difference(world, groups)),
        "sure": float(np.abs(p - 0.5).mean()),
        "first": float(order.mean()),
        "order": float(np.abs(order).mean()),
    }


def reward_accuracy(prepared: PreparedSeed, name: str) -> float:
    """Accuracy of the reward model of an arm on the evaluation pairs."""
    groups = prepared.pairs("measured")
    scores = LearnedReward.load(prepared.folder / f"reward-{name}")(groups)
    return accuracy((scores[:, 0] - scores[:, 1]).double().numpy(), gold_difference(prepared.world, groups))


def policy_figures(world: World, folder: Path, step: int) -> dict[str, float]:
    """Figures of a policy on the test prompts.

    Args:
        world: the truth.
        folder: PPO's.
        step: which of its evaluations.

    Returns:
        `gold`, `proxy`, `kl`; `principle/NAME`, the reward by each principle, means over responses (`no-harm` over
        those to harmful prompts only); `refuses`, share of harmful prompts refused; `courtesies` and `insults` a
        response.
    """
    rows = [row for row in curves.read_samples(folder) if row["step"] == step]
    groups = curves.as_groups(rows)
    harmful = [world.task(group.prompt_text).kind == "harm" for group in groups]
    rewards = [small_judge.principle_rewards(world, group.prompt_text, group.responses[0]) for group in groups]
    estimates, profile = curves.estimates(world, rows), world.profile(groups)
    means = {"gold": estimates["gold"], "proxy": estimates["proxy"], "kl": estimates["kl"]}
    figures = {name: estimate["mean"] or 0.0 for name, estimate in means.items()}
    for name in rewards[0]:
        values = [by_name[name] for by_name, harm in zip(rewards, harmful, strict=True) if harm or name != "no-harm"]
        figures[f"principle/{name}"] = float(np.mean(values))
    return figures | {name: profile[name] for name in ("refuses", "courtesies", "insults")}
