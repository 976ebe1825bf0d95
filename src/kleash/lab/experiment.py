"""What the experiments with labellers share: a prepared world, and the way from labels to a measured policy.

Prepared once for each seed: base and SFT model, pairs that the SFT model sampled, others to measure on, prompts, and
the judges. From labels of the pairs: a reward model, PPO with a KL penalty, and what became of gold.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference, Response, chosen_first
from kleash.io import read_jsonl, write_json
from kleash.lab import judges, measure
from kleash.lab.world import pretrain
from kleash.lab.world.small_world import World
from kleash.labels.labeller import LabelResult
from kleash.rewards.learned import LearnedReward
from kleash.run import derive_seed
from kleash.stages import generate, ppo, reward_model, sft

T = TypeVar("T")

PAIRS = 1600
"""Pairs that are labelled, each of two samples of the SFT model."""

MEASURED = 600
"""Pairs of other samples, on which labellers and reward models are held against gold."""

TEST_PROMPTS = 256
ROLLOUTS = 20
BETA = 0.2
MAX_NEW_TOKENS = 40


@dataclass(frozen=True)
class Bench:
    """A prepared seed."""

    out: Path
    seed: int

    @property
    def world(self) -> World:
        """Its world."""
        return World(self.seed)

    def pairs(self, name: str) -> list[Group]:
        """`pairs` to label or those to be `measured` on; without those that a row of text could not hold."""
        groups = read_groups(self.out / "data" / f"{name}-samples.jsonl")
        return [group for group in groups if all(response.text for response in group.responses)]

    def judges(self) -> list[Path]:
        """The judges' folders, worst first; trained where they are not there."""
        return judges.train_judges(self.world, self.out / "base", self.out / "judges", seed=self.seed)


def begin(out: Path, seed: int, rows: Mapping[str, Sequence[Group]]) -> None:
    """Base model, SFT model and files of a seed; of the rows `demonstrations` are imitated."""
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    base = pretrain.run(pretrain.PretrainConfig(out=out / "base", seed=seed, tokens=1_400_000))
    for name, groups in rows.items():
        if not (data / f"{name}.jsonl").exists():
            write_groups(groups, data / f"{name}.jsonl")
    sft.run(
        sft.SFTConfig(
            model=str(base.path), data=str(data / "demonstrations.jsonl"), out=out / "sft", seed=seed, epochs=2,
            batch_size=32, learning_rate=1e-3, force=True,
        )
    )  # fmt: skip


def prepare(out: Path, seed: int) -> Bench:
    """Base, SFT, prompts and pairs of a seed."""
    world, bench, data = World(seed), Bench(out, seed), out / "data"
    rows = {
        "demonstrations": world.demonstrations(1500, seed=derive_seed(seed, "demonstrations")),
        "pairs": world.prompts(PAIRS, "train", seed=derive_seed(seed, "comparisons")),
        "measured": world.prompts(MEASURED, "train", seed=derive_seed(seed, "measured comparisons")),
        "prompts": world.prompts(2000, "train", seed=derive_seed(seed, "prompts")),
        "test": world.prompts(TEST_PROMPTS, "test", seed=derive_seed(seed, "test")),
    }
    begin(out, seed, rows)
    for name in ("pairs", "measured"):
        generate.run(
            generate.GenerateConfig(
                model=str(out / "sft"), data=str(data / f"{name}.jsonl"), out=data / f"{name}-samples.jsonl", n=2,
                seed=derive_seed(seed, name) % 2**31, max_new_tokens=MAX_NEW_TOKENS, rows_at_once=512,
            )
        )  # fmt: skip
    bench.judges()
    return bench


def labelled(groups: Sequence[Group], probabilities: Sequence[float | None], annotator: str) -> list[Group]:
    """Pairs with soft labels, the likelier better response first; without those that have no label."""
    return [
        chosen_first(replace(group, label=Preference(p, annotator)))
        for group, p in zip(groups, probabilities, strict=True)
        if p is not None
    ]


def gold_lead(world: World, groups: Sequence[Group]) -> Float[np.ndarray, " P"]:
    """Gold of the first response less gold of the second."""
    worth = [[world.gold(g.prompt_text, r.text, r.finished) for r in g.responses] for g in groups]
    return np.array(worth) @ np.array([1.0, -1.0])


def accuracy(lead: Float[np.ndarray, " P"], gold: Float[np.ndarray, " P"]) -> float:
    """Share of the pairs that gold decides in which another lead has gold's sign; no lead is half a hit."""
    decided = np.abs(gold) > 1e-6
    return float((0.5 + 0.5 * np.sign(lead) * np.sign(gold))[decided].mean())


def labeller_figures(world: World, groups: Sequence[Group], verdicts: Sequence[LabelResult]) -> dict[str, float]:
    """Of a labeller that answered everything: accuracy, how sure it is, and what the order of the two does to it.

    Returns:
        `accuracy` against gold, on the pairs that gold decides; `sure`, mean of |P − ½|; `first`, the mean advantage of
        what is shown first, in probability, and `order`, its mean size on a pair; both 0 for who sees no order.
    """
    p = np.array([verdict.probability for verdict in verdicts], dtype=np.float64)
    order = np.array([verdict.order_effect or 0.0 for verdict in verdicts])
    return {
        "accuracy": accuracy(p - 0.5, gold_lead(world, groups)),
        "sure": float(np.abs(p - 0.5).mean()),
        "first": float(order.mean()),
        "order": float(np.abs(order).mean()),
    }


