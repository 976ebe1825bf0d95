"""The command line: thin. Every field of a stage's config is an option; `--config FILE` reads a YAML of them.

Progress and messages go to stderr, results (and `--json`) to stdout. Exit codes: 0 done, 1 a check or a gate failed, 2
the input is wrong, 3 the machine failed, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

import kleash
from kleash.errors import KleashError

STAGE_HELP = {
    "sft": "imitate demonstrations: the launch point of the policy and the reference of the KL penalty",
    "reward": "learn a reward model from comparisons",
    "ppo": "optimise a reward with a KL penalty",
    "grpo": "optimise a reward with a KL penalty, a group of responses its own baseline: GRPO, Dr. GRPO, RLOO, DAPO",
    "dpo": "learn a policy from comparisons, with neither reward model nor sampling",
    "generate": "sample responses to prompts",
    "score": "what a reward says of responses that are there already",
    "best-of-n": "sample n responses a prompt and keep the best, with what best of k would give for every k up to n",
    "judge": "let an AI labeller compare responses, and measure its labels before they are used",
    "revise": "sample, criticise and revise by a constitution: demonstrations for sft",
    "overopt": "where gold turns while the proxy rises: the curve, its law, the recommended checkpoint, as a page",
    "ask": "labels for pairs, from people or from a reward as labeller; waits without holding the machine",
    "export": "the labels of a store as preference files, frozen by hash and split by prompt",
}

EXAMPLES = {
    "sft": "kleash sft --model HuggingFaceTB/SmolLM2-135M --data demonstrations.jsonl --out runs/sft",
    "reward": "kleash reward --model runs/sft --data comparisons.jsonl --out runs/reward",
    "ppo": "kleash ppo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/ppo --beta 0.05",
    "grpo": "kleash grpo --model runs/sft --data prompts.jsonl --reward runs/reward --out runs/grpo --preset rloo",
    "dpo": "kleash dpo --model runs/sft --data comparisons.jsonl --out runs/dpo --beta 0.1",
    "generate": "kleash generate --model runs/ppo --data prompts.jsonl --out samples.jsonl -n 4",
    "score": "kleash score --reward math --data samples.jsonl --out scored.jsonl",
    "check": "kleash check runs/sft --data demonstrations.jsonl",
    "best-of-n": "kleash best-of-n --model runs/sft --data prompts.jsonl --reward runs/reward --out best.jsonl -n 16",
    "judge": "kleash judge --model runs/sft --data samples.jsonl --constitution assistant --out labels.jsonl",
    "revise": "kleash revise --model runs/sft --data prompts.jsonl --constitution assistant --out demonstrations.jsonl",
    "ask": "kleash ask --data samples.jsonl --store labels.db --out preferences.jsonl --budget 500",
    "export": "kleash export --store labels.db --out labels --test-share 0.1",
    "import": "kleash import --store labels.db --data old-labels.jsonl --annotator team-a",
    "label": "kleash label --data samples.jsonl --store labels.db --guidelines guidelines.md --overlap 2",
    "overopt": "kleash overopt --run runs/ppo --gold runs/held-out-reward --best-of 16 --out runs/overopt",
}

SHORT = {"n": "-n"}
"""Options that the field writes with one dash."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("kleash").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        command = _parser(arguments).parse_args(arguments)
        command.run(command)
    except KleashError as error:
        print(f"kleash: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("kleash: interrupted; what was done is kept, run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, OSError, RuntimeError) as error:
        told = _machine_failure(error)
        if told is None:
            raise
        print(f"kleash: {told}", file=sys.stderr)
        return 3
    return 0


def _machine_failure(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory; lower --micro-batch-tokens (it changes no figure), or take a smaller model"
    if isinstance(error, OSError) and error.errno in (28, 122, 5, 30):
        return f"{error.filename or 'the disk'}: {error.strerror}; free space, then run the same command again to go on"
    return None


class _Parser(argparse.ArgumentParser):
    """Argparse with no abbreviations and its errors in one line."""

    def __init__(self, **settings: Any) -> None:
        own: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**own | settings)

    def error(self, message: str) -> NoReturn:
        from kleash.errors import ConfigError

        if message.startswith("unrecognized arguments: "):
            given = message.removeprefix("unrecognized arguments: ").split()[0]
            near = difflib.get_close_matches(given, self.known, n=1) if (self.known) else []
            hint = f"did you mean {near[0]}?" if near else f"see `{self.prog} --help`"
            raise ConfigError(f"unknown option {given}; {hint}")
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            command = getattr(parsed, "parser", self)
            command.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed

    @property
    def known(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]


