"""The command line. Every field of a stage's config is an option; `--config FILE` reads a YAML file of options.

Progress and messages go to stderr, results (and `--json`) to stdout. Exit codes: 0 done, 1 a check failed, 2 the input
is wrong, 3 the machine failed, 75 labels are still missing, 130 interrupted.

This module imports torch, transformers or datasets only after the options and the files that they name were validated,
so that help, a wrong option and a missing file are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import logging
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import kleash
from kleash import completion
from kleash.config import DATA, MODEL, REWARD, Config, parse_columns, read_yaml
from kleash.content import refuse_missing, refuse_missing_artifact
from kleash.errors import ConfigError, GateError, KleashError
from kleash.io import machine_failure
from kleash.option_groups import REQUIRED, groups_of, usage
from kleash.option_names import COMMANDS as COMMANDS_ELSEWHERE
from kleash.option_names import names_elsewhere, option, renamed
from kleash.outputs import results_of
from kleash.run import RunFolder
from kleash.stages import STAGES, Stage

C = TypeVar("C", bound=Config)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if completion.is_asked():
        completion.answer(lambda words: _parser([word for word in words if word in COMMANDS]))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("kleash").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    try:
        command = _parser(arguments).parse_args(_dashed(arguments))
        command.run(command)
    except KleashError as error:
        print(f"kleash: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("kleash: interrupted; finished work is kept, run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MemoryError, OSError, RuntimeError) as error:
        message = _machine_message(error)
        if message is None:
            raise
        print(f"kleash: {message}", file=sys.stderr)
        return 3
    return 0


def _machine_message(error: BaseException) -> str | None:
    text = str(error)
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory; lower --micro-batch-tokens (it changes no figure), or take a smaller model"
    return machine_failure(error) if isinstance(error, OSError) and error.errno is not None else None


# --- the commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One command that is not a stage."""

    name: str
    help: str
    options: Callable[[_Parser], None]
    run: Callable[[argparse.Namespace], None]
    example: str | None = None


def _demo_options(parser: _Parser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another world (default: %(default)s)")
    parser.add_argument(
        "--all-methods", action="store_true", help="best-of-n, online DPO and RLAIF too, which takes longer"
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of text")


def _demo(command: argparse.Namespace) -> None:
    from kleash.lab.demo import run
    from kleash.report.html import methods_table, story

    summary = run(command.out, seed=command.seed, all_methods=command.all_methods)
    print(json.dumps(summary) if command.json else f"{story(summary)}\n\n{methods_table(summary)}")
    print(command.out / "report.html", file=sys.stderr if command.json else sys.stdout)


def _recipe_options(parser: _Parser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="stages and their settings")
    parser.add_argument("--out", type=Path, help="folder to write to, in place of the recipe's")
    parser.add_argument(
        "--from", dest="redo_from", metavar="STAGE",
        help="do again what changed from this stage on, and what follows from it; earlier outputs are renamed",
    )  # fmt: skip
    _add_trust(parser)


def _recipe(command: argparse.Namespace) -> None:
    from kleash.recipe import run_recipe

    with _trusting(command):
        for path in run_recipe(command.recipe, out=command.out, redo_from=command.redo_from):
            print(path)


def _label_options(parser: _Parser) -> None:
    from kleash.web.label.serve import LabelConfig

    _add_fields(parser, LabelConfig)


def _label(command: argparse.Namespace) -> None:
    from kleash.web.label.serve import LabelConfig, run

    config = _config(LabelConfig, command)
    for source in (*config.data, *filter(None, (config.practice,))):
        refuse_missing(source, DATA)
    run(config)


def _import_options(parser: _Parser) -> None:
    parser.add_argument("--store", required=True, help="an SQLite file, made if missing, or a PostgreSQL URL")
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="DATA", help="rows with two or more responses, labelled or not"
    )
    parser.add_argument(
        "--annotator", metavar="NAME", help="labeller of the rows without an annotator (default: the file's name)"
    )
    _add_row_format(parser)


def _import(command: argparse.Namespace) -> None:
    for source in command.data:
        refuse_missing(source, DATA)
    from kleash.labels.open_store import open_store

    with open_store(command.store) as store:
        from kleash.labels.import_export import import_labels

        for source in command.data:
            new = import_labels(store, source, annotator=command.annotator, row_format=_row_format(command))
            print(f"{source}: {new}")


def _inspect_options(parser: _Parser) -> None:
    parser.add_argument("--model", required=True, help="whose tokenizer and chat template: a folder or a hub name")
    parser.add_argument(
        "--data", required=True, metavar="DATA", help="rows: a file, a saved `datasets` folder or a hub name"
    )
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="how many rows (default: %(default)s)")
    parser.add_argument("--max-length", type=int, metavar="N", help="cut as training with this --max-length would")
    _add_trust(parser)
    _add_row_format(parser)


