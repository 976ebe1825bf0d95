"""The steps of a run, as an object that a stage iterates: it restores, shows, logs, saves and stops.

    loop = Loop(folder, total=steps, state={"model": model, "optimizer": optimizer})
    for step, groups in loop.over(batches):
        metrics = update(model, optimizer, groups)
        metrics |= loop.evaluated(step, lambda step: evaluate(model))
        loop.log(step, metrics)

An interrupted run resumes after its newest saved state with the same result: parts with a state are restored, and
everything else is a function of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from torch import nn

from kleash.errors import ConfigError, MachineError, OnStepError, TrainingError
from kleash.io import remove
from kleash.models.finite import refuse_overflow
from kleash.progress import Progress
from kleash.run import RunFolder, StepMetrics
from kleash.training import checkpoint
from kleash.training.after_training import skipped
from kleash.training.checkpoint import State
from kleash.training.trackers import Trackers

T = TypeVar("T")

OnStep = Callable[[int, dict[str, float]], Literal["stop"] | None]
"""A function of the user's that sees each step and its figures once they are logged, and may end the run."""


class Loop:
    """The steps that are still to be done.

    Args:
        folder: the run; its newest state is loaded into `state`, its logs are rewound to it.
        total: steps in all.
        state: the parts with a state, by name.
        shown: metrics that the progress bar shows.
        save_every: steps between saved states; None: a tenth of the run.
        keep_states: how many of those states to keep at the end; before, at least one.
        eval_every: steps between measurements on held-out rows; None: only at the end.
        trackers: destinations of metrics besides metrics.jsonl.
        on_step: called after a step is logged; where it returns "stop" the run ends with what it has.

    Attributes:
        step: steps done.
        stop: why the run ends before `total`; None while it continues. Set by the stage, and by `on_step`.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        total: int,
        state: State,
        shown: Sequence[str] = (),
        save_every: int | None = None,
        keep_states: int = 0,
        eval_every: int | None = None,
        trackers: Sequence[str] = (),
        on_step: OnStep | None = None,
    ) -> None:
        self.folder, self.total, self.shown, self.eval_every = folder, total, shown, eval_every
        self.save_every, self.keep_states = save_every or max(1, total // 10), max(1, keep_states)
        self.state = state
        numbers = checkpoint.restore(folder, state)
        self.step: int = numbers["step"]
        if self.step > total:
            raise ConfigError(
                f"{folder.path} has done {self.step} steps, more than the {total} that these settings ask for; give "
                f"--max-steps {self.step} or more"
            )
        self.stop: str | None = numbers.get("stop")
        folder.note("training", steps=total)
        self.on_step = on_step
        self._measure: Callable[[int], StepMetrics] | None = None
        self._saved: int | None = None
        self._progress = Progress(total, folder.record["stage"], start=self.step)
        self._trackers = Trackers(trackers, folder)

    def __iter__(self) -> Iterator[int]:
        """The numbers of the steps, from 1; after each the state is saved where that is due, and once at the end."""
        if self.step < self.total and self.stop is None:
            remove(self.folder.path / "measured")  # of fewer steps
        with self._progress, self._trackers:
            while self.step < self.total and self.stop is None:
                yield self.step + 1
                self.step += 1
                if self._saved == self.step - 1:  # a step could be taken from that state, so it is good
                    checkpoint.drop_old(self.folder, keep=self.keep_states)
                if self.step % self.save_every == 0 and self.step < self.total and self.stop is None:
                    self.save()
        self.save()
        self.folder.note("results", ended=self.stop or "all steps done")

    def over(self, source: Iterable[T]) -> Iterator[tuple[int, T]]:
        """Each step with the next item of a source, which has its own state if it needs one."""
        items = iter(source)
        for step in self:
            yield step, next(items)

    def due_to_evaluate(self, step: int) -> bool:
        """Whether the held-out rows are to be measured after this step: where it is due, and at the end."""
        return (
            step == self.total or self.stop is not None or (self.eval_every is not None and step % self.eval_every == 0)
        )

    def evaluated(self, step: int, measure: Callable[[int], StepMetrics]) -> StepMetrics:
        """The figures of `measure` where the held-out rows are to be measured after this step; elsewhere none, but for
        the step after which `on_step` ends the run (`log`).
        """
        self._measure = measure
        if not self.due_to_evaluate(step):
            return {}
        self._measure = None
        figures: StepMetrics = {}
        with self.measuring(step):
            figures = measure(step)
        return figures

    @contextmanager
    def measuring(self, step: int) -> Iterator[None]:
        """Around the measurement on held-out rows: after the last step a fault of it costs the figures, not the run."""
        try:
            yield
        except (MachineError, TrainingError):
            raise
        except Exception as error:
            if step < self.total and self.stop is None:
                raise
            skipped("held-out rows after the last step", error, self.folder)

    def log(self, step: int, metrics: Mapping[str, Any]) -> StepMetrics:
        """Write a step's metrics, show them, hand them to the trackers and to `on_step`; returns them as plain numbers.

        Raises:
            OnStepError: `on_step` raised an exception; the state after this step is saved first.
        """
        row = self._write(step, metrics)
        if self._asks_to_stop(step, row) and self.stop is None:
            self.stop = "on_step asked to stop"
            if self._measure is not None:  # the last step of a run is measured
                self.folder.rewind(step - 1)
                with self.measuring(step):
                    row |= self._measure(step)
                row = self._write(step, row)
        return row

    def _write(self, step: int, metrics: Mapping[str, Any]) -> StepMetrics:
        row = self.folder.log(step, {name: value for name, value in metrics.items() if name != "step"})
        self._trackers.log(step, row)
        self._progress.update(step, **{name: row[name] for name in self.shown if row.get(name) is not None})
        return row

    def _asks_to_stop(self, step: int, row: StepMetrics) -> bool:
        if self.on_step is None:
            return False
        figures = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        try:
            reply = self.on_step(step, {name: value for name, value in figures.items() if name != "step"})
        except Exception as error:
            self.step = step
            self.save()
            message = " ".join(str(error).split())[:200]
            raise OnStepError(
                f"on_step raised {type(error).__name__}{f': {message}' if message else ''} after step {step}; the "
                "state is saved, and the same call goes on from there"
            ) from error
        return reply == "stop"

    def save(self) -> None:
        """Write the state to resume from; the one before it is kept until a step was taken from this one.

        Raises:
            TrainingError: a model's weights or outputs are not finite; the state before is kept.
        """
        for model in self.state.values():
            if isinstance(model, nn.Module):
                refuse_overflow(model, f"after step {self.step}")
        checkpoint.save(self.folder, self.step, self.state, keep=self.keep_states + 1, stop=self.stop)
        self._saved = self.step
