from __future__ import annotations

from typing import Any

import pytest

from kleash.checks.check import Check
from kleash.checks.data_checks import comparisons, demonstrations
from kleash.data.group import Group, Preference, Response


def pair(prompt: object, chosen: str, rejected: str, p: float = 1.0) -> Group:
    return Group(str(prompt), (Response(chosen), Response(rejected)), Preference(p))


def found(groups: list[Group]) -> dict[str, Check]:
    return {check.name: check for check in comparisons(groups)}


def healthy(n: int = 100) -> list[Group]:
    return [pair(i, f"good {i}" + " so" * (i % 2), f"bad {i}" + " so" * ((i + 1) % 2)) for i in range(n)]


def test_plain_comparisons_fail_nothing() -> None:
    assert not [check for check in found(healthy()).values() if check.passed is False]


def test_rows_without_labels_are_not_comparisons() -> None:
    (check,) = comparisons([Group("a", (Response("b"),))])
    assert check.passed is False


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([pair(i, "a", "b", 0.5) for i in range(60)] + healthy(40), "pairs are decided"),
        ([pair(i, "same ", "same") for i in range(20)] + healthy(80), "responses differ"),
        ([pair(i, "a", "b") for i in range(60)] + [pair(i, "b", "a") for i in range(60)], "labels agree"),
    ],
)
def test_each_fault_fails_its_own_check(rows: list[Group], name: str) -> None:
    assert [check.name for check in found(rows).values() if check.passed is False] == [name]


def test_agreement_of_repeated_labels_counts_votes_whichever_column_they_chose() -> None:
    rows = [pair(i, "a", "b") for i in range(30)] * 2 + [pair(i, "c", "d") for i in range(10)]
    rows += [pair(i, "d", "c", 0.0) for i in range(10)]  # the second is preferred, the same vote
    check = found(rows)["labels agree"]
    assert check.figures["agreement"] == 1.0
    assert check.figures["repeated"] == 40


def test_labels_that_follow_only_length_are_reported() -> None:
    rows = [pair(i, "a b c d", "a") for i in range(50)]
    check = found(rows)["not only length"]
    assert check.passed is None and check.figures["longer_preferred"] == 1.0


def test_demonstrations_without_an_end_or_without_variety_fail() -> None:
    def failed(rows: list[Any]) -> list[str]:
        return [check.name for check in demonstrations(rows) if check.passed is False]

    rows = [Group("a", (Response(f"b {i}"),)) for i in range(20)]
    assert failed(rows) == []
    assert failed([Group("a", (Response(f"b {i}", finished=False),)) for i in range(20)]) == ["rows end"]
    assert failed([Group("a", (Response("b"),)) for i in range(20)]) == ["rows differ"]