def _parser(arguments: Sequence[str]) -> _Parser:
    """The parser; of the stages only the one that is asked for is imported, since torch takes its time."""
    parser = _Parser(
        prog="kleash",
        description="Learning from feedback: SFT, reward models, PPO with a KL penalty, and where it went wrong.",
        epilog="Begin with `kleash demo`. `kleash COMMAND --help` explains a command and each of its options.",
    )
    parser.add_argument("--version", action="version", version=f"kleash {kleash.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    asked = next((word for word in arguments if not word.startswith("-")), None)

    demo = _command(commands, "demo", "the whole chain on a small world, base model to report, in five minutes", _demo)
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="another seed is another world (default: %(default)s)")
    demo.add_argument(
        "--all-methods", action="store_true", help="best-of-n, online DPO and RLAIF too, which takes longer"
    )
    demo.add_argument("--json", action="store_true", help="print the summary as JSON in place of the story")

    recipe = _command(commands, "run", "run a recipe: a YAML list of stages; what is done is not done again", _recipe)
    recipe.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    recipe.add_argument("--out", type=Path, help="folder to write to, in place of the recipe's")

    for stage, help_text in STAGE_HELP.items():
        command = _command(commands, stage, help_text, _stage(stage))
        if stage == asked:
            from kleash.recipe import stage_config

            _add_fields(command, stage_config(stage))
            command.add_argument("--json", action="store_true", help="print the run's results as JSON")

    label = _command(commands, "label", "people compare responses in a browser; serves until it is stopped", _label)
    if asked == "label":
        from kleash.web.label import LabelConfig

        _add_fields(label, LabelConfig)

    bring = _command(commands, "import", "pairs and labels out of files into a label store, each once", _import)
    bring.add_argument("--store", required=True, help="an SQLite file, made if missing, or a PostgreSQL URL")
    bring.add_argument("--data", required=True, nargs="+", help="rows with two or more responses, labelled or not")
    bring.add_argument("--annotator", help="whose labels they are where a row names nobody (default: the file's name)")

    inspect = _command(
        commands, "inspect", "show rows as the model sees them, tokens coloured by role in the loss", _inspect
    )
    inspect.add_argument("--model", required=True, help="whose tokenizer and template: a folder or a hub name")
    inspect.add_argument("--data", required=True, help="rows: a file, a saved `datasets` folder or a hub name")
    inspect.add_argument("--rows", type=int, default=3, help="how many rows (default: %(default)s)")
    inspect.add_argument("--max-length", type=int, help="cut as training with this --max-length would")

    check = _command(
        commands,
        "check",
        "the gates of any artifact: a run, a model that kleash did not make, a file of rows; exit code 1 if one failed",
        _check,
    )
    check.add_argument("path", type=Path, metavar="PATH", help="a run's folder, a `transformers` folder, or rows")
    check.add_argument(
        "--data", help="rows to measure on: prompts or demonstrations for a language model, comparisons for a reward"
    )
    check.add_argument(
        "--labeller", metavar="REWARD", help="a reward in place of a labeller: would two of them agree about samples?"
    )
    check.add_argument("--rows", type=int, default=128, help="at most so many rows of --data (default: %(default)s)")
    check.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    return parser


def _command(commands: Any, name: str, help_text: str, run: Callable[[argparse.Namespace], None]) -> _Parser:
    example = EXAMPLES.get(name)
    command: _Parser = commands.add_parser(
        name,
        help=help_text,
        description=help_text[0].upper() + help_text[1:] + ".",
        epilog=f"example:\n  {example}" if example else None,
    )
    command.set_defaults(run=run, parser=command)
    return command


