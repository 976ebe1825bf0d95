"""The arguments of a stage's function: names, live objects, settings; as values of its config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from kleash.config import Config, Kind, Settings, routed_text
from kleash.errors import ConfigError, described
from kleash.live import LiveObject
from kleash.run import RunFolder


def config_values(config: type[Config], arguments: Mapping[str, Any]) -> tuple[Settings, list[LiveObject]]:
    """The arguments as values of a config, and the objects that they name.

    Args:
        config: its fields' kinds say what may be passed for a name: rows for data, a model, a run, a function.
        arguments: by field.

    Raises:
        InputError: an object that is none of what its field takes; one line.
    """
    values: Settings = {}
    objects: list[LiveObject] = []
    kinds = config.kinds()
    for name, value in arguments.items():
        kind = kinds.get(name)
        several = _takes_several(config, name)
        if kind is None or value is None:
            values[name] = (value,) if several and isinstance(value, str) else _setting(value)
            continue
        listed = several and isinstance(value, list | tuple) and _are_names(value)
        items = [_reference(item, kind, name) for item in (value if listed else [value])]
        objects += [item for item in items if isinstance(item, LiveObject)]
        texts = [item.name if isinstance(item, LiveObject) else item for item in items]
        values[name] = tuple(texts) if several else texts[0]
    return values, objects


def _takes_several(config: type[Config], name: str) -> bool:
    """Whether a field takes any number of values."""
    annotation = config.model_fields[name].annotation
    parts = (annotation, *get_args(annotation))
    return any(get_origin(part) is tuple and get_args(part)[-1] is Ellipsis for part in parts)


def _are_names(value: Any) -> bool:
    """Whether a list is one of sources, and not of rows."""
    return all(isinstance(item, str | os.PathLike | RunFolder) or hasattr(item, "features") for item in value)


def _reference(value: Any, kind: Kind, argument: str) -> str | LiveObject:
    """A name, or an object in place of one."""
    if isinstance(value, RunFolder):
        return str(value.path)
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if kind.name == "data":
        from kleash.data.live_rows import live_rows

        return live_rows(value, argument=argument)
    if kind.name == "model":
        return _model(value, argument)
    if kind.name == "reward":
        from kleash.rewards.build import check_reward
        from kleash.rewards.identity import reward_identity

        if isinstance(value, Mapping) and all(isinstance(item, str | os.PathLike) for item in value.values()):
            return _routed(value, argument)
        check_reward(value, argument)
        return LiveObject("reward", value, reward_identity(value))
    raise ConfigError(f"{argument} is {described(value)}; give a path")


def _routed(value: Mapping[Any, Any], argument: str) -> str:
    try:
        return str(routed_text(value))
    except ValueError as error:
        raise ConfigError(f"{argument} should be {error}") from None


def _model(value: Any, argument: str) -> LiveObject:
    from kleash.models.live_copy import live_model

    model = live_model(value)
    if model is None:
        raise ConfigError(
            f"{argument} is {described(value)}; give a folder, a hub name, a run, (model, tokenizer) or a model "
            "of `transformers` or `peft`"
        )
    return model


def _setting(value: Any) -> Any:
    """A setting as a config takes it: numbers of numpy and torch as Python's, a type or device of torch by its name."""
    if isinstance(value, Path | str | bool | int | float | None):
        return value
    if isinstance(value, RunFolder):
        return value.path
    if type(value).__module__.partition(".")[0] == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value
