"""Do the checks of a stage catch a broken run, and pass healthy ones? Measured on the small world.

    python -m kleash.lab.gate_calibration [--healthy 20] [--broken 4] [--worlds 3] [--out runs/gates]

An SFT model is broken in four ways and a reward model in five; healthy models of many seeds and sizes are trained for
comparison. Every stage and its checks are those of the command line. Prints how many runs failed their checks, with 95
% Wilson intervals, and which checks failed; started again, it does only what is missing.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import torch

from kleash.checks.artifact import votes_agree
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group, Preference
from kleash.evals.intervals import wilson
from kleash.io import write_json
from kleash.lab.experiment import markdown_table, mean_and_error
from kleash.lab.world import World, pretrain
from kleash.lab.world.labellers import Labellers
from kleash.models.load import new_reward_model
from kleash.run import RunFolder, derive_seed
from kleash.stages import generate, reward_model, sft

DEMONSTRATIONS = (600, 900, 1200, 1500)
PAIRS = (2000, 2500, 3000, 4000)
"""Numbers of pairs, used in turn; a fifth of the pairs is for validation."""

MAX_NEW_TOKENS = 40

AGREEMENT_PAIRS = 200
"""Sampled pairs on which two people vote."""

SFT_FAULTS: dict[str, str] = {
    "responses dealt out at random": "uses the prompt",
    "no end token": "responses end",
    "one response to everything": "something to compare",
    "rate far too high": "learned",
}
"""What is broken, and the check that should catch it."""

REWARD_FAULTS: dict[str, str] = {
    "labels shuffled": "better than chance",
    "only length": "beyond length",
    "base samples": "about the policy's samples",
    "constant": "scores differ",
    "sign flipped": "better than chance",
}


def train_sft(world: World, out: Path, base: Path, *, seed: int, count: int, fault: str = "") -> RunFolder:
    """An SFT run, healthy or with one of `SFT_FAULTS`."""
    rows = world.demonstrations(count, seed=derive_seed(seed, "demonstrations"))
    rng = random.Random(seed)
    if fault == "responses dealt out at random":
        others = rng.sample(rows, len(rows))
        rows = [replace(row, responses=other.responses) for row, other in zip(rows, others, strict=True)]
    elif fault == "no end token":
        rows = [replace(row, responses=(replace(row.responses[0], finished=False),)) for row in rows]
    elif fault == "one response to everything":
        rows = [replace(row, responses=rows[0].responses) for row in rows]
    data = _write(rows, out / "demonstrations.jsonl")
    return sft.run(
        sft.SFTConfig(
            model=str(base), data=str(data), out=out / "sft", seed=seed, epochs=2, batch_size=32,
            learning_rate=0.3 if fault == "rate far too high" else 1e-3,
        )
    )  # fmt: skip


def train_reward(
    world: World, out: Path, model: Path, base: Path, *, seed: int, count: int, fault: str = ""
) -> RunFolder:
    """A reward model on samples of `model`, healthy or with one of `REWARD_FAULTS`."""
    author = base if fault == "base samples" else model
    # Runs on samples of the same model share them.
    samples = _sample(world, author, author.parent / f"pairs-{seed}", seed=seed, count=count)
    pairs = Labellers(world, seed=derive_seed(seed, "labellers")).label(samples)
    rng = random.Random(seed)
    if fault == "labels shuffled":
        pairs = [_swapped(pair, rng.random() < 0.5) for pair in pairs]
    elif fault == "only length":
        pairs = [_swapped(pair, _words(pair, 0) < _words(pair, 1)) for pair in pairs]
    held_out = len(pairs) // 5
    if fault == "sign flipped":
        pairs = [_swapped(pair, row >= held_out) for row, pair in enumerate(pairs)]
    constant = None
    if fault == "constant":
        constant = new_reward_model(model, seed=seed)
        torch.nn.init.zeros_(constant[0].get_parameter("score.weight"))
    return reward_model.run(
        reward_model.RewardConfig(
            model=str(model), data=str(_write(pairs[held_out:], out / "comparisons.jsonl")),
            eval_data=str(_write(pairs[:held_out], out / "held_out.jsonl")), out=out / "reward", seed=seed,
            batch_size=64, learning_rate=0.0 if constant else 1e-3, centre_samples=32,
            centre_max_new_tokens=MAX_NEW_TOKENS,
        ),
        reward=constant,
    )  # fmt: skip


def people_agree(world: World, model: Path, out: Path, *, seed: int) -> float:
    """How often two people drawn at random agree about pairs of a model's samples."""
    people = Labellers(world, seed=derive_seed(seed, "people"))
    pairs = _sample(world, model, out / "agreement", seed=seed, count=AGREEMENT_PAIRS)
    votes = [
        [
            people.compare(pair.prompt_text, pair.responses[0], pair.responses[1], key=(voter, row))[0]
            for row, pair in enumerate(pairs)
        ]
        for voter in (1, 2)
    ]
    return votes_agree(*votes).share


@dataclass(frozen=True)
class Trial:
    """One run of one stage, and the result of its checks."""

    name: str
    """The fault planted in it, or "healthy"."""
    check: str
    """The check that should catch it."""
    folder: RunFolder
    agreement: float | None = None
    """How often two people agree about samples of it."""

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        checks = self.folder.record["gates"]["out"]["checks"]
        return [check["name"] for check in checks if check["passed"] is False]


class TrialRow(TypedDict):
    """A trial in the results' file."""

    stage: str
    name: str
    agreement: float | None
    verdict: object


