"""The steps of a run, as an object that a stage iterates: it restores, shows, logs, saves and stops.

    loop = Loop(folder, total=steps, state={"model": model, "optimizer": optimizer})
    for step, groups in loop.over(batches):
        metrics = update(model, optimizer, groups)
        if loop.due_to_evaluate(step):
            metrics |= evaluate(model)
        loop.log(step, metrics)

An interrupted run resumes after its newest saved state with the same result: parts with a state are restored, and
everything else is a function of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from kleash.errors import ConfigError, MachineError, TrainingError
from kleash.io import remove
from kleash.models.finite import refuse_overflow
from kleash.progress import Progress
from kleash.run import RunFolder, StepMetrics
from kleash.training import checkpoint
from kleash.training.after_training import skip
from kleash.training.checkpoint import State
from kleash.training.trackers import Trackers

T = TypeVar("T")


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

    Attributes:
        step: steps done.
        stop: why the run ends before `total`; None while it continues. Set by the stage.
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
            skip(self.folder, "held-out rows after the last step", error)

    def log(self, step: int, metrics: Mapping[str, Any]) -> StepMetrics:
        """Write a step's metrics, show them, and hand them to the trackers; returns them as plain numbers."""
        row = self.folder.log(step, metrics)
        self._trackers.log(step, row)
        self._progress.update(step, **{name: row[name] for name in self.shown if row.get(name) is not None})
        return row

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
