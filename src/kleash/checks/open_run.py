"""The start of a training stage: open its folder for its settings and inputs, and check its parents."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from torch import nn

from kleash.checks.gates import check_parents
from kleash.config import routes_of
from kleash.live import live_object
from kleash.models.live_copy import live_inputs
from kleash.rewards.build import reward_name
from kleash.rewards.identity import live_fingerprint
from kleash.run import RunFolder
from kleash.training.push import push, require_token
from kleash.training.settings import TrainingConfig
from kleash.training.trackers import require

P = ParamSpec("P")

_OPEN: list[RunFolder] = []
"""The runs that are going on in this process, the innermost last."""

_INSIDE: ContextVar[bool] = ContextVar("inside", default=False)
"""Whether a stage is running that calls this one, as an ensemble calls its members."""


def records_stop(run: Callable[P, RunFolder]) -> Callable[P, RunFolder]:
    """A stage whose run.json says why it stopped, whatever stops it; and whose model is pushed once it is finished, if
    that is asked for.
    """

    @wraps(run)
    def recorded(*arguments: P.args, **live: P.kwargs) -> RunFolder:
        is_member = _INSIDE.get()
        folder = recorded_run(*arguments, **live)
        repository = folder.record["config"].get("push_to_hub")
        if repository is not None and not is_member:
            push(folder, repository)
        return folder

    def recorded_run(*arguments: P.args, **live: P.kwargs) -> RunFolder:
        outer, token = len(_OPEN), _INSIDE.set(True)
        try:
            return run(*arguments, **live)
        except BaseException as error:
            for folder in _OPEN[outer:]:
                folder.stop(error)
            raise
        finally:
            _INSIDE.reset(token)
            del _OPEN[outer:]

    return recorded


def open_run(stage: str, config: TrainingConfig, **live: tuple[nn.Module, Any] | object | None) -> RunFolder:
    """Open the folder of a run: new, to be resumed, or finished.

    Args:
        stage: name of the stage in run.json.
        config: its settings. Fields of the kinds `ModelRef`, `RewardRef`, `DataRef` are hashed by content; models and
            rewards that the stage is built on must have passed their own checks.
        live: objects in place of what the config names, by field (`model=(model, tokenizer)`). A model is identified by
            its weights and settings, a reward by its code and what that refers to (`rewards/identity.py`).

    Raises:
        ConfigError: a tracker is not installed, or there is no token to push the model with.
        DataError: the folder holds another run.
        GateError: a parent failed its own checks; `force` continues.
    """
    require(config.trackers)
    require_token(config.push_to_hub)
    if config.adapter == "keep":
        from kleash.models.save_adapter import refuse_unnamed_base  # here: `peft` takes seconds to import

        refuse_unnamed_base(config.model)
    inputs = live_inputs(**live)
    others = {role: value for role, value in live.items() if value is not None and role not in inputs}
    inputs |= {role: live_fingerprint(value, reward_name(value)) for role, value in others.items()}
    folder = RunFolder.open(config.out, stage=stage, config=config, inputs=inputs)
    if not folder.finished:
        _OPEN.append(folder)
        for role, (kind, name) in config.references().items():
            if kind.parent:
                for part, parent in _parents(role, name).items():
                    check_parents(folder, role=part, parent=parent, force=config.force)
    return folder


def _parents(role: str, name: str) -> dict[str, str]:
    """The parent of a name; of rewards in memory those of them that are folders, each with its own role."""
    if (routes := routes_of(name)) is not None:
        return {f"{role}/{value}": reward for value, reward in routes.items()}
    live = live_object(name)
    if live is None or not isinstance(live.value, list):
        return {role: name}
    items = [item[0] if isinstance(item, tuple) else item for item in live.value]
    paths = [item.path if isinstance(item, RunFolder) else item for item in items]
    folders = [str(path) for path in paths if isinstance(path, str | Path) and Path(path).is_dir()]
    return {f"{role} {number}": folder for number, folder in enumerate(folders, start=1)} or {role: name}
