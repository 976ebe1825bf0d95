"""The stages as functions: `kleash.sft(model=…, data=rows, out="runs/sft", max_steps=100)`.

The keyword arguments are the fields of the stage's config, so that there is one list of settings for the command line,
YAML and Python. Where a config has a name, a function takes the object too. A config is taken as well, and then the
stage's own `run` is called with it as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from kleash.api.arguments import config_values
from kleash.config import Config, shorten
from kleash.errors import ConfigError, Interrupted, described
from kleash.live import named
from kleash.option_names import renamed
from kleash.run import RunFolder
from kleash.stages import STAGES

MODULES = {"reward": "reward_ensemble"}
"""The module of a stage that is not named like it."""

BESIDE: Mapping[str, tuple[str, ...]] = {
    "sft": ("policy", "on_step"), "reward": ("reward", "on_step"), "ppo": ("policy", "on_step"),
    "grpo": ("policy", "on_step"), "dpo": ("policy", "on_step"), "generate": ("policy",), "best-of-n": ("policy",),
    "judge": ("chat",), "revise": ("chat",),
}  # fmt: skip
"""What a stage takes besides its config's fields."""

ARGUMENTS = {
    "policy": (
        "Live | None",
        "A live model and tokenizer that are themselves trained, in place of a copy of `model`: they change.",
    ),
    "reward": ("Live | None", "A live classifier and tokenizer that are themselves trained, in place of `model`."),
    "chat": ("Chat | None", "A live chat model in place of `model`."),
    "on_step": (
        "OnStep | None",
        'Called as on_step(step, figures) after each step is logged; where it returns "stop" the run ends with what '
        "it has.",
    ),
}
"""Types and meanings of `BESIDE`."""


@cache
def stage_function(name: str) -> Callable[..., Any]:
    """The function of a stage, with its signature and documentation."""
    config = config_of(name)

    def function(config: Any = None, /, **arguments: Any) -> Any:
        return _call(name, config, arguments)

    function.__name__ = function.__qualname__ = name
    function.__module__ = "kleash"
    function.__doc__ = documentation(name)
    empty = inspect.Parameter.empty
    fields = [
        inspect.Parameter(
            field, inspect.Parameter.KEYWORD_ONLY, annotation=_short(str(info.annotation)),
            default=empty if info.is_required() else info.default,
        )
        for field, info in config.model_fields.items()
    ]  # fmt: skip
    others = [
        inspect.Parameter(other, inspect.Parameter.KEYWORD_ONLY, annotation=ARGUMENTS[other][0], default=None)
        for other in beside_of(name)
    ]
    required = [field for field in fields if field.default is empty]
    optional = [field for field in fields if field.default is not empty]
    signature = inspect.Signature([*required, *optional, *others])
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


def config_of(name: str) -> type[Config]:
    """The config of a stage's function."""
    if name == "label":
        from kleash.web.label.serve import LabelConfig

        return LabelConfig
    return STAGES[name.replace("_", "-")].config


def beside_of(name: str) -> tuple[str, ...]:
    """What a stage's function takes besides the fields of its config."""
    return BESIDE.get(name.replace("_", "-"), ())


def documentation(name: str) -> str:
    """The docstring of a stage's function: what it does, and every argument."""
    stage = STAGES.get(name.replace("_", "-"))
    config = config_of(name)
    title = stage.help if stage is not None else "people compare responses in a browser, until you interrupt"
    lines = [f"{title[0].upper()}{title[1:]}.", "", " ".join((config.__doc__ or "").split()), "", "Args:"]
    for field, info in config.model_fields.items():
        lines.append(f"    {field}: {_documented(info.description or '')}")
    lines += [f"    {other}: {ARGUMENTS[other][1]}" for other in beside_of(name)]
    if stage is not None:
        what = "The run." if stage.writes in ("model", "page") else "The path of what was written."
        lines += ["", "Returns:", f"    {what}"]
    lines += ["", "Raises:", "    KleashError: one line that says what is wrong and what would be right."]
    return "\n".join(lines)


def _documented(text: str) -> str:
    from kleash.rewards.verifiers import verifiers

    return " ".join(text.split()).replace("{verifiers}", ", ".join(verifiers()))