def _inspect(command: argparse.Namespace) -> None:
    refuse_missing(command.model, MODEL)
    refuse_missing(command.data, DATA)
    from itertools import islice

    from rich.console import Console

    from kleash.data.chat import encode_all
    from kleash.data.formats import read_groups
    from kleash.data.unread_columns import unread_columns
    from kleash.models.load import load_tokenizer
    from kleash.report.rows import show_rows

    with _trusting(command):
        tokenizer = load_tokenizer(command.model)
    groups = list(islice(read_groups(command.data, row_format=_row_format(command)), command.rows))
    encoded, truncation = encode_all(groups, tokenizer, max_length=command.max_length)
    show_rows(encoded, tokenizer, Console(), limit=command.rows)
    if truncation.message():
        print(truncation.message(), file=sys.stderr)
    if unread := unread_columns(groups, tokenizer):
        print(f"columns that sft does not use: {', '.join(unread)}", file=sys.stderr)


def _add_row_format(parser: _Parser) -> None:
    """The options of the commands that read rows and are not stages."""
    parser.add_argument(
        "--columns", metavar="NAME=COLUMN,…", help="columns of the data, as prompt=question,response=answer"
    )
    parser.add_argument("--as-chat", action="store_true", help="make a prompt of plain text one turn of the user")


def _row_format(command: argparse.Namespace) -> Any:
    from kleash.data.row_format import RowFormat

    try:
        return RowFormat(parse_columns(command.columns), command.as_chat)
    except ValueError as error:
        raise ConfigError(f"--columns is {command.columns!r}, but should be {error}") from None


def _check_options(parser: _Parser) -> None:
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="a run's folder, a `transformers` folder, rows, or a reward: a verifier, module:function, a .yaml file",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="rows to measure on: prompts or demonstrations for a language model, comparisons for a reward model, "
        "answers or right and wrong responses for any reward",
    )
    parser.add_argument(
        "--labeller",
        metavar="REWARD",
        help="a reward in place of a labeller: how often would two of them agree about the model's samples?",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=128,
        metavar="N",
        help="most rows of --data to read (default: %(default)s)",
    )
    _add_trust(parser)
    _add_row_format(parser)
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def _check(command: argparse.Namespace) -> None:
    from kleash.rewards.reward_names import names_reward

    if names_reward(str(command.path)):
        refuse_missing(command.path, REWARD)
    else:
        refuse_missing_artifact(command.path)
    for name, kind in ((command.data, DATA), (command.labeller, REWARD)):
        if name is not None:
            refuse_missing(name, kind)
    from dataclasses import asdict

    from rich.console import Console

    from kleash.checks.artifact import check
    from kleash.report.check_tables import show_checks

    row_format = _row_format(command)
    with _trusting(command):
        findings = check(
            command.path, data=command.data, labeller=command.labeller, rows=command.rows, row_format=row_format
        )
    if command.json:
        print(json.dumps(asdict(findings)))
    else:
        show_checks(findings, Console())
    for name in findings.failed:
        entry = findings.gates[name]
        raise GateError(f"{command.path}: gate {name} failed: {entry['finding']}; {entry.get('advice') or 'see above'}")


def _completion_options(parser: _Parser) -> None:
    parser.add_argument("shell", metavar="|".join(completion.SHELLS), help="the shell that is to evaluate it")


def _completion(command: argparse.Namespace) -> None:
    print(completion.script(command.shell))


def _add_trust(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the Python code that a model's folder or repository brings; without it such a model is refused",
    )


