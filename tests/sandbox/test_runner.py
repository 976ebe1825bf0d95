from __future__ import annotations

from collections.abc import Iterator

import pytest

from kleash.errors import MachineError
from kleash.sandbox.runner import Completed, LimitExceeded, Limits, Raised, Runner

LIMITS = Limits(seconds=2.0, memory=1 << 30)


@pytest.fixture
def runner() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner._stop()


def test_a_function_returns_what_it_returns_and_one_process_serves_all_calls(runner: Runner) -> None:
    assert runner.run("operator:add", 2, 3, limits=LIMITS) == Completed(5)
    process = runner._process
    assert runner.run("json:loads", '{"a": [null]}', limits=LIMITS, imports=["json"]) == Completed({"a": [None]})
    assert runner._process is process


def test_an_exception_is_distinguished_from_a_value(runner: Runner) -> None:
    assert runner.run("operator:truediv", 1, 0, limits=LIMITS) == Raised("ZeroDivisionError", "division by zero")
    assert runner.run("operator:not_", 1, limits=LIMITS) == Completed(False)


def test_time_and_memory_have_a_limit_each_and_the_next_call_works(runner: Runner) -> None:
    forever = Limits(seconds=0.2, memory=1 << 30)
    assert runner.run("re:fullmatch", "(a+)+", "a" * 60 + "!", limits=forever) == LimitExceeded()
    assert runner.run("operator:mul", "a", 1 << 32, limits=LIMITS) == LimitExceeded()
    assert runner.run("operator:mul", "a", 3, limits=LIMITS) == Completed("aaa")


def test_a_small_limit_of_one_call_is_not_the_next_one_s(runner: Runner) -> None:
    small = Limits(seconds=2.0, memory=1 << 28)
    assert runner.run("operator:mul", "a", 1 << 28, limits=small) == LimitExceeded()
    assert runner.run("operator:truth", "a", limits=LIMITS) == Completed(True)
    big = runner.run("operator:contains", "a" * 10, "b", limits=Limits(seconds=2.0, memory=4 << 30))
    assert big == Completed(False)


def test_what_a_function_prints_is_not_a_reply(runner: Runner) -> None:
    assert runner.run("builtins:print", '{"value": 1}', limits=LIMITS) == Completed(None)
    assert runner.run("operator:add", 1, 1, limits=LIMITS) == Completed(2)


@pytest.mark.parametrize("program", ["nowhere:f", "operator:nothing"])
def test_a_function_that_cannot_be_loaded_is_an_error_of_the_machine(runner: Runner, program: str) -> None:
    with pytest.raises(MachineError, match=f"cannot load {program} "):
        runner.run(program, limits=LIMITS)
    with pytest.raises(MachineError, match="install what is missing"):
        runner.run("operator:add", 1, 1, limits=LIMITS, imports=["no_such_library"])