def _add_fields(command: _Parser, config: Any) -> None:
    """An option for each field of a config, its docstring as help."""
    command.description = f"{command.description}\n\n{textwrap.fill(' '.join((config.__doc__ or '').split()), 100)}"
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML of the options below; options given here win"
    )
    for name, field in config.model_fields.items():
        option = SHORT.get(name, "--" + name.replace("_", "-"))
        text = " ".join((field.description or "").split()).replace("%", "%%")
        default = "" if field.is_required() else f" (default: {_shown(field.default)})"
        settings: dict[str, Any] = {"dest": f"field:{name}", "default": None, "help": text + default}
        if field.annotation is bool:
            settings["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
        else:
            settings["metavar"] = _metavar(field.annotation)
        if any(get_origin(kind) is tuple for kind in (field.annotation, *get_args(field.annotation))):
            settings["nargs"] = "+"
        command.add_argument(option, **settings)


def _stage(stage: str) -> Callable[[argparse.Namespace], None]:
    def run(command: argparse.Namespace) -> None:
        from kleash.recipe import run_stage, stage_config
        from kleash.run import RunFolder
        from kleash.stages.files import results_of

        config = _made(stage_config(stage), command)
        try:
            result = run_stage(stage, config)
        finally:
            if stage in ("judge", "revise"):  # a gate that refuses the labels has to show why
                from kleash.report.label_tables import show

                show(getattr(config, "out"))  # noqa: B009
        if isinstance(result, RunFolder):
            _print_results(result, as_json=command.json)
        else:
            results = results_of(result)
            told = {"out": str(result)} | ({} if results is None else {"results": results})
            print(json.dumps(told) if command.json else result)

    return run


def _label(command: argparse.Namespace) -> None:
    from kleash.web.label import LabelConfig, run

    run(_made(LabelConfig, command))


def _import(command: argparse.Namespace) -> None:
    from kleash.labels.open_store import open_store

    with open_store(command.store) as store:
        from kleash.labels.import_export import import_labels

        for source in command.data:
            new = import_labels(store, source, annotator=command.annotator)
            print(f"{source}: {new['tasks']} new pairs, {new['votes']} new votes")


def _made(config: Any, command: argparse.Namespace) -> Any:
    """The config that a command was given, by options and by file."""
    from kleash.config import read_yaml

    given = {key.removeprefix("field:"): value for key, value in vars(command).items() if key.startswith("field:")}
    options = {key: _value(value) for key, value in given.items() if value is not None and value is not False}
    from_file = read_yaml(command.config) if command.config else {}
    source = str(command.config) if command.config and not options else f"kleash {command.command}"
    return config.make({**from_file, **options}, source=source)


def _value(text: Any) -> Any:
    """`null` clears an option that has a default."""
    return None if text in ("null", "none") else text


def _print_results(folder: Any, *, as_json: bool) -> None:
    results = folder.record["results"]
    if as_json:
        print(json.dumps({"out": str(folder.path), "results": results, "gates": folder.record["gates"]}))
        return
    verdict = folder.record["gates"].get("out")
    if verdict:
        print(f"{'ok' if verdict['passed'] else 'FAILED'}: {verdict['finding']}", file=sys.stderr)
    if folder.record["stage"] == "overopt":
        from kleash.report.overoptimization_report import story

        print(f"{story(results)}\n{folder.path / 'report.html'}")
        return
    print(folder.path)


def _demo(command: argparse.Namespace) -> None:
    from kleash.lab.demo import run
    from kleash.report.html import methods_table, story

    summary = run(command.out, seed=command.seed, all_methods=command.all_methods)
    print(json.dumps(summary) if command.json else f"{story(summary)}\n\n{methods_table(summary)}")
    print(command.out / "report.html", file=sys.stderr if command.json else sys.stdout)


def _recipe(command: argparse.Namespace) -> None:
    from kleash.recipe import run_recipe

    for path in run_recipe(command.recipe, out=command.out):
        print(path)


def _inspect(command: argparse.Namespace) -> None:
    from itertools import islice

    from rich.console import Console

    from kleash.data.chat import encode_all
    from kleash.data.formats import read_groups
    from kleash.models.load import load_tokenizer
    from kleash.report.rows import show_rows

    tokenizer = load_tokenizer(command.model)
    groups = list(islice(read_groups(command.data), command.rows))
    encoded, truncation = encode_all(groups, tokenizer, max_length=command.max_length)
    show_rows(encoded, tokenizer, Console(), limit=command.rows)
    if truncation.message():
        print(truncation.message(), file=sys.stderr)


def _check(command: argparse.Namespace) -> None:
    from dataclasses import asdict

    from rich.console import Console

    from kleash.checks.artifact import check
    from kleash.errors import GateError
    from kleash.report.verdicts import show_findings

    findings = check(command.path, data=command.data, labeller=command.labeller, rows=command.rows)
    if command.json:
        print(json.dumps(asdict(findings)))
    else:
        show_findings(findings, Console())
    for name in findings.failed:
        found = findings.gates[name]
        raise GateError(f"{command.path}: gate {name} failed: {found['finding']}; {found.get('advice') or 'see above'}")


def _metavar(annotation: Any) -> str:
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not type(None)]
    if kinds and all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    names = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
    return names.get(kinds[0], "VALUE") if kinds else "VALUE"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value) if value != () else "none"


if __name__ == "__main__":
    main()
