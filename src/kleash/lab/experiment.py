"""The runner of experiments: arms, each measured at every seed, and tables of means with their standard errors.

An experiment of a claim (`lab/claims/`) defines what its arms share at a seed, how one arm is measured, and which
columns its tables have. The runner spreads seeds and arms over processes and keeps each arm's figures in a file, so
that an experiment that is started again measures only what is missing.
"""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Generic, TypeVar

from kleash.evals.policy_stats import mean_se
from kleash.io import read_json, write_json

A = TypeVar("A")

Figures = Mapping[str, float | None]
"""Figures of an arm by name; None or missing where a figure does not exist."""


@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[A]):
    """Arms, each measured at every seed.

    Both functions are called in other processes, so they are functions of a module and not closures.
    """

    name: str
    """The first part of its files' names."""
    arms: Mapping[str, A]
    """The settings of each arm, by its name."""
    prepare: Callable[[Path, int], object]
    """Makes what the arms of a seed share; called with the seed's folder and the seed."""
    measure: Callable[[Path, int, A], Figures]
    """Trains and measures one arm at one seed; called with the seed's folder, the seed and the arm's settings."""


@dataclass(frozen=True)
class Results:
    """Figures of each arm, one entry for each seed."""

    arms: Mapping[str, Sequence[Figures]]

    def select(self, condition: Callable[[str], bool]) -> Results:
        """Only the arms whose name meets a condition."""
        return Results({name: figures for name, figures in self.arms.items() if condition(name)})

    def less(self, baseline: Callable[[str], str]) -> Results:
        """Differences, seed by seed, of each arm from another one.

        Args:
            baseline: name of the arm to subtract; an arm that is its own baseline is left out.
        """
        return Results(
            {
                name: [subtract(*pair) for pair in zip(figures, self.arms[baseline(name)], strict=True)]
                for name, figures in self.arms.items()
                if baseline(name) != name
            }
        )

    def table(self, columns: Mapping[str, str], *, first: str, digits: int = 3) -> str:
        """A Markdown table: a row for each arm, mean ± standard error over seeds.

        Args:
            columns: names of the figures to show, and their headings.
            first: heading of the arms' names.
            digits: after the point.
        """
        rows = [
            [name, *(mean_and_error([row.get(column) for row in figures], digits) for column in columns)]
            for name, figures in self.arms.items()
        ]
        return markdown_table([first, *columns.values()], rows)


def run(experiment: Experiment[A], *, seeds: Sequence[int], out: Path, workers: int = 1) -> Results:
    """Run the missing arms and seeds of an experiment.

    Args:
        experiment: what to run.
        seeds: at which seeds.
        out: gets a folder `seed-N` for each seed, and NAME.json with all figures.
        workers: processes side by side; 1 runs everything in this one.
    """
    folders = [out / f"seed-{seed}" for seed in seeds]
    cases = list(product(zip(folders, seeds, strict=True), experiment.arms))
    run_in_parallel(experiment.prepare, list(zip(folders, seeds, strict=True)), workers)
    figures = run_in_parallel(measure_arm, [(experiment, *place, name) for place, name in cases], workers)
    results = Results(
        {
            name: [row for (_, other), row in zip(cases, figures, strict=True) if other == name]
            for name in experiment.arms
        }
    )
    write_json(
        out / f"{experiment.name}.json",
        [{name: rows[index] for name, rows in results.arms.items()} for index in range(len(seeds))],
    )
    return results


def measure_arm(experiment: Experiment[A], folder: Path, seed: int, name: str) -> Figures:
    """The figures of one arm at one seed: read from its file where there is one, else measured and written."""
    file = folder / f"{experiment.name}-{re.sub(r'[^a-z0-9.]+', '-', name.lower())}.json"
    if not file.exists():
        write_json(file, experiment.measure(folder, seed, experiment.arms[name]))
    figures: Figures = read_json(file)
    return figures


def run_in_parallel(function: Callable[..., A], cases: Sequence[tuple[object, ...]], workers: int) -> list[A]:
    """Call a function with the arguments of each case, in order; with one worker in this process."""
    if workers == 1:
        return [function(*case) for case in cases]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, *zip(*cases, strict=True)))


def subtract(figures: Figures, others: Figures) -> Figures:
    """Differences of the figures that both have."""
    return {
        name: value - other
        for name, value in figures.items()
        if value is not None and (other := others.get(name)) is not None
    }


# --- options and tables ----------------------------------------------------------------------------------------------


def parser(description: str | None, *, out: Path) -> ArgumentParser:
    """The options of every experiment.

    Args:
        description: help text.
        out: default of `--out`.
    """
    options = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    options.add_argument("--first", type=int, default=0, help="first seed (default: %(default)s)")
    options.add_argument("--out", type=Path, default=out, help="folder of all seeds (default: %(default)s)")
    options.add_argument("--workers", type=int, default=1, help="processes side by side (default: %(default)s)")
    return options


def run_from(experiment: Experiment[A], options: Namespace) -> Results:
    """`run` with the options of `parser`."""
    seeds = range(options.first, options.first + options.seeds)
    return run(experiment, seeds=seeds, out=options.out, workers=options.workers)


def mean_and_error(values: Iterable[float | None], digits: int = 3) -> str:
    """Mean ± standard error of the values that exist, as tables show it."""
    estimate = mean_se([value for value in values if value is not None])
    if estimate["mean"] is None:
        return "–"
    error = "" if estimate["se"] is None else f" ± {estimate['se']:.{digits}f}"
    return f"{estimate['mean']:.{digits}f}{error}".replace("-", "−")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are texts."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