def _trusting(command: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """Run the code of models where `--trust-remote-code` asks for it."""
    if not command.trust_remote_code:
        return contextlib.nullcontext()
    from kleash.models.place import trust_remote_code

    return trust_remote_code()


def _stage_command(stage: Stage) -> Command:
    def options(parser: _Parser) -> None:
        groups = _add_fields(parser, stage.config)
        _add_trust(groups.get("model", parser))
        groups.get("output", parser).add_argument("--json", action="store_true", help="print the run's results as JSON")

    def run(command: argparse.Namespace) -> None:
        config = _config(stage.config, command)
        for kind, name in config.references().values():
            refuse_missing(name, kind)
        from kleash.recipe import run_stage

        try:
            with _trusting(command):
                output = run_stage(stage.name, config)
        finally:
            if stage.name in ("judge", "revise"):  # a failed check of the labels has to be shown
                from kleash.report.label_tables import show

                show(getattr(config, "out"))  # noqa: B009
        if isinstance(output, RunFolder):
            _print_run(output, as_json=command.json)
        else:
            results = results_of(output)
            report = {"out": str(output)} | ({} if results is None else {"results": results})
            print(json.dumps(report) if command.json else output)

    return Command(stage.name, stage.help, options, run, stage.example)


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "demo",
            "run the whole chain on a small world, base model to report, in five minutes",
            _demo_options,
            _demo,
            "kleash demo --all-methods",
        ),
        Command(
            "run",
            "run a recipe, a YAML list of stages; a stage that is done is not run again",
            _recipe_options,
            _recipe,
            "kleash run recipes/sums.yaml",
        ),
        *map(_stage_command, STAGES.values()),
        Command(
            "label",
            "let people compare responses in a browser; serves until it is stopped",
            _label_options,
            _label,
            "kleash label --data samples.jsonl --store labels.db --guidelines guidelines.md --overlap 2",
        ),
        Command(
            "import",
            "add pairs and labels from files to a label store, each once",
            _import_options,
            _import,
            "kleash import --store labels.db --data old-labels.jsonl --annotator team-a",
        ),
        Command(
            "inspect",
            "show rows as the model sees them, each token coloured by its part in the loss",
            _inspect_options,
            _inspect,
            "kleash inspect --model runs/sft --data demonstrations.jsonl",
        ),
        Command(
            "check",
            "check a run, a model of any origin or a file of rows; exit code 1 if a check failed",
            _check_options,
            _check,
            "kleash check runs/sft --data demonstrations.jsonl",
        ),
        Command(
            "completion",
            "print the completion of commands, options and values for bash, zsh or fish",
            _completion_options,
            _completion,
            'eval "$(kleash completion bash)"',
        ),
    )
}
"""Every command, in the order of `kleash --help`."""


# --- options ---------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Argparse with no abbreviations and its errors in one line."""

    def __init__(self, **settings: Any) -> None:
        defaults: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**defaults | settings)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            getattr(parsed, "parser", self).refuse(rest[0])
        return parsed

    def refuse(self, word: str) -> NoReturn:
        """Refuse an unknown option and suggest the right one.

        Raises:
            ConfigError: always.
        """
        options = [name for action in self._actions for name in action.option_strings]
        name = renamed(word, {name.lstrip("-").replace("-", "_") for name in options})
        matches = difflib.get_close_matches(word.partition("=")[0], options, n=1)
        if name is not None:
            hint = name.on_the_command_line
        else:
            hint = f"did you mean {matches[0]}?" if matches else f"see `{self.prog} --help`"
        raise ConfigError(f"unknown option {word.partition('=')[0]}; {hint}")


def _parser(arguments: Sequence[str]) -> _Parser:
    """The parser; only the requested command gets its options."""
    parser = _Parser(
        prog="kleash",
        description="Post-training of language models from feedback: SFT, reward models, PPO, GRPO, DPO, "
        "LLM-as-a-judge,\nand measurement of reward over-optimisation.",
        epilog="Begin with `kleash demo`. `kleash COMMAND --help` explains a command and each of its options.",
    )
    parser.add_argument("--version", action="version", version=f"kleash {kleash.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    name = next((word for word in arguments if not word.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        _refuse_command(name)
    for command in COMMANDS.values():
        subparser: _Parser = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.help[0].upper() + command.help[1:] + ".",
            epilog=f"example:\n  {command.example}" if command.example else None,
        )
        subparser.set_defaults(run=command.run, parser=subparser)
        if command.name == name:
            command.options(subparser)
    return parser


def _refuse_command(name: str) -> NoReturn:
    elsewhere = COMMANDS_ELSEWHERE.get(name.lower().replace("_", "-"))
    matches = difflib.get_close_matches(name.lower().replace("_", "-"), COMMANDS, n=1)
    if elsewhere is not None:
        hint = elsewhere
    else:
        hint = f"did you mean `kleash {matches[0]}`?" if matches else "`kleash --help` lists the commands"
    raise ConfigError(f"there is no command '{name}'; {hint}")


def _dashed(arguments: Sequence[str]) -> list[str]:
    """Arguments with the options' underscores as dashes: `--learning_rate=1e-5` is `--learning-rate=1e-5`."""
    return [re.sub(r"^--[\w-]+(?==|$)", lambda match: match[0].replace("_", "-"), word) for word in arguments]


