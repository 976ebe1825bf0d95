"""Where a model's files are: a folder, or a name on the hub; and how `transformers` is asked for them.

A path is only read from the disk; only a name that is not an existing path contacts the hub (F17). Python code that a
model brings is run only inside `trust_remote_code`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from kleash.config import MODEL
from kleash.content import ADAPTER, cached_commit, refuse_missing
from kleash.errors import KleashError, ModelError
from kleash.live import live_object

_remote_code: ContextVar[bool] = ContextVar("remote code", default=False)


@contextlib.contextmanager
def trust_remote_code(trust: bool = True) -> Iterator[None]:
    """Run the Python code that a model's folder or repository brings; otherwise such a model is refused."""
    token = _remote_code.set(trust)
    try:
        yield
    finally:
        _remote_code.reset(token)


def model_file(model: str | Path, name: str) -> Path | None:
    """One file of a model's folder or hub name; None where it has no such file."""
    if live_object(model) is not None:
        return None
    place = Path(model).expanduser()
    if place.is_dir():
        return place / name if (place / name).is_file() else None
    settings = settings_of(model)
    try:
        file = cached_file(
            str(model), name, revision=settings.get("revision"), _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # neither in the cache nor on the hub; loading raises the user's message
        return None
    return None if file is None else Path(file)


def adapter_folder(model: str | Path) -> Path | None:
    """The folder of an adapter, in the hub's cache for a hub name; None where the model is not an adapter."""
    config = model_file(model, ADAPTER)
    if config is None:
        return None
    if not Path(model).expanduser().is_dir():
        weights = (model_file(model, f"adapter_model.{ending}") for ending in ("safetensors", "bin"))
        next((file for file in weights if file is not None), None)
    return config.parent


def config_of(model: str | Path) -> PretrainedConfig:
    """The config of a model (not of an adapter)."""
    if (live := live_object(model)) is not None:
        live_config: PretrainedConfig = live.value[0].config
        return live_config
    with loading(model):
        config: PretrainedConfig = AutoConfig.from_pretrained(name_of(model), **settings_of(model))
    return config


def name_of(model: str | Path) -> str:
    """What `transformers` is asked for: a folder, or the hub name itself."""
    place = Path(model).expanduser()
    return str(place) if place.is_dir() else str(model)


def settings_of(model: str | Path) -> dict[str, Any]:
    """How `transformers` is asked for it: from the disk only, or at which commit; and whether its code may run.

    Raises:
        ModelError: the name can only be a path, and there is no such folder.
    """
    trust = {"trust_remote_code": _remote_code.get()}  # None would ask on stdin
    if Path(model).expanduser().is_dir():
        return {"local_files_only": True, **trust}
    refuse_missing(model, MODEL)
    commit = cached_commit(str(model))  # the commit in the run's identity, even if the hub has a newer one
    return trust if commit is None else {"revision": commit, **trust}


@contextlib.contextmanager
def loading(model: str | Path) -> Iterator[None]:
    """Turn whatever fails while a model is read into a `ModelError` of one line."""
    try:
        with quiet():
            yield
    except (KleashError, MemoryError):
        raise
    except Exception as error:  # of many kinds: from the reader of a file, the hub's client, the model's own code
        if "out of memory" in str(error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise  # the machine's fault, not the model's
        lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()] or [type(error).__name__]
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{model} brings Python code that would have to run to load it (auto_map in its config.json); read the "
                "code, and add --trust-remote-code if you trust it"
            ) from None
        reason = lines[0].rstrip(".")
        raise ModelError(f"{model}: cannot be loaded ({reason}); give a folder with a model or a hub name") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars and warnings of `transformers` about intended changes (a new head, say)."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
