"""Draws the layers in docs/architecture.md from pyproject; `python -m tests.docs.architecture` redraws them."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

PAGE = ROOT / "docs" / "architecture.md"

BEGIN, END = "<!-- layers, drawn by tests/docs/architecture.py -->\n", "<!-- end of layers -->\n"

HOLDS = {
    "completion": "completion of commands and options in a shell",
    "cli": "the command line: options from the configs, one line an error",
    "testing": "small real stand-ins, shipped for tests of what is built on kleash",
    "web": "the labelling pages",
    "lab": "the small world where the truth is known, and the experiments on it",
    "recipe": "a YAML list of stages, run in order",
    "plan": "what a recipe will take",
    "api": "the stages as functions of keyword arguments, in Python",
    "report": "figures, stories and HTML pages; reads run folders only",
    "stages": "one file a command: sft, reward, ppo, grpo, dpo, …",
    "checks": "what must hold of the input and the output of a stage",
    "stopping": "rules that end a run early",
    "labels": "the store, the queue, AI judges, agreement",
    "rollout": "samples, scores, log-probabilities and KL of one step",
    "environments": "tasks of several turns",
    "evals": "figures from arrays: accuracy, bias, over-optimisation",
    "rewards": "everything that scores a response",
    "sandbox": "running programs with limits",
    "chat": "talking to a chat model: requests, retries, cache, budget",
    "sampling": "prompts in, responses with log-probabilities out",
    "training": "the loop, the optimiser, states to go on from",
    "distributed": "several processes",
    "models": "loading, the forward pass over groups, heads, adapters",
    "data": "rows, groups, chat templates, batches",
    "objectives": "losses and estimators: tensors in, tensors out",
    "changes": "what may differ where a run goes on, and the record of it",
    "outputs": "is this done already, with these settings?",
    "live": "objects of Python in place of names",
    "unfinished": "what an unfinished run or file says of itself",
    "content": "hashes of what a file, a folder, a model is",
    "option_names": "what other libraries call an option",
    "run": "a run's folder: run.json, metrics.jsonl",
    "io": "files written whole or not at all",
    "lock": "one process at a time writes an output",
    "parse": "JSON and YAML: a value, or why not in one line",
    "option_groups": "the options of a command in groups, for its help",
    "config": "typed, frozen settings",
    "progress": "the progress bar",
    "memory": "peak memory of a process",
    "errors": "the errors for people, in one hierarchy",
}
"""What a layer holds, in a line; a layer without one fails the test."""


def layers() -> list[list[str]]:
    """The layers of the contract, top to bottom; those that are planned too."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (contract,) = (contract for contract in settings["contracts"] if contract["type"] == "layers")
    names = [line.replace("|", ":").split(":") for line in contract["layers"]]
    return [[name.strip(" ()") for name in line] for line in names]


def picture() -> str:
    """The layers as text."""
    lines = []
    for line in layers():
        for name in line:
            package = ROOT / "src" / "kleash" / name
            if package.with_suffix(".py").exists():
                lines.append(f"{name + '.py':<16}  {HOLDS[name]}")
            elif package.is_dir():
                lines.append(f"{name:<16}  {HOLDS[name]}")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def redrawn(text: str) -> str:
    """A page with the picture as it is today."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + picture() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(redrawn(PAGE.read_text()))
