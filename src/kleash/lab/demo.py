"""The demo: the whole chain on the small world, base model to report.

base → SFT → sampled pairs, labelled by simulated people → reward model → PPO with a KL penalty and without → the other
methods (GRPO, DPO) → report. The stages are the ones of the command line, on plain files; only the world, its people
and its truth are simulated. Gold is computed from the files that the stages wrote (`samples.jsonl`), so that no stage
has access to the truth.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict

from kleash.data.chat import encode_all
from kleash.data.formats import read_groups, write_groups
from kleash.data.group import Group
from kleash.io import write_json
from kleash.lab import curves
from kleash.lab.curves import CurvePoint, Estimates, SampleRow
from kleash.lab.methods import METHODS, MORE_METHODS, DemoSetup, MethodResult, method_result
from kleash.lab.world import World, pretrain
from kleash.lab.world.labellers import Labellers
from kleash.lab.world.world import Split
from kleash.models.compute import Compute
from kleash.report.html import write_report
from kleash.rollout import build_components
from kleash.rollout.rollout import measured, sample_scored
from kleash.run import RunFolder, derive_seed, versions
from kleash.stages import generate, ppo, reward_model, sft


@dataclass(frozen=True)
class Size:
    """Sizes of data and training; the default takes about five minutes on two cores."""

    base_tokens: int = 1_400_000
    demonstrations: int = 1500
    pairs: int = 6000
    validation_pairs: int = 1500
    biased_share: float = 0.3
    beta: float = 0.2
    rollouts: int = 50
    batch_size: int = 64
    eval_every: int = 5
    choose_prompts: int = 96
    test_prompts: int = 192
    max_new_tokens: int = 40
    ppo_learning_rate: float = 1e-4
    judge_steps: int = 600


@dataclass(frozen=True)
class Demo:
    """A demo: its folder, its seed and its size."""

    out: Path
    seed: int = 0
    size: Size = Size()

    @cached_property
    def world(self) -> World:
        """Its world."""
        return World(self.seed)

    def file(self, name: str) -> Path:
        """A file of rows that a stage reads or writes."""
        return self.out / "data" / f"{name}.jsonl"

    def ppo_config(self, name: str, beta: float) -> ppo.PPOConfig:
        """Settings of a run of PPO, which writes to the folder `name`. The run without a KL penalty is meant to fail,
        so no check may stop it.
        """
        size = self.size
        return ppo.PPOConfig(
            model=str(self.out / "sft"), data=str(self.file("prompts")), eval_data=str(self.file("held_out")),
            reward=str(self.out / "reward"), hold_out=str(self.out / "validation"), out=self.out / name,
            seed=self.seed, beta=beta, max_steps=size.rollouts,
            batch_size=size.batch_size, inner_epochs=2, minibatches=2, learning_rate=size.ppo_learning_rate,
            value_learning_rate=5e-4, schedule="constant", max_new_tokens=size.max_new_tokens,
            eval_every=size.eval_every, snapshot_every=size.eval_every, force=True,
        )  # fmt: skip

    @property
    def setup(self) -> DemoSetup:
        """What the other methods share with PPO."""
        ppo_config = self.ppo_config("ppo", self.size.beta)
        return DemoSetup(self.world, self.out, ppo_config, self.file("comparisons"), self.size.judge_steps)


class Sample(TypedDict):
    """A response and its rewards."""

    prompt: str
    response: str
    gold: float
    proxy: float


class PeakPoint(TypedDict):
    """The step whose gold is best on the prompts that choose."""

    step: int
    gold: curves.MeanSE
    kl: curves.MeanSE


class PolicySummary(Estimates):
    """A policy on the test prompts."""

    profile: dict[str, float]
    sample: Sample
    gold_peak: NotRequired[PeakPoint]


class PolicyAnswer(TypedDict):
    """What a policy answered at a step of its training; None: it has no steps."""

    policy: str
    step: int | None
    response: str
    gold: float
    proxy: float
    parts: dict[str, float]
    """Of gold."""


class PromptAnswers(TypedDict):
    """A test prompt, answered by every policy through training."""

    prompt: str
    kind: str
    answers: list[PolicyAnswer]


class Policies(TypedDict):
    """The part of the summary that shows the policies."""

    policies: dict[str, PolicySummary]
    curves: dict[str, list[CurvePoint]]
    samples: list[PromptAnswers]


class Summary(Policies):
    """summary.json."""

    seed: int
    beta: float
    seconds: float
    stages: dict[str, float]
    """Seconds of each section but the report."""
    roads: dict[str, MethodResult]
    """The result of each method."""
    reward_model: Mapping[str, object] | None
    """The report of the reward model."""
    gates: dict[str, object]
    """The summary of each run's checks."""
    versions: dict[str, str]
    section_seconds: dict[str, float]
    """Seconds of each section."""