def _short(annotation: str) -> str:
    return annotation.removeprefix("<class '").removesuffix("'>").replace("typing.", "").replace("pathlib.", "")


def _call(name: str, config: Any, arguments: dict[str, Any]) -> Any:
    run = _run_of(name)
    source = f"kleash.{name}"
    try:
        if isinstance(config, Config):
            _refuse_beside_a_config(name, config, arguments, run)
            return _result(run(config, **arguments))
        if config is not None:
            raise ConfigError(
                f"{source}: got {shorten(repr(config))} without a name; name each argument, as {source}(out=…)"
            )
        settings, others, objects = _make(name, arguments, source)
        with named(objects):
            return _result(run(settings, **others))
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):
            raise
        out = getattr(config, "out", None) or arguments.get("out")
        raise Interrupted(f"{out}: interrupted; finished work is kept, and the same call goes on from it") from None


def _make(name: str, arguments: dict[str, Any], source: str) -> tuple[Config, dict[str, Any], list[Any]]:
    """The config, what goes beside it, and the objects that it names."""
    config = config_of(name)
    others = {key: arguments.pop(key) for key in beside_of(name) if key in arguments and key not in config.model_fields}
    others = {key: value for key, value in others.items() if value is not None}
    for role in ("policy", "reward"):
        if role in others:
            others[role] = _pair(others[role], f"{source}: {role}")
            arguments.setdefault("model", f"live {type(others[role][0]).__name__}")
    if "on_step" in others:
        _refuse_on_step(others["on_step"], source)
    if others.get("chat") is not None:
        arguments.setdefault("model", str(getattr(others["chat"], "name", "live chat model")))
    for key in arguments:
        if key not in config.model_fields and renamed(key, config.model_fields) is None:
            close = get_close_matches(key, [*config.model_fields, *beside_of(name)], n=1)
            if close and close[0] not in config.model_fields:
                raise ConfigError(f"{source}: unknown key '{key}'; did you mean '{close[0]}'?")
    fields = {key: value for key, value in arguments.items() if key in config.model_fields}
    values, objects = config_values(config, fields)
    return config.make({**arguments, **values}, source=source), others, objects


def _pair(value: Any, where: str) -> Any:
    """A live model and its tokenizer."""
    from kleash.models.live_copy import live_model

    live = live_model(value)
    if live is None:
        raise ConfigError(f"{where} is {described(value)}; give (model, tokenizer)")
    return live.value


def _refuse_on_step(on_step: Any, source: str) -> None:
    """Refuse what cannot be called with a step and its figures, before the training."""
    if not callable(on_step):
        raise ConfigError(f"{source}: on_step is {described(on_step)}; give a function of (step, figures)")
    try:
        signature = inspect.signature(on_step)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(1, {})
    except TypeError as error:
        raise ConfigError(f"{source}: on_step{signature} cannot be called as on_step(step, figures): {error}") from None


def _refuse_beside_a_config(name: str, config: Config, arguments: dict[str, Any], run: Callable[..., Any]) -> None:
    parameters = set(inspect.signature(run).parameters)
    if unknown := [key for key in arguments if key not in parameters]:
        remedy = (
            f"put '{unknown[0]}' into the {type(config).__name__}"
            if unknown[0] in type(config).model_fields
            else (f"known beside a config: {', '.join(sorted(parameters - {'config'})) or 'nothing'}")
        )
        raise ConfigError(f"kleash.{name}: unknown key '{unknown[0]}' beside a config; {remedy}")
    if not isinstance(config, config_of(name)):
        raise ConfigError(f"kleash.{name}: got {described(config)}; give a {config_of(name).__name__}")


def _run_of(name: str) -> Callable[..., Any]:
    if name == "label":
        return import_module("kleash.web.label.serve").run
    stage = name.replace("_", "-")
    return import_module(f"kleash.stages.{MODULES.get(stage, name)}").run


def _result(output: RunFolder | Path | None) -> Any:
    if not isinstance(output, RunFolder):
        return output
    from kleash.api.finished import Run

    return Run(output.path, output.record)
