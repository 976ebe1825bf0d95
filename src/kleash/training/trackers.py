"""Trackers besides metrics.jsonl (TensorBoard, W&B, trackio): each is an extra, imported only when requested.

A run keeps one id in its run.json, so that an interrupted run also continues in the tracker.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec
from typing import Any
from uuid import uuid4

from kleash.errors import ConfigError
from kleash.io import Json
from kleash.run import RunFolder

PROJECT = "kleash"
"""Project of a run in W&B and trackio, where it names none."""


class Trackers:
    """The trackers of one run; a context manager. Without names it does nothing.

    Args:
        names: any of `tensorboard`, `wandb`, `trackio`.
        folder: the run; TensorBoard and W&B write below it, trackio to its own folder.

    Raises:
        ConfigError: a tracker is unknown, or its extra is not installed.
    """

    def __init__(self, names: Sequence[str], folder: RunFolder) -> None:
        require(names)
        self._trackers = [_OPEN[name](folder) for name in dict.fromkeys(names)]

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hand on the numbers among a step's metrics."""
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float) and name != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, step)

    def close(self) -> None:
        """Flush and close the trackers."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []


def require(names: Iterable[str]) -> None:
    """Refuse a tracker that does not exist or is not installed; call it before work begins."""
    for name in names:
        if name not in _OPEN:
            raise ConfigError(f"trackers: there is no tracker {name!r}; choose from {', '.join(_OPEN)}")
        if find_spec(name) is None:
            raise ConfigError(f"trackers: {name} is not installed; pip install 'kleash[{name}]'")


class _TensorBoard:
    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._writer: Any = None

    def log(self, metrics: dict[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Points of an interrupted run after its checkpoint are about to be repeated.
            self._writer = SummaryWriter(str(self._folder.path / "tensorboard"), purge_step=step)
            config = json.dumps(_config(self._folder), indent=2)
            self._writer.add_text("config", f"```json\n{config}\n```", step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Run:
    """A run of W&B or of trackio, which have the same interface."""

    def __init__(self, run: Any, finish: Callable[[], None]) -> None:
        self._run = run
        self._finish = finish

    def log(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):  # trackio says goodbye on stdout, which is for results
            self._finish()


def _open_wandb(folder: RunFolder) -> _Run:
    import wandb

    config = _config(folder)
    run = wandb.init(
        project=config.get("tracker_project") or PROJECT, name=_name(folder), id=_identity(folder), resume="allow",
        dir=str(folder.path), tags=config.get("tracker_tags") or None, config=config,
    )  # fmt: skip
    return _Run(run, run.finish)


def _open_trackio(folder: RunFolder) -> _Run:
    import trackio

    config = _config(folder)
    with redirect_stdout(sys.stderr):
        run = trackio.init(
            project=config.get("tracker_project") or PROJECT, name=f"{_name(folder)}-{_identity(folder)}",
            resume="allow", config=config,
        )  # fmt: skip
    return _Run(run, trackio.finish)  # the run's own `finish` is called once more, and loudly, when Python ends


_OPEN: dict[str, Callable[[RunFolder], _TensorBoard | _Run]] = {
    "tensorboard": _TensorBoard,
    "wandb": _open_wandb,
    "trackio": _open_trackio,
}


def _identity(folder: RunFolder) -> str:
    identity: str = folder.record.get("trackers", {}).get("id") or uuid4().hex[:8]
    folder.note("trackers", id=identity)
    return identity


def _name(folder: RunFolder) -> str:
    return str(_config(folder).get("run_name") or folder.path.resolve().name)


def _config(folder: RunFolder) -> Json:
    config: Json = folder.record["config"]  # as JSON has it already
    return {"stage": folder.record["stage"], **config}