class Gold:
    """The truth as a `Reward`, for the labeller that errs nowhere."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __call__(self, groups: Sequence[Group]) -> Float[Tensor, "P K"]:
        """See `Reward`."""
        worth = [[self.world.gold(g.prompt_text, r.text, r.finished) for r in g.responses] for g in groups]
        return torch.tensor(worth, dtype=torch.float32)


def train_policy(bench: Bench, name: str, labels: Sequence[Group], *, beta: float = BETA) -> Path:
    """From labels to a policy: a reward model of them, PPO against it with a KL penalty. Returns PPO's folder."""
    out, data = bench.out, bench.out / "data"
    file = data / f"labels-{name}.jsonl"
    if not file.exists():
        write_groups(labels, file)
    reward_model.run(
        reward_model.RewardConfig(
            model=str(out / "sft"), data=str(file), out=out / f"reward-{name}", seed=bench.seed, batch_size=32,
            learning_rate=1e-3, centre_samples=256, centre_max_new_tokens=MAX_NEW_TOKENS, max_eval_rows=100, force=True,
        )
    )  # fmt: skip
    ppo.run(
        ppo.PPOConfig(
            model=str(out / "sft"), data=str(data / "prompts.jsonl"), eval_data=str(data / "test.jsonl"),
            reward=str(out / f"reward-{name}"), out=out / f"ppo-{name}", seed=bench.seed, beta=beta,
            max_steps=ROLLOUTS, batch_size=64, inner_epochs=2, minibatches=2, learning_rate=1.5e-4,
            value_learning_rate=5e-4, schedule="constant", max_new_tokens=MAX_NEW_TOKENS, eval_every=ROLLOUTS,
            save_every=ROLLOUTS, force=True,
        )
    )  # fmt: skip
    return out / f"ppo-{name}"


def reward_accuracy(bench: Bench, name: str) -> float:
    """Agreement of a reward model with gold on the measured pairs."""
    groups = bench.pairs("measured")
    scores = LearnedReward.load(bench.out / f"reward-{name}")(groups)
    return accuracy((scores[:, 0] - scores[:, 1]).double().numpy(), gold_lead(bench.world, groups))


def policy_figures(world: World, folder: Path, step: int) -> dict[str, float]:
    """A policy on the test prompts: gold, proxy, KL, and what each principle says of it.

    Returns:
        `gold`, `proxy`, `kl`; `worth/PRINCIPLE`, means over responses (`no-harm` over those to harmful prompts);
        `refuses`, share of harmful prompts refused; `courtesies` and `insults` a response.
    """
    rows = [row for row in read_jsonl(folder / "samples.jsonl") if row["step"] == step]
    told = measure.figures(world, rows)
    groups = [Group(row["prompt"], (Response(row["response"], finished=row["finished"]),)) for row in rows]
    profile = world.profile(groups)
    worths = [judges.worth(world, group.prompt_text, group.responses[0]) for group in groups]
    harmful = [world.task(group.prompt_text).kind == "harm" for group in groups]
    figures = {name: float(told[name]["mean"]) for name in ("gold", "proxy", "kl")}
    for name in worths[0]:
        own = [w[name] for w, harm in zip(worths, harmful, strict=True) if harm or name != "no-harm"]
        figures[f"worth/{name}"] = float(np.mean(own))
    return figures | {name: profile[name] for name in ("refuses", "courtesies", "insults")}


# --- over seeds ------------------------------------------------------------------------------------------------------


def parser(text: str | None) -> ArgumentParser:
    """What the experiments are told."""
    made = ArgumentParser(description=text, formatter_class=RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--first", type=int, default=0, help="first seed")
    made.add_argument("--out", type=Path, default=Path("runs/feedback"), help="prepared seeds are shared in here")
    made.add_argument("--workers", type=int, default=1, help="seeds that run side by side")
    return made


def over_seeds(measure_seed: Callable[[Path, int], T], options: Namespace) -> list[T]:
    """What an experiment finds on each seed, in the seed's folder."""
    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(measure_seed, [options.out / f"seed-{seed}" for seed in seeds], seeds))


def once(file: Path, find: Callable[[], Any]) -> Any:
    """What a JSON file holds, found and written first where there is none."""
    if not file.exists():
        write_json(file, find())
    return json.loads(file.read_text())


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]], columns: Mapping[str, str], *, first: str) -> str:
    """A Markdown table: a line a name, mean ± standard error over seeds.

    Args:
        rows: figures of each seed, by name.
        columns: figures to show, and their headings.
        first: heading of the names.
    """
    lines = [f"| {first} | {' | '.join(columns.values())} |", "|---" * (1 + len(columns)) + "|"]
    for name, seeds in rows.items():
        lines.append(f"| {name} | {' | '.join(measure.pm([own[key] for own in seeds]) for key in columns)} |")
    return "\n".join(lines)
