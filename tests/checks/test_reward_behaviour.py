"""What a reward pays for: mistakes on labelled responses and on rows, and responses that answer nothing (F15)."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash.checks import reward_behaviour
from kleash.checks.reward_behaviour import MOST_REFUSED, on_labelled, reward_checks_of, table
from kleash.cli import _run
from kleash.rewards import verifier
from kleash.rewards.labelled_pairs import KINDS, pairs
from kleash.rewards.verifiers import verifiers

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def rows(folder: Path, items: list[dict[str, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return str(path)


def functions(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "graders.py").write_text(code)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(__import__("sys").modules, "graders", raising=False)


def results(name: str, data: str) -> dict[str, bool | None]:
    return {check.name: check.passed for check in reward_checks_of(name, data=data, rows=200)}


def test_half_of_the_labelled_pairs_are_wrong_and_each_kind_has_both() -> None:
    counts = Counter((pair.verifier, pair.right) for pair in pairs())
    assert counts["math", True] + counts["math", False] >= 600
    assert counts["math", False] >= counts["math", True]
    assert all(right and wrong for kind in KINDS for _, right, wrong in kind.rows)
    assert {name for kind in KINDS for name in kind.verifiers} == set(verifiers())


@pytest.mark.parametrize("name", ["choice", "exact", "json-schema", "number"])
def test_F15_a_verifier_accepts_no_wrong_response_of_the_labelled_set(name: str) -> None:
    kinds = on_labelled(name)
    assert [kind.mistakes for kind in kinds if kind.false_positives] == []
    assert sum(kind.false_negatives for kind in kinds) <= MOST_REFUSED * sum(kind.right for kind in kinds)


@pytest.mark.slow
def test_F15_the_table_in_the_docs_is_what_the_verifiers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "LIMITS", replace(verifier.LIMITS, seconds=1.5))
    measured = table()
    assert measured in PAGE, "python -m kleash.checks.reward_behaviour"
    totals = re.findall(r"\*\*all\*\* \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", measured)
    assert len(totals) == len(verifiers())
    assert all(
        int(positives) == 0 and int(negatives) <= MOST_REFUSED * int(right) for right, _, positives, negatives in totals
    )


def test_the_table_in_the_docs_has_the_pairs_of_today() -> None:
    lines = re.findall(r"^\| `([a-z-]+)` \| ([^|*]+) \| (\d+) \| (\d+) \| \d+ \| \d+ \|$", PAGE, flags=re.MULTILINE)
    counts = Counter((pair.verifier, pair.kind, pair.right) for pair in pairs())
    kinds = {(pair.verifier, pair.kind) for pair in pairs()}
    assert {(name, kind, int(right), int(wrong)) for name, kind, right, wrong in lines} == {
        (name, kind, counts[name, kind, True], counts[name, kind, False]) for name, kind in kinds
    }


def test_a_reward_that_pays_for_everything_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    functions(
        tmp_path, "def same(prompts, completions, **columns):\n    return [1.0] * len(completions)\n", monkeypatch
    )
    data = rows(tmp_path, [{"prompt": f"What is 3 times {i}?", "answer": 3 * i} for i in range(40, 60)])
    assert _run(["check", "graders:same", "--data", data, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check["passed"] for check in report["gates"]["measured"]["checks"]}
    assert report["kind"] == "reward"
    assert set(checks.values()) == {False}
    assert {"false positives", "below a right one: empty", "below a right one: a copy of the prompt"} <= set(checks)


def test_a_reward_that_counts_length_is_paid_by_keywords_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def longer(prompts, completions, **columns):\n    return [len(text) / 100 for text in completions]\n"
    functions(tmp_path, code, monkeypatch)
    data = rows(
        tmp_path, [{"prompt": f"What is 3 times {i}, dear friend of mine?", "answer": 3 * i} for i in range(40, 140)]
    )
    passed = results("graders:longer", data)
    assert passed["below a right one: empty"] is True
    assert passed["below a right one: keywords"] is False
    assert passed["below a right one: a copy of the prompt"] is False


def test_labels_of_the_rows_say_what_is_right(tmp_path: Path) -> None:
    items = [
        {
            "prompt": f"What is 3 times {i}?",
            "answer": 3 * i,
            "response": f"It is {3 * i + i % 2}.",
            "correct": i % 2 == 0,
        }
        for i in range(100, 300)
    ]
    passed = results("number", rows(tmp_path, items))
    assert passed["false positives"] is True
    assert passed["false negatives"] is True
    turned = [{**item, "correct": not item["correct"]} for item in items]
    passed = results("number", rows(tmp_path, turned))
    assert passed["false positives"] is False


def test_a_listing_of_the_choices_is_not_a_choice(tmp_path: Path) -> None:
    items = [
        {"prompt": f"Which word has rank {i}?", "answer": i % 4, "choices": ["ant", "bee", "cat", "dog"]}
        for i in range(90)
    ]
    passed = results("choice", rows(tmp_path, items))
    assert passed["below a right one: every choice"] is True
    assert passed["false positives"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["graders:same"], "labelled responses for verifiers only; give --data"),
        (["graders:none", "--data", "rows.jsonl"], "has no attribute 'none'"),
        (["number", "--data", "bare.jsonl"], "has none; give each row one"),
        (["missing.yaml"], "no such file or folder"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    functions(
        tmp_path, "def same(prompts, completions, **columns):\n    return [1.0] * len(completions)\n", monkeypatch
    )
    rows(tmp_path, [{"prompt": "What is 3 times 4?", "answer": 12}])
    (tmp_path / "bare.jsonl").write_text('{"prompt": "What is 3 times 4?"}\n')
    assert _run(["check", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("kleash: ") == 1


def test_degenerate_responses_hold_no_answer() -> None:
    from kleash.data.group import Group

    group = Group("What is 3 times 14? Choose.", columns={"answer": 42})
    texts = [make(group) for make in reward_behaviour.DEGENERATE.values()]
    assert all(text is None or not text.rstrip("}").endswith("42") for text in texts)