@dataclass
class Trials:
    """Trials over some worlds, each in a separate folder, and their results."""

    out: Path
    worlds: Sequence[World]
    sfts: list[Trial] = field(default_factory=list)
    rewards: list[Trial] = field(default_factory=list)

    def base(self, seed: int) -> Path:
        """The base model of a seed's world."""
        world = self.worlds[seed % len(self.worlds)].seed
        return pretrain.run(pretrain.PretrainConfig(out=self.out / f"world-{world}" / "base", seed=world)).path

    def try_sft(self, name: str, *, seed: int, count: int) -> Path:
        """Train and check an SFT model."""
        world, out = self._place(name, seed)
        folder = train_sft(world, out, self.base(seed), seed=seed, count=count, fault=name)
        agreement = people_agree(world, folder.path, out, seed=seed)
        self.sfts.append(_reported(Trial(name, SFT_FAULTS.get(name, ""), folder, agreement)))
        return folder.path

    def try_reward(self, name: str, model: Path, *, seed: int, count: int) -> None:
        """Train and check a reward model on samples of an SFT model."""
        world, out = self._place(name, seed)
        folder = train_reward(world, out, model, self.base(seed), seed=seed, count=count, fault=name)
        self.rewards.append(_reported(Trial(name, REWARD_FAULTS.get(name, ""), folder)))

    def _place(self, name: str, seed: int) -> tuple[World, Path]:
        world = self.worlds[seed % len(self.worlds)]
        return world, self.out / f"world-{world.seed}" / f"{name.replace(' ', '-')}-{seed}"


def table(title: str, trials: Sequence[Trial]) -> str:
    """Markdown: for each way of breaking a run (and for the healthy), how many of its runs failed their checks."""
    rows = []
    for name in dict.fromkeys(trial.name for trial in trials):
        runs = [trial for trial in trials if trial.name == name]
        caught = sum(bool(trial.failed) for trial in runs)
        low, high = wilson(caught, len(runs))
        check = runs[0].check
        by_its_check = f"{sum(check in trial.failed for trial in runs)} ({check})" if check else ""
        counts = Counter(check for trial in runs for check in trial.failed).most_common()
        checks = ", ".join(f"{check} {count}" for check, count in counts)
        rows.append([name, f"{caught} of {len(runs)}", f"{low:.2f}–{high:.2f}", by_its_check, checks])
    header = [title, "failed its checks", "95 % interval", "by the check meant for it", "failed checks"]
    return markdown_table(header, rows)


def agreement_table(trials: Sequence[Trial]) -> str:
    """Markdown: how often two people agree about the samples of each kind of SFT model."""
    names = dict.fromkeys(trial.name for trial in trials)
    rows = [[name, mean_and_error([trial.agreement for trial in trials if trial.name == name])] for name in names]
    return markdown_table(["SFT model", "two people agree"], rows)


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--healthy", type=int, default=20, help="healthy runs of each stage (default: %(default)s)")
    parser.add_argument("--broken", type=int, default=4, help="runs of each way of breaking (default: %(default)s)")
    parser.add_argument("--worlds", type=int, default=3, help="worlds that they are spread over (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/gates"))
    options = parser.parse_args()

    trials = Trials(options.out, [World(seed) for seed in range(options.worlds)])
    for seed in range(max(options.healthy, options.broken)):
        demonstrations, pairs = (sizes[seed % len(sizes)] for sizes in (DEMONSTRATIONS, PAIRS))
        model = trials.try_sft("healthy", seed=seed, count=demonstrations)
        trials.try_reward("healthy", model, seed=seed, count=pairs)
        if seed < options.broken:
            for fault in SFT_FAULTS:
                trials.try_sft(fault, seed=seed, count=demonstrations)
            for fault in REWARD_FAULTS:
                trials.try_reward(fault, model, seed=seed, count=pairs)
    print(f"\n{table('SFT model', trials.sfts)}\n\n{table('reward model', trials.rewards)}")
    print(f"\n{agreement_table(trials.sfts)}")
    write_json(options.out / "gates.json", [_row(trial) for trial in (*trials.sfts, *trials.rewards)])


def _reported(trial: Trial) -> Trial:
    print(f"{trial.folder.path}: {trial.folder.record['gates']['out']['finding']}", flush=True)
    return trial


def _row(trial: Trial) -> TrialRow:
    return {
        "stage": trial.folder.record["stage"],
        "name": trial.name,
        "agreement": trial.agreement,
        "verdict": trial.folder.record["gates"]["out"],
    }


def _sample(world: World, model: Path, out: Path, *, seed: int, count: int) -> list[Group]:
    """Two responses to each of some prompts."""
    prompts = _write(world.prompts(count, seed=derive_seed(seed, "comparisons")), out / "to_compare.jsonl")
    config = generate.GenerateConfig(
        model=str(model), data=str(prompts), out=out / "samples.jsonl", n=2, seed=seed,
        max_new_tokens=MAX_NEW_TOKENS, rows_at_once=512,
    )  # fmt: skip
    return list(read_groups(generate.run(config)))


def _swapped(pair: Group, swap: bool) -> Group:
    """The pair with the other response preferred."""
    first, second = pair.responses
    columns = {name: value for name, value in pair.columns.items() if name != "label_probability"}
    return Group(pair.prompt, (second, first) if swap else (first, second), Preference(), columns)


def _words(pair: Group, which: int) -> int:
    return len(pair.responses[which].text.split())


def _write(rows: Sequence[Group], path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_groups(rows, path)
    return path


if __name__ == "__main__":
    main()