class SectionTimer:
    """Measures the seconds of each section of the demo, which follow one another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._end = time.monotonic()

    def end(self, name: str) -> None:
        """End a section; the next one starts here."""
        now = time.monotonic()
        self.seconds[name], self._end = round(now - self._end, 2), now

    @property
    def total(self) -> float:
        """Seconds until the end of the last section."""
        return round(self._end - self._start, 1)

    def line(self) -> str:
        """All sections in one line."""
        return f"{self.total:.0f} s: " + ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())


def run(out: Path, *, seed: int = 0, size: Size | None = None, all_methods: bool = False) -> Summary:
    """Run the missing steps of the chain, and write `report.html` and `summary.json`.

    Args:
        out: folder to write to.
        seed: of the world and of every stage.
        size: sizes of data and training.
        all_methods: best-of-n, online DPO and RLAIF as well, which takes twice as long.

    Returns:
        The summary. The seconds of each section are printed on stderr.
    """
    demo, timer = Demo(out, seed, size or Size()), SectionTimer()
    pretrain.run(pretrain.PretrainConfig(out=out / "base", seed=seed, tokens=demo.size.base_tokens))
    timer.end("base")
    write_prompts(demo)
    sft_run = train_sft(demo)
    timer.end("sft")
    for data in (COMPARISONS, VALIDATION):
        label_pairs(demo, data)
    timer.end("comparisons")
    reward_run = train_reward(demo, COMPARISONS)
    timer.end("reward")
    train_reward(demo, VALIDATION)
    timer.end("validation")
    runs = {}
    for name, beta in {"ppo": demo.size.beta, "ppo-no-leash": 0.0}.items():
        runs[name] = ppo.run(demo.ppo_config(name, beta))
        timer.end(name)
    results = {}
    for name, method in (METHODS | (MORE_METHODS if all_methods else {})).items():
        results[name] = method(demo.setup)
        timer.end(name)
    policies = summarise_policies(demo, runs)
    timer.end("measuring")
    gates = {"sft": sft_run, "reward": reward_run, **runs}
    summary: Summary = {
        **policies,
        "seed": seed,
        "beta": demo.size.beta,
        "seconds": timer.total,
        "stages": dict(timer.seconds),
        "roads": {"ppo": method_result(demo.setup, "ppo"), **results},
        "reward_model": reward_run.record["results"].get("report"),
        "gates": {name: run.record["gates"].get("out") for name, run in gates.items()},
        "versions": versions(),
        "section_seconds": timer.seconds,
    }
    write_json(out / "summary.json", summary)
    write_report(out)
    timer.end("report")
    write_json(out / "summary.json", summary)
    print(timer.line(), file=sys.stderr)
    return summary


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairData:
    """Comparisons of one purpose: the names of their files and of their streams of random numbers."""

    prompts: str
    samples: str
    comparisons: str
    reward: str
    """Folder of the reward model that is trained on them."""
    labellers: str
    """Stream of the simulated people."""


COMPARISONS = PairData("to_compare", "samples", "comparisons", "reward", "labellers")
VALIDATION = PairData("to_validate", "validation-samples", "validation", "validation", "hold-out labellers")
"""For a second reward model, from other comparisons and another seed: PPO is measured with it and never trained against
it."""


def write_prompts(demo: Demo) -> None:
    """Write the files of prompts and demonstrations that do not exist yet."""
    world, size, seed = demo.world, demo.size, demo.seed
    counts: dict[Split, int] = {"choose": size.choose_prompts, "test": size.test_prompts}
    held_out = [
        Group(group.prompt, columns={**group.columns, "split": split, "world": seed})
        for split, count in counts.items()
        for group in world.prompts(count, split, seed=derive_seed(seed, split))
    ]
    rows: dict[str, list[Group]] = {
        "demonstrations": world.demonstrations(size.demonstrations, seed=derive_seed(seed, "demonstrations")),
        COMPARISONS.prompts: world.prompts(size.pairs, "train", seed=derive_seed(seed, "comparisons")),
        VALIDATION.prompts: world.prompts(
            size.validation_pairs, "train", seed=derive_seed(seed, "hold-out comparisons")
        ),
        "prompts": world.prompts(2000, "train", seed=derive_seed(seed, "prompts")),
        "held_out": held_out,
    }
    (demo.out / "data").mkdir(parents=True, exist_ok=True)
    for name, groups in rows.items():
        if not demo.file(name).exists():
            write_groups(groups, demo.file(name))


def train_sft(demo: Demo) -> RunFolder:
    """The SFT model of the demonstrations."""
    return sft.run(
        sft.SFTConfig(
            model=str(demo.out / "base"), data=str(demo.file("demonstrations")), out=demo.out / "sft", seed=demo.seed,
            epochs=2, batch_size=32, learning_rate=1e-3, eval_every=20,
        )
    )  # fmt: skip


def label_pairs(demo: Demo, data: PairData) -> None:
    """Sample two responses a prompt from the SFT model and have the simulated people compare them."""
    if demo.file(data.comparisons).exists():
        return
    generate.run(
        generate.GenerateConfig(
            model=str(demo.out / "sft"), data=str(demo.file(data.prompts)), out=demo.file(data.samples), n=2,
            seed=demo.seed, max_new_tokens=demo.size.max_new_tokens, rows_at_once=512,
        )
    )  # fmt: skip
    people = Labellers(
        demo.world, biased_share=demo.size.biased_share, seed=derive_seed(demo.seed, data.labellers)
    )  # fmt: skip
    write_groups(people.label(read_groups(demo.file(data.samples))), demo.file(data.comparisons))


def train_reward(demo: Demo, data: PairData) -> RunFolder:
    """The reward model of some comparisons."""
    seed = demo.seed if data == COMPARISONS else derive_seed(demo.seed, "hold-out") % 2**31
    return reward_model.run(
        reward_model.RewardConfig(
            model=str(demo.out / "sft"), data=str(demo.file(data.comparisons)), out=demo.out / data.reward, seed=seed,
            batch_size=64, learning_rate=1e-3, centre_samples=256, centre_max_new_tokens=demo.size.max_new_tokens,
            eval_every=20, max_eval_rows=1000,
        )
    )  # fmt: skip


# --- summary ---------------------------------------------------------------------------------------------------------


def summarise_policies(demo: Demo, runs: Mapping[str, RunFolder]) -> Policies:
    """Base and SFT model, and both runs of PPO: figures, curves and answers."""
    world = demo.world
    rows = {name: curves.read_samples(run.path) for name, run in runs.items()}
    by_run = {name: curves.curve(world, rows[name]) for name in runs}
    base = sample_base(demo)
    policies = {
        "base": summarise_policy(world, base),
        "sft": summarise_policy(world, curves.at(rows["ppo"], 0, "test")),
    }
    for name, points in by_run.items():
        policies[name] = summarise_policy(world, curves.at(rows[name], points[-1]["step"], "test"))
        best = curves.best_step(world, rows[name])
        (peak,) = [point for point in points if point["step"] == best]
        policies[name]["gold_peak"] = {"step": best, "gold": peak["gold"], "kl": peak["kl"]}
    answers = side_by_side(world, base, policies, rows)
    return {"policies": policies, "curves": by_run, "samples": answers}


def summarise_policy(world: World, rows: Sequence[SampleRow]) -> PolicySummary:
    """A policy from its responses to the test prompts."""
    first = rows[0]
    estimates = curves.estimates(world, rows)
    return {
        "gold": estimates["gold"],
        "proxy": estimates["proxy"],
        "kl": estimates["kl"],
        "profile": world.profile(curves.as_groups(rows)),
        "sample": {
            "prompt": first["prompt"],
            "response": first["response"],
            "gold": curves.gold(world, first),
            "proxy": first["score"],
        },
    }


def sample_base(demo: Demo) -> list[SampleRow]:
    """Base samples on the test prompts, with their proxy and their KL from the SFT model."""
    prompts = [group for group in read_groups(demo.file("held_out")) if group.columns["split"] == "test"]
    parts = build_components(
        str(demo.out / "base"), str(demo.out / "reward"), reference=str(demo.out / "sft"),
        max_new_tokens=demo.size.max_new_tokens, temperature=1.0, compute=Compute(micro_batch_tokens=1 << 20),
    )  # fmt: skip
    encoded, seed = encode_all(prompts, parts.tokenizer)[0], derive_seed(demo.seed, "base samples")
    rollout = measured(sample_scored(parts, encoded, group_size=1, seed=seed), parts)
    scores, kls = rollout.scores[:, 0].tolist(), rollout.kl[:, 0].tolist()
    return [
        {
            "prompt": group.prompt_text,
            "response": group.responses[0].text,
            "finished": group.responses[0].finished,
            "score": score,
            "kl": nats,
        }
        for group, score, nats in zip(rollout.groups, scores, kls, strict=True)
    ]


def side_by_side(
    world: World,
    base: Sequence[SampleRow],
    policies: Mapping[str, PolicySummary],
    rows: Mapping[str, Sequence[SampleRow]],
) -> list[PromptAnswers]:
    """Two test prompts of each kind, answered by every policy: at a third of its steps, at the peak and at the end."""
    start = curves.at(rows["ppo"], 0, "test")
    tables: dict[tuple[str, int | None], dict[str, SampleRow]] = {
        ("base", None): by_prompt(base),
        ("sft", 0): by_prompt(start),
    }
    for name in rows:
        steps = curves.steps_of(rows[name])
        for step in sorted({steps[len(steps) // 3], policies[name]["gold_peak"]["step"], steps[-1]} - {0}):
            tables[name, step] = by_prompt(curves.at(rows[name], step, "test"))
    return [
        {
            "prompt": prompt,
            "kind": kind,
            "answers": [
                answer_of(world, policy, step, table[prompt]) for (policy, step), table in tables.items()
            ],
        }
        for kind, prompts in two_of_each_kind(start).items()
        for prompt in prompts
    ]  # fmt: skip


def answer_of(world: World, policy: str, step: int | None, row: SampleRow) -> PolicyAnswer:
    """A row as an answer."""
    return {
        "policy": policy,
        "step": step,
        "response": row["response"],
        "gold": curves.gold(world, row),
        "proxy": row["score"],
        "parts": world.explain(row["prompt"], row["response"], row["finished"]),
    }


def by_prompt(rows: Iterable[SampleRow]) -> dict[str, SampleRow]:
    """The rows by their prompt; the last one of a repeated prompt."""
    return {row["prompt"]: row for row in rows}


def two_of_each_kind(rows: Iterable[SampleRow]) -> dict[str, list[str]]:
    """The first two different prompts of each kind."""
    prompts: dict[str, list[str]] = {}
    for prompt, row in by_prompt(rows).items():
        of_kind = prompts.setdefault(row["kind"], [])
        if len(of_kind) < 2:
            of_kind.append(prompt)
    return prompts
