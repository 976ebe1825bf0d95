"""Functions as rewards: what they are given, what they may give, and that the one that runs is the one that identifies
the run.
"""

from __future__ import annotations

import asyncio
import functools
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kleash.content import reward_hash
from kleash.data.group import Group, Response
from kleash.errors import ConfigError, DataError, RewardError
from kleash.rewards.build import as_reward, reward_name
from kleash.rewards.function import FunctionReward
from kleash.rewards.reward import explain, faults, opinions
from kleash.rewards.trainer_state import TrainerState, set_trainer_state

GROUPS = [Group("x", (Response("a b"),))]


def module(folder: Path, value: float, name: str = "marks") -> None:
    """A module of one function that gives every completion the same score."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(
        f"def mark(prompts, completions, **columns):\n    return [{value}] * len(completions)\n"
    )


def test_a_module_of_the_same_name_imported_from_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, value in (("one", 1.0), ("other", 2.0)):
        module(tmp_path / place, value)
    monkeypatch.chdir(tmp_path / "one")
    assert FunctionReward("marks:mark")(GROUPS).tolist() == [[1.0]]
    first = reward_hash("marks:mark")
    monkeypatch.chdir(tmp_path / "other")
    assert reward_hash("marks:mark") != first
    with pytest.raises(ConfigError, match=r"already imported 'marks' from .*one/marks\.py, not from .*other/marks\.py"):
        FunctionReward("marks:mark")


def test_a_function_in_a_package_of_the_working_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path / "scoring" / "inner", 3.0)
    monkeypatch.chdir(tmp_path)
    assert FunctionReward("scoring.inner.marks:mark")(GROUPS).tolist() == [[3.0]]
    assert FunctionReward("kleash.lab.world:gold").function is not None


ROWS = [
    Group("x", (Response("a", ids=(7, 8)), Response("bb", finished=False)), None, {"answer": "1"}),
    Group(({"role": "user", "content": "y"},), (Response("ccc"), Response("dddd")), None, {"answer": "2"}),
]
LENGTHS = [[1.0, 2.0], [3.0, 4.0]]


def lengths(completions) -> list[int]:
    return [len(text if isinstance(text, str) else text[0]["content"]) for text in completions]


NUMBERS = {
    "python": lambda n: n,
    "numpy scalars": lambda n: [np.float32(x) for x in n],
    "numpy integers": lambda n: [np.int64(x) for x in n],
    "a numpy array": lambda n: np.array(n, dtype=np.float32),
    "a column": lambda n: np.array(n)[:, None],
    "arrays of no dimension": lambda n: [np.array(x) for x in n],
    "a tensor": torch.tensor,
    "a tensor of bfloat16": lambda n: torch.tensor(n, dtype=torch.bfloat16),
    "a tensor with a gradient": lambda n: torch.tensor(n, dtype=torch.float32, requires_grad=True) * 1,
    "a column of a tensor": lambda n: torch.tensor(n)[:, None],
    "tensors of no dimension": lambda n: [torch.tensor(x, dtype=torch.bfloat16) for x in n],
    "tensors of one number": lambda n: [torch.tensor([float(x)], requires_grad=True) for x in n],
    "decimals": lambda n: [Decimal(x) for x in n],
    "fractions": lambda n: [Fraction(x) for x in n],
    "a series": pd.Series,
    "a tuple": tuple,
    "a generator": lambda n: (x for x in n),
    "an iterator": lambda n: iter(n),
    "a map": lambda n: map(float, n),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_a_function_gives_numbers_of_any_kind(kind: str) -> None:
    reward = FunctionReward(lambda completions: NUMBERS[kind](lengths(completions)))
    scores, parts = explain(reward, ROWS)
    assert scores.tolist() == LENGTHS and scores.dtype == torch.float32 and not scores.requires_grad and not parts


def test_truth_values_are_numbers() -> None:
    assert FunctionReward(lambda completions: [n > 2 for n in lengths(completions)])(ROWS).tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize("null", [None, pd.NA])
def test_none_is_no_opinion_and_says_so(null: object) -> None:
    reward = FunctionReward(lambda completions: [null, 2.0, null, 4.0])
    scores, parts = explain(reward, ROWS)
    assert parts["no_opinion"].tolist() == [[1, 0], [1, 0]]
    assert scores.isnan().tolist() == [[True, False], [True, False]] and scores[0, 1] == 2
    assert opinions(reward, ROWS).isnan().tolist() == scores.isnan().tolist()


async def later(completions):
    await asyncio.sleep(0)
    return lengths(completions)


async def one_by_one(completions):
    for length in lengths(completions):
        yield length


class Later:
    async def __call__(self, completions, **columns):
        return await later(completions)

    def method(self, prompts, completions):
        return lengths(completions)


CALLABLES = {
    "a coroutine function": later,
    "an asynchronous generator": one_by_one,
    "an object": Later(),
    "a method": Later().method,
    "a lambda": lambda completions, **kwargs: lengths(completions),
    "a lambda of a coroutine": lambda completions: later(completions),
    "a partial": functools.partial(lambda factor, completions: [factor * n for n in lengths(completions)], 1),
    "a partial of a coroutine": functools.partial(later),
    "places only": eval("lambda prompts, completions, /: lengths(completions)", globals()),
    "names only": eval("lambda *, completions: lengths(completions)", globals()),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_any_callable_is_a_function_also_in_a_running_loop(kind: str) -> None:
    reward = as_reward(CALLABLES[kind])
    assert reward(ROWS).tolist() == LENGTHS

    async def in_a_notebook() -> list[list[float]]:
        return reward(ROWS).tolist()

    assert asyncio.run(in_a_notebook()) == LENGTHS


def test_a_fault_in_a_coroutine_names_its_line() -> None:
    async def fails(completions):
        raise KeyError("score")

    with pytest.raises(RewardError, match=r"raised KeyError: 'score' in .*test_function.py, line \d+ \(`raise KeyE"):
        FunctionReward(fails)(ROWS)


def test_a_function_gets_what_trl_gives_and_only_what_it_takes() -> None:
    seen = {}

    def whole(prompts, completions, completion_ids, answer, trainer_state, log_extra, log_metric, **others):
        seen.update(locals())
        log_extra("words", [1, 2, None, 4])
        log_metric("half", 0.5)
        return lengths(completions)

    set_trainer_state(TrainerState(3, 10))
    _, parts = explain(FunctionReward(whole), ROWS)
    assert seen["prompts"] == ["x", "x", [{"role": "user", "content": "y"}], [{"role": "user", "content": "y"}]]
    assert seen["completions"][1:3] == ["bb", [{"role": "assistant", "content": "ccc"}]]
    assert seen["completion_ids"] == [[7, 8], None, None, None] and seen["answer"] == ["1", "1", "2", "2"]
    assert seen["others"] == {"finished": [True, False, True, True]}
    assert (seen["trainer_state"].global_step, seen["trainer_state"].max_steps) == (3, 10)
    assert parts["words"][0].tolist() == [1, 2] and parts["words"].isnan().sum() == 1
    assert parts["half"].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    bound = functools.partial(lambda completions, answer: [float(answer)] * len(completions), answer="5")
    assert FunctionReward(bound)(ROWS).tolist() == [[5, 5], [5, 5]], "what is bound is not given again"


def test_a_column_that_a_function_takes_is_looked_for_in_every_row() -> None:
    rows = [*ROWS, Group("z", (Response("e"), Response("f")), None, {"other": 1})]
    needs = FunctionReward(lambda completions, answer: lengths(completions), name="needs")
    assert list(faults(needs, rows)) == [2]
    assert (
        "needs takes the column 'answer', and the row with prompt 'z' has none (its columns: 'other')"
        in faults(needs, rows)[2]
    )
    with pytest.raises(DataError, match="needs takes the column 'answer'"):
        needs(rows)
    for without in (lambda completions, answer=None: [], lambda completions, **columns: [], lambda completions: []):
        assert not faults(FunctionReward(without), rows)


def test_a_list_is_a_weighted_sum_in_which_each_is_logged_by_its_name() -> None:
    def brief(prompts, completions, **columns):
        return [-1.0 if n > 1 else None for n in lengths(completions)]

    reward = as_reward([("ended", 2.0), (brief, 0.5), lambda completions: [1.0] * 4, lambda completions: [2.0] * 4])
    scores, parts = explain(reward, ROWS)
    assert scores.tolist() == [[5, 2.5], [4.5, 4.5]]
    assert list(parts) == ["ended", "brief", "lambda", "lambda-2", "brief/no_opinion"]
    assert reward_name([("ended", 2.0), (brief, 0.5)]) == "ended+brief"
    with pytest.raises(ConfigError, match="is a float; give a name"):
        as_reward([0.5])


def test_a_callable_of_groups_is_a_reward_and_its_result_is_looked_at() -> None:
    assert as_reward(lambda groups: torch.ones(len(groups), 2))(ROWS).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(RewardError, match=r"gave a result of shape \[3\] for 2 prompts of 2 responses"):
        explain(as_reward(lambda groups: torch.ones(3)), ROWS)
    with pytest.raises(RewardError, match=r"gave a result \(list\) for 2 prompts"):
        explain(as_reward(lambda texts: [1.0]), ROWS)
    with pytest.raises(RewardError, match="is nan; a reward must give numbers"):
        opinions(lambda groups: torch.full((2, 2), torch.nan), ROWS)


def test_a_module_that_was_edited_since_it_was_imported_is_imported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    module(tmp_path, 1.0, "edited_here")
    assert FunctionReward("edited_here:mark")(GROUPS).tolist() == [[1.0]]
    module(tmp_path, 2.0, "edited_here")  # of the same size, within the same second
    assert FunctionReward("edited_here:mark")(GROUPS).tolist() == [[2.0]]
    module(tmp_path, 3.0, "imported_by_others")
    import imported_by_others  # type: ignore[import-not-found]

    module(tmp_path, 44.0, "imported_by_others")
    assert imported_by_others.mark([], [""]) == [3.0]
    assert FunctionReward("imported_by_others:mark")(GROUPS).tolist() == [[44.0]]
