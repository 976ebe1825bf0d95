"""A recipe: a list of stages, each with the settings of its command, later ones naming earlier ones.

    out: runs/hh
    seed: 0
    stages:
      sft:    {stage: sft, model: models/base, data: demonstrations.jsonl}
      reward: {stage: reward, model: "@sft", data: comparisons.jsonl}
      ppo:    {stage: ppo, model: "@sft", reward: "@reward", data: prompts.jsonl, beta: 0.05}

`@name` is what an earlier stage wrote, `@name/part` what lies in it. Each stage writes to `out/name`, or to
`out/name.jsonl` where it writes rows. Keys beside `stages` are settings of every stage that has them. A stage that is
done, with unchanged settings, data and parents, is not run again; an interrupted one goes on where it was.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleash.config import Config, read_yaml
from kleash.errors import ConfigError

logger = logging.getLogger("kleash")

STAGES = {
    "sft": ("kleash.stages.sft", "SFTConfig"),
    "reward": ("kleash.stages.reward_ensemble", "EnsembleConfig"),
    "ppo": ("kleash.stages.ppo", "PPOConfig"),
    "grpo": ("kleash.stages.grpo", "GRPOConfig"),
    "dpo": ("kleash.stages.dpo", "DPOConfig"),
    "generate": ("kleash.stages.generate", "GenerateConfig"),
    "score": ("kleash.stages.score", "ScoreConfig"),
    "best-of-n": ("kleash.stages.best_of_n", "BestOfNConfig"),
    "judge": ("kleash.stages.judge", "JudgeConfig"),
    "revise": ("kleash.stages.revise", "ReviseConfig"),
    "overopt": ("kleash.stages.overopt", "OveroptConfig"),
    "ask": ("kleash.stages.ask", "AskConfig"),
    "export": ("kleash.stages.export", "ExportConfig"),
}
"""Stage name → module and config; imported when asked for, since torch takes its time."""

PAGES = {"overopt": "kleash.report.overoptimization_report"}
"""Stages whose folder holds a page of its own, and what writes it: reports stand above stages."""

WRITE_A_FILE = ("generate", "score", "best-of-n", "judge", "revise", "ask")
"""Stages whose `out` is a file of rows and no folder."""


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, its settings validated."""

    name: str
    stage: str
    config: Config


def stage_config(stage: str) -> type[Config]:
    """The config of a stage."""
    module, name = STAGES[stage]
    config: type[Config] = getattr(importlib.import_module(module), name)
    return config


def run_stage(stage: str, config: Config) -> Any:
    """Run a stage, and draw the page of one that has one."""
    done = importlib.import_module(STAGES[stage][0]).run(config)
    if stage in PAGES:
        importlib.import_module(PAGES[stage]).write_page(done.path)
    return done


def read_recipe(path: Path, *, out: Path | None = None) -> list[Step]:
    """Read and validate a whole recipe, before anything is run.

    Args:
        path: the YAML file.
        out: folder to write to in place of the recipe's.

    Raises:
        ConfigError: naming the stage, the key and what would be right.
    """
    recipe = read_yaml(path)
    stages = recipe.pop("stages", None)
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{path}: 'stages' is missing; give a mapping of name: {{stage: …, …}}")
    root = out or (Path(recipe.pop("out")) if "out" in recipe else None)
    recipe.pop("out", None)
    if root is None:
        raise ConfigError(f"{path}: 'out' is missing; give a folder to write to, there or as --out")
    steps: list[Step] = []
    outputs: dict[str, str] = {}
    used: set[str] = set()
    for name, settings in stages.items():
        if not isinstance(settings, dict) or settings.get("stage", name) not in STAGES:
            raise ConfigError(f"{path}: stage '{name}': 'stage' should be one of {', '.join(STAGES)}")
        stage = str(settings.get("stage", name))
        known = stage_config(stage).model_fields
        used |= recipe.keys() & known.keys()
        values = {key: value for key, value in recipe.items() if key in known} | settings
        values.pop("stage", None)
        values.setdefault("out", str(root / (f"{name}.jsonl" if stage in WRITE_A_FILE else name)))
        values = {key: _resolve(value, outputs, f"{path}: stage '{name}': '{key}'") for key, value in values.items()}
        steps.append(Step(name, stage, stage_config(stage).make(values, source=f"{path}: stage '{name}'")))
        outputs[name] = str(values["out"])
    if recipe.keys() - used:
        raise ConfigError(f"{path}: no stage knows '{min(recipe.keys() - used)}'; remove it or move it into a stage")
    return steps


def run_recipe(path: Path, *, out: Path | None = None) -> list[Path]:
    """Run the stages of a recipe that are not done.

    Returns:
        What each stage wrote.
    """
    steps = read_recipe(path, out=out)
    for number, step in enumerate(steps, start=1):
        logger.info("%d/%d %s → %s", number, len(steps), step.name, getattr(step.config, "out", ""))
        run_stage(step.stage, step.config)
    return [Path(getattr(step.config, "out", "")) for step in steps]


def _resolve(value: Any, outputs: Mapping[str, str], where: str) -> Any:
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    name, slash, below = value[1:].partition("/")
    if name not in outputs:
        known = ", ".join(f"@{name}" for name in outputs) or "none yet"
        raise ConfigError(f"{where} is {value}, but no earlier stage has that name; known: {known}")
    return outputs[name] + slash + below
