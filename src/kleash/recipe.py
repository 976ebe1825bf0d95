"""A recipe: a list of stages, each with the settings of its command, later ones naming earlier ones.

    out: runs/hh
    seed: 0
    stages:
      sft:    {stage: sft, model: models/base, data: demonstrations.jsonl}
      reward: {stage: reward, model: "@sft", data: comparisons.jsonl}
      ppo:    {stage: ppo, model: "@sft", reward: "@reward", data: prompts.jsonl, beta: 0.05}

`@name` is the output of an earlier stage, `@name/part` a file in it. Each stage writes to `out/name`, or to
`out/name.jsonl` where it writes rows. Top-level keys other than `stages` are settings of every stage that has them. A
stage that is done, with unchanged settings, data and parents, is not run again; an interrupted one continues where it
stopped. A stage that is done with other settings stops the recipe; `--from STAGE` does again what changed from that
stage on, and what follows from it. Earlier outputs are renamed (`ppo.old-1`), never deleted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kleash.config import Config, read_yaml, routes_of, shorten
from kleash.content import refuse_missing
from kleash.errors import ChangedError, ConfigError
from kleash.option_names import COMMANDS, renamed
from kleash.outputs import set_aside
from kleash.run import RunFolder
from kleash.stages import STAGES

logger = logging.getLogger("kleash")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, its settings validated."""

    name: str
    stage: str
    config: Config


def run_stage(stage: str, config: Config) -> RunFolder | Path:
    """Run a stage and write its report page, if it has one."""
    row = STAGES[stage]
    output = row.run(config)
    if row.writes == "page" and isinstance(output, RunFolder):
        # here: the layer of reports is above that of stages
        from kleash.report import overoptimization_report, ranking_report

        write_page = ranking_report.write_page if stage == "rank" else overoptimization_report.write_page
        write_page(output.path)
    return output


def read_recipe(path: Path, *, out: Path | None = None) -> list[Step]:
    """Read and validate a whole recipe, before anything is run.

    Args:
        path: the YAML file.
        out: folder to write to in place of the recipe's.

    Raises:
        ConfigError: names the stage, the key and the valid values.
    """
    recipe = read_yaml(path)
    stages = recipe.pop("stages", None)
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{path}: 'stages' is missing; give a mapping of name: {{stage: …, …}}")
    folder = recipe.pop("out", None)
    if out is None and not (isinstance(folder, str) and folder):
        problem = "missing" if folder is None else f"{shorten(repr(folder))}, but should be text"
        raise ConfigError(f"{path}: 'out' is {problem}; give a folder to write to, there or as --out")
    root = out or Path(str(folder))
    steps: list[Step] = []
    outputs: dict[str, str] = {}
    stage_keys: set[str] = set()
    for name, settings in stages.items():
        stage = str(settings.get("stage", name) if isinstance(settings, dict) else name)
        if not isinstance(settings, dict) or stage not in STAGES:
            method = stage.lower()
            hint = f"; {method}: {COMMANDS[method]}" if method in COMMANDS else ""
            raise ConfigError(f"{path}: stage '{name}': 'stage' should be one of {', '.join(STAGES)}{hint}")
        config, writes = STAGES[stage].config, STAGES[stage].writes
        stage_keys |= recipe.keys() & config.model_fields.keys()
        values = {key: value for key, value in recipe.items() if key in config.model_fields} | settings
        values.pop("stage", None)
        values.setdefault("out", str(root / (f"{name}.jsonl" if writes == "rows" else name)))
        kinds = config.kinds()
        values |= {
            key: _resolve(values[key], outputs, f"{path}: stage '{name}': '{key}'")
            for key in kinds.keys() & values.keys()
        }
        steps.append(Step(name, stage, config.make(values, source=f"{path}: stage '{name}'")))
        outputs[name] = str(values["out"])
    for key in sorted(recipe.keys() - stage_keys):
        fields = {field for step in steps for field in type(step.config).model_fields}
        name = renamed(key, fields)
        remedy = name.in_a_config if name is not None else "remove it or move it into a stage"
        raise ConfigError(f"{path}: no stage knows '{key}'; {remedy}")
    return steps


def run_recipe(path: Path, *, out: Path | None = None, redo_from: str | None = None) -> list[Path]:
    """Run the unfinished stages of a recipe.

    Args:
        path: the YAML file.
        out: folder to write to in place of the recipe's.
        redo_from: from this stage on, a stage whose settings or inputs changed since it was done is done again; its
            earlier output is renamed.

    Returns:
        The output of each stage.

    Raises:
        ConfigError: the recipe is wrong, or has no such stage; raised before anything is run.
        ChangedError: a stage before `redo_from` changed since it was done.
        InputError: a file or folder that no earlier stage writes is missing; raised before anything is run.
    """
    steps = read_recipe(path, out=out)
    names = [step.name for step in steps]
    if redo_from is not None and redo_from not in names:
        raise ConfigError(f"{path}: --from is {redo_from}, but should be one of {', '.join(names)}")
    _refuse_missing(steps)
    first = len(steps) if redo_from is None else names.index(redo_from)
    for number, step in enumerate(steps):
        logger.info("%d/%d %s → %s", number + 1, len(steps), step.name, getattr(step.config, "out", ""))
        while True:
            try:
                run_stage(step.stage, step.config)
                break
            except ChangedError as error:
                if number < first:
                    remedy = f"or run with --from {step.name} to do it and what follows again"
                    raise ChangedError(f"{error}, {remedy}", error.out) from None
                changed, reason = error.out, str(error)
            # outside of `except`: the error holds the lock of the output that is renamed
            logger.info("%s: changed (%s); the earlier output is in %s", step.name, reason, set_aside(changed))
    return [Path(getattr(step.config, "out", "")) for step in steps]


def _resolve(value: Any, outputs: Mapping[str, str], where: str) -> Any:
    if isinstance(value, list):
        return [_resolve(item, outputs, where) for item in value]
    if isinstance(value, dict):  # a reward that is routed by row
        return {key: _resolve(item, outputs, where) for key, item in value.items()}
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    name, slash, below = value[1:].partition("/")
    if name not in outputs:
        names = ", ".join(f"@{name}" for name in outputs) or "none yet"
        raise ConfigError(f"{where} is {value}, but no earlier stage has that name; known: {names}")
    return outputs[name] + slash + below


def _refuse_missing(steps: list[Step]) -> None:
    outputs: list[Path] = []
    for step in steps:
        for kind, name in step.config.references().values():
            for each in (routes_of(name) or {"": name}).values():
                if not any(_may_write(output, Path(each)) for output in outputs):
                    refuse_missing(each, kind)
        outputs.append(Path(getattr(step.config, "out", "")))


def _may_write(output: Path, path: Path) -> bool:
    """Whether a stage with this output may write a path: the output, a file in it, or a second output such as
    `best.pool.jsonl`.
    """
    is_sibling = path.parent == output.parent and path.name.startswith(f"{output.stem}.")
    return is_sibling or path.is_relative_to(output)