def _add_fields(parser: _Parser, config: type[Config]) -> dict[str, argparse._ArgumentGroup]:
    """An option for each field of a config, its docstring as help, with its name in other libraries; the groups of the
    help by title.
    """
    parser.description = f"{parser.description}\n\n{textwrap.fill(' '.join((config.__doc__ or '').split()), 100)}"
    fields = groups_of(config)
    required = [(option(name), _placeholder(config, name)) for name in fields.get(REQUIRED, ())]
    parser.usage = usage(parser.prog.split()[-1], required)
    groups = {title: parser.add_argument_group(title) for title in fields}
    for title, names in fields.items():
        for name in names:
            _add_field(groups[title], config, name)
    source = groups.get(REQUIRED, parser)
    source.add_argument("--config", type=Path, metavar="FILE", help="YAML of options; those given here win")
    return groups


def _add_field(group: argparse._ArgumentGroup, config: type[Config], name: str) -> None:
    field = config.model_fields[name]
    text = " ".join((field.description or "").split())
    if "{verifiers}" in text:
        from kleash.rewards.verifiers import verifiers

        text = text.replace("{verifiers}", ", ".join(verifiers()))
    text += "" if field.is_required() else f" (default: {_shown(field.default)})"
    text += _elsewhere(name)
    settings: dict[str, Any] = {"dest": f"field:{name}", "default": None, "help": text.replace("%", "%%")}
    if field.annotation is bool:
        settings["action"] = argparse.BooleanOptionalAction if field.default else "store_true"
    else:
        settings["metavar"] = _placeholder(config, name)
    for part in (field.annotation, *get_args(field.annotation)):
        if get_origin(part) is tuple:
            settings["nargs"] = "+" if Ellipsis in get_args(part) else len(get_args(part))
    action = group.add_argument(option(name), **settings)
    if values := _values(field.annotation):
        setattr(action, "completer", lambda **_: values)  # noqa: B010  (argcomplete's, which argparse does not know)


def _placeholder(config: type[Config], name: str) -> str:
    kind = config.kinds().get(name)
    return kind.metavar if kind is not None else _metavar(config.model_fields[name].annotation)


def _values(annotation: Any) -> list[str]:
    """The words that a field takes, as `tuple[Literal["a", "b"], ...] | None` does; none where any text may stand."""
    parts = get_args(annotation)
    if parts and all(isinstance(part, str) for part in parts):
        return list(parts)
    return [value for part in parts for value in _values(part)]


def _config(config: type[C], command: argparse.Namespace) -> C:
    """The config of a command, from its options and its `--config` file."""
    fields = {key.removeprefix("field:"): value for key, value in vars(command).items() if key.startswith("field:")}
    options = {key: _value(value) for key, value in fields.items() if value is not None and value is not False}
    from_file = read_yaml(command.config) if command.config else {}
    source = str(command.config) if command.config and not options else f"kleash {command.command}"
    return config.make({**from_file, **options}, source=source)


def _value(text: Any) -> Any:
    """`null` clears an option that has a default."""
    return None if text in ("null", "none") else text


def _elsewhere(name: str) -> str:
    """A field's name in other libraries, for its help: ` [TRL, LLaMA-Factory: num_train_epochs]`."""
    libraries: dict[str, list[str]] = {}
    for library, peer_name in names_elsewhere(name).items():
        libraries.setdefault(peer_name, []).append(library)
    return "".join(f" [{', '.join(those)}: {peer_name}]" for peer_name, those in libraries.items())


def _metavar(annotation: Any) -> str:
    if "dict" in str(annotation):
        return "NAME=COLUMN,…"
    parts = [part for part in get_args(annotation) or (annotation,) if part not in (type(None), Ellipsis)]
    if parts and all(isinstance(part, str) for part in parts):
        return "|".join(parts)
    if len(set(parts)) == 1 and get_args(parts[0]):  # `Literal[…] | None`, `tuple[Literal[…], ...]`
        return _metavar(parts[0])
    names = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
    return names.get(parts[0], "VALUE") if parts else "VALUE"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value) if value != () else "none"


# --- results ---------------------------------------------------------------------------------------------------------


def _print_run(folder: RunFolder, *, as_json: bool) -> None:
    results = folder.record["results"]
    if as_json:
        print(json.dumps({"out": str(folder.path), "results": results, "gates": folder.record["gates"]}))
        return
    verdict = folder.record["gates"].get("out")
    if verdict:
        from kleash.checks.check import MARKS

        print(f"{MARKS[verdict['passed']]}: {verdict['finding']}", file=sys.stderr)
    if folder.record["stage"] == "rank":
        print((folder.path / "ranking.txt").read_text())
    if folder.record["stage"] == "overopt":
        from kleash.report.overoptimization_report import story

        print(f"{story(results)}\n{folder.path / 'report.html'}")
        return
    print(folder.path)


if __name__ == "__main__":
    main()
