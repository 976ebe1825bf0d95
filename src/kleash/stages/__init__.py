"""The stages: one table of all of them, and a file for each.

The table has each stage's config, help and output without importing torch; `run` imports the stage itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kleash.config import Config
from kleash.run import RunFolder
from kleash.stages.data_configs import (
    AskConfig,
    BestOfNConfig,
    ExportConfig,
    GenerateConfig,
    JudgeConfig,
    OveroptConfig,
    RankConfig,
    ReviseConfig,
    ScoreConfig,
)
from kleash.stages.training_configs import DPOConfig, EnsembleConfig, GRPOConfig, PPOConfig, SFTConfig


@dataclass(frozen=True)
class Stage:
    """One command of the command line that a recipe can name too."""

    name: str
    run: Callable[[Any], RunFolder | Path]
    config: type[Config]
    writes: Literal["model", "rows", "page", "folder"]
    """A folder with a model, a file of rows, a folder with a page, or a folder with something else."""
    help: str
    """What the command does, beginning with the method's name where it has one."""
    example: str


def _sft(config: SFTConfig) -> RunFolder:
    from kleash.stages import sft

    return sft.run(config)


def _reward(config: EnsembleConfig) -> RunFolder:
    from kleash.stages import reward_ensemble

    return reward_ensemble.run(config)


def _ppo(config: PPOConfig) -> RunFolder:
    from kleash.stages import ppo

    return ppo.run(config)


def _grpo(config: GRPOConfig) -> RunFolder:
    from kleash.stages import grpo

    return grpo.run(config)


def _dpo(config: DPOConfig) -> RunFolder:
    from kleash.stages import dpo

    return dpo.run(config)


def _generate(config: GenerateConfig) -> Path:
    from kleash.stages import generate

    return generate.run(config)


def _score(config: ScoreConfig) -> Path:
    from kleash.stages import score

    return score.run(config)


def _best_of_n(config: BestOfNConfig) -> Path:
    from kleash.stages import best_of_n

    return best_of_n.run(config)


def _judge(config: JudgeConfig) -> Path:
    from kleash.stages import judge

    return judge.run(config)


def _revise(config: ReviseConfig) -> Path:
    from kleash.stages import revise

    return revise.run(config)


def _overopt(config: OveroptConfig) -> RunFolder:
    from kleash.stages import overopt

    return overopt.run(config)


def _rank(config: RankConfig) -> RunFolder:
    from kleash.stages import rank

    return rank.run(config)


def _ask(config: AskConfig) -> Path:
    from kleash.stages import ask

    return ask.run(config)


def _export(config: ExportConfig) -> Path:
    from kleash.stages import export

    return export.run(config)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "sft", _sft, SFTConfig, "model",
            "SFT: supervised fine-tuning on demonstrations",
            "kleash sft --model HuggingFaceTB/SmolLM2-135M --data demonstrations.jsonl --out runs/sft",
        ),
        Stage(
            "reward", _reward, EnsembleConfig, "model",
            "reward model: train a Bradley–Terry model, or an ensemble, on comparisons",
            "kleash reward --model runs/sft --data comparisons.jsonl --out runs/reward",
        ),
        Stage(
            "ppo", _ppo, PPOConfig, "model",
            "PPO: train a policy against a reward with a KL penalty",
            "kleash ppo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/ppo --beta 0.05",
        ),
        Stage(
            "grpo", _grpo, GRPOConfig, "model",
            "GRPO, Dr. GRPO, RLOO, DAPO: train a policy against a reward, with a group's own mean as baseline",
            "kleash grpo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/grpo --preset rloo",
        ),
        Stage(
            "dpo", _dpo, DPOConfig, "model",
            "DPO: direct preference optimisation on comparisons, without reward model or sampling; IPO, SimPO too",
            "kleash dpo --model runs/sft --data comparisons.jsonl --out runs/dpo --beta 0.1",
        ),
        Stage(
            "generate", _generate, GenerateConfig, "rows",
            "sample responses to prompts",
            "kleash generate --model runs/ppo --data prompts.jsonl --out samples.jsonl -n 4",
        ),
        Stage(
            "score", _score, ScoreConfig, "rows",
            "score responses with a reward",
            "kleash score --reward math --data samples.jsonl --out scored.jsonl",
        ),
        Stage(
            "best-of-n", _best_of_n, BestOfNConfig, "rows",
            "best-of-n: sample n responses to each prompt, keep the best, and estimate the result of every smaller n",
            "kleash best-of-n --model runs/sft --data prompts.jsonl --reward runs/reward --out best.jsonl -n 16",
        ),
        Stage(
            "judge", _judge, JudgeConfig, "rows",
            "LLM-as-a-judge (RLAIF): label pairs of responses with a chat model, and measure the labels' quality",
            "kleash judge --model runs/sft --data samples.jsonl --constitution assistant --out labels.jsonl",
        ),
        Stage(
            "revise", _revise, ReviseConfig, "rows",
            "constitutional AI: sample, criticise and revise responses, as demonstrations for sft",
            "kleash revise --model runs/sft --data prompts.jsonl --constitution assistant --out demonstrations.jsonl",
        ),
        Stage(
            "overopt", _overopt, OveroptConfig, "page",
            "measure over-optimisation: true reward and proxy against KL, fitted scaling law, recommended checkpoint",
            "kleash overopt --run runs/ppo --gold runs/held-out-reward --best-of 16 --out runs/overopt",
        ),
        Stage(
            "rank", _rank, RankConfig, "page",
            "compare several models: win rates, Bradley–Terry strengths, and both at equal length",
            "kleash rank --data a.jsonl b.jsonl c.jsonl --reward runs/held-out-reward --out ranking",
        ),
        Stage(
            "ask", _ask, AskConfig, "rows",
            "collect preference labels from people (exits with 75 until they have answered) or from a reward",
            "kleash ask --data samples.jsonl --store labels.db --out preferences.jsonl --budget 500",
        ),
        Stage(
            "export", _export, ExportConfig, "folder",
            "write the labels of a store as preference files, split by prompt",
            "kleash export --store labels.db --out labels --test-share 0.1",
        ),
    )
}  # fmt: skip
"""Every stage, by name."""
