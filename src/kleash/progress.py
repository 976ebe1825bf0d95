"""Progress of long work: a bar with live figures on stderr in a terminal and below the cell in a notebook, a plain line
now and then in a log.

Work of less than two seconds shows nothing. One display serves all running work, so that a sampler's bar appears under
the bar of the stage that called it. stdout is left to results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from time import monotonic
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import Tensor

SHOW_AFTER = 2.0
"""Seconds of work before anything is shown."""
LINE_EVERY = 10.0
"""Seconds between two lines where stderr is not a terminal."""


class Progress:
    """Steps done of a total, time taken and left, and the latest figures; a context manager.

    It never raises: a failing display must not stop the work.

    Args:
        total: steps of the whole work.
        title: the work, in a word or two.
        start: steps done before an interruption; they do not count for the speed.
    """

    def __init__(self, total: int, title: str, *, start: int = 0) -> None:
        self.total = total
        self.title = title
        self.start = start
        self.step = start
        self.figures: dict[str, str | float | Tensor] = {}
        self._began = monotonic()
        self._ended: float | None = None

    def __enter__(self) -> Progress:
        self._began = monotonic()
        _display.add(self)
        return self

    def update(self, step: int, **figures: str | float | Tensor) -> None:
        """Set the number of steps done; a figure stays until it is updated."""
        self.step = step
        self.figures.update(figures)
        _display.line(self)

    def __exit__(self, *error: object) -> None:
        self._ended = monotonic()
        _display.remove(self)

    @property
    def seconds(self) -> float:
        """Seconds taken so far."""
        return (self._ended or monotonic()) - self._began

    @property
    def clock(self) -> str:
        """Time taken, and time left at the mean speed so far while there is any."""
        steps, remaining = self.step - self.start, self.total - self.step
        if steps <= 0 or remaining <= 0 or self._ended:
            return _time(self.seconds)
        return f"{_time(self.seconds)}, {_time(self.seconds / steps * remaining)} left"

    @property
    def text(self) -> str:
        """The figures in one line."""
        return "  ".join(f"{name} {_figure(value)}" for name, value in self.figures.items())


class _Display:
    """All running work, the outermost first; the outermost opens and closes the display."""

    def __init__(self) -> None:
        self._work: list[Progress] = []
        self._live: Live | _Cell | None = None
        self._last_line = 0.0

    def add(self, progress: Progress) -> None:
        self._work.append(progress)
        if len(self._work) > 1:
            return
        self._last_line = monotonic()
        with suppress(Exception):
            console = Console(stderr=True)
            if console.is_jupyter:
                self._live = _Cell(self._render)
            elif sys.stderr.isatty() and not console.is_dumb_terminal:
                # Results on stdout stay there: rich would redirect them to stderr.
                live = Live(get_renderable=self._render, console=console, refresh_per_second=4, redirect_stdout=False)
                live.start()
                self._live = live

    def remove(self, progress: Progress) -> None:
        if progress not in self._work:  # a generator that was left open ends after the work around it
            return
        outermost = self._work[0] is progress
        self.line(progress, last=outermost)
        if not outermost:
            self._work.remove(progress)
            return
        live, self._live = self._live, None
        if live:
            with suppress(Exception):
                live.transient = not self._shown()  # the bar of long work stays on the screen
                live.stop()
        self._work.clear()

    def line(self, progress: Progress, *, last: bool = False) -> None:
        """In a log: a line if the last one is a while ago, and one for the end of long work; in a notebook the bar."""
        if isinstance(self._live, _Cell):
            with suppress(Exception):
                self._live.refresh()
        due = progress.seconds >= SHOW_AFTER if last else monotonic() - self._last_line >= LINE_EVERY
        if self._live or not due:
            return
        self._last_line = monotonic()
        around = self._work[: self._work.index(progress) + 1] if progress in self._work else [progress]
        title = " > ".join(f"{work.title} {work.step}/{work.total}" for work in around)
        with suppress(Exception):
            print(
                "  ".join(part for part in (title, progress.clock, progress.text) if part), file=sys.stderr, flush=True
            )

    def _shown(self) -> list[Progress]:
        return [progress for progress in list(self._work) if progress.seconds >= SHOW_AFTER]

    def _render(self) -> Table | Group:
        visible = self._shown()
        if not visible:
            return Group()
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for _ in range(4):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for work in visible:
            bar = ProgressBar(total=max(work.total, 1), completed=work.step, width=20)
            steps = f"{work.step}/{work.total}"
            table.add_row(Text(work.title), bar, Text(steps), Text(work.clock, "cyan"), Text(work.text, "dim"))
        return table


class _Cell:
    """The display below a notebook's cell; it appears with the first work that is shown and stays as it was last."""

    transient = False

    def __init__(self, render: Callable[[], Table | Group]) -> None:
        self._render = render
        self._handle: Any = None
        self._last = monotonic()

    def refresh(self, *, least: float = 0.5) -> None:
        """Show the work as it is, unless it was shown less than `least` seconds ago."""
        table = self._render()
        if monotonic() - self._last < least or isinstance(table, Group):
            return
        self._last = monotonic()
        from IPython.display import HTML, display

        console = Console(file=StringIO(), record=True, width=110, force_terminal=True, force_jupyter=False)
        console.print(table)
        code = '<pre style="line-height:normal;white-space:pre;overflow-x:auto">{code}</pre>'
        bar = HTML(console.export_html(inline_styles=True, code_format=code))
        if self._handle is None:
            self._handle = display(bar, display_id=True)
        else:
            self._handle.update(bar)

    def stop(self) -> None:
        """Show the end of the work."""
        self.refresh(least=0.0)


_display = _Display()


def _figure(value: str | float | Tensor) -> str:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()  # here and not at every step: a figure crosses to the host only when it is shown
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
