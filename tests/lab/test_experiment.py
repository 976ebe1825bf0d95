"""The runner: every arm at every seed once, in any number of processes, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kleash.lab import experiment
from kleash.lab.experiment import Experiment, Figures, Results


def prepare(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seed").write_text(str(seed))


def measure(folder: Path, seed: int, factor: float) -> Figures:
    assert (folder / "seed").read_text() == str(seed), "prepared first"
    with (folder / "calls").open("a") as calls:
        calls.write(f"{factor}\n")
    return {"x": factor * (1 + 2 * seed), "missing": None}


EXPERIMENT = Experiment(name="trial", arms={"once": 1.0, "twice, at 50%": 2.0}, prepare=prepare, measure=measure)


def test_every_arm_is_measured_once_at_every_seed_and_stored(tmp_path):
    results = experiment.run(EXPERIMENT, seeds=range(2), out=tmp_path)
    assert results.arms == {
        "once": [{"x": 1.0, "missing": None}, {"x": 3.0, "missing": None}],
        "twice, at 50%": [{"x": 2.0, "missing": None}, {"x": 6.0, "missing": None}],
    }
    assert experiment.run(EXPERIMENT, seeds=range(2), out=tmp_path).arms == results.arms
    assert (tmp_path / "seed-1" / "calls").read_text().splitlines() == ["1.0", "2.0"]
    by_seed = json.loads((tmp_path / "trial.json").read_text())
    assert by_seed[1] == {"once": results.arms["once"][1], "twice, at 50%": results.arms["twice, at 50%"][1]}


@pytest.mark.slow
def test_more_processes_find_the_same(tmp_path):
    figures = [experiment.run(EXPERIMENT, seeds=range(2), out=tmp_path / str(n), workers=n).arms for n in (1, 2)]
    assert figures[0] == figures[1]


def test_a_table_has_means_and_standard_errors_over_seeds():
    results = Results({"a": [{"x": 1.0}, {"x": 3.0}], "b": [{"x": -1.0}, {"x": -1.0}], "c": [{"x": None}, {}]})
    assert results.table({"x": "figure"}, first="who").splitlines() == [
        "| who | figure |", "|---|---|", "| a | 2.000 ± 1.000 |", "| b | −1.000 ± 0.000 |", "| c | – |",
    ]  # fmt: skip
    assert (
        results.select(lambda name: name == "b").table({"x": "figure"}, first="who", digits=1).endswith("−1.0 ± 0.0 |")
    )


def test_differences_are_taken_seed_by_seed():
    results = Results({"a": [{"x": 1.0}, {"x": 3.0}], "b": [{"x": 2.0, "y": 1.0}, {"x": 3.5, "y": None}]})
    assert results.less(lambda _: "a").arms == {"b": [{"x": 1.0}, {"x": 0.5}]}
