"""F15: verifiers fail silently; here every response has an outcome, and what hacks a verifier earns nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import _run
from kleash.data.group import Group, Response
from kleash.errors import ConfigError, DataError
from kleash.rewards import verifier
from kleash.rewards.build import build_reward
from kleash.rewards.non_answers import MANY_GUESSES, count_guesses, is_loop
from kleash.rewards.verifier import VerifierReward
from kleash.rewards.verifiers import verifiers
from kleash.rewards.verifiers.number import check as check_number


def outcome(name: str, text: str, expected: Any, *, finished: bool = True) -> str:
    response = Response(text, finished=finished)
    group = Group("x", (response,), None, {verifiers()[name].column: expected})
    return VerifierReward(verifiers()[name]).outcome(group, response)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("She has 48+24 = 72 clips.", "72", "right"),
        ("so 72 or rather 73", "72", "wrong"),
        ("I do not know", "72", "unparsable"),
        ("= 1,234,567.", "1234567", "right"),
        ("1234567", "1,234,567", "right"),
        ("= $1,234.50...", "1234.5", "right"),
        ("The answer is -3", "-3", "right"),
        ("The answer is −3", "-3", "right"),
        ("The answer is -3", "3", "wrong"),
        ("It is 5-3", "3", "right"),
        ("It is 5 -3", "3", "right"),
        ("it is (5)-3", "-3", "wrong"),
        ("a loss of -$3", "-3", "right"),
        ("a loss of $-3", "-3", "right"),
        ("15%", "15", "right"),
        ("15%", "0.15", "wrong"),
        ("0.50", ".5", "right"),
        ("it costs .5", "0.5", "right"),
        ("3/4", "0.75", "right"),
        ("1/72", "72", "wrong"),
        ("1/0", "72", "unparsable"),
        ("1.000.000", "0", "unparsable"),
        ("2e3", "2000", "right"),
        ("1e999999999", "1", "unparsable"),
        ("9" * 5000, "9", "unparsable"),
        ("72 as CO2", "72", "right"),
        ("1000001", "1000000", "wrong"),
        ("0.1", "0.1000", "right"),
        ("72", 72, "right"),
        ("72", 72.0, "right"),
        ("so 72", "48 + 24 = 72\n#### 72", "right"),
    ],
)
def test_number_reads_the_last_number_as_people_write_it(text: str, answer: Any, expected: str) -> None:
    assert outcome("number", text, answer) == expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (r"So it is $\frac{1}{2}$.", "0.5", "right"),
        (r"\boxed{\frac12}", "1/2", "right"),
        (r"\boxed{3}", "x=3", "right"),
        (r"\boxed{2x+2}", "2(x+1)", "right"),
        (r"\boxed{0.333333}", "1/3", "right"),
        (r"\boxed{0.33}", "1/3", "wrong"),
        (r"\boxed{1, 2, 3}", "1, 2, 3", "right"),
        (r"\boxed{9\%}", "9", "right"),
        (r"\boxed{71}", "72", "wrong"),
        ("no idea", "72", "unparsable"),
        (r"\boxed{\frac{", "72", "unparsable"),
        (r"$2^{-98}$", "2^{-99}", "wrong"),  # math-verify alone: equal, both round to 0
        (r"$2^{-99}$", "2^{-99}", "right"),
        (r"\boxed{0.0000002}", "0.0000001", "wrong"),
        (r"$sin(pi x)$", r"\sin(\pi x)", "right"),  # math-verify alone: s·i·n·p·i·x
        (r"$nis(ip x)$", "sin(pi x)", "unparsable"),
        (r"\boxed{70, 71, 72}", "72", "unparsable"),
        (r"\boxed{72}\boxed{70}", "72", "wrong"),
    ],
)
def test_math_is_math_verify_without_its_known_false_positives(text: str, answer: str, expected: str) -> None:
    assert outcome("math", text, answer) == expected


def test_F15_two_texts_that_cannot_be_read_are_not_equal() -> None:
    with pytest.raises(DataError, match="cannot be parsed as mathematics; correct it"):
        outcome("math", "???", "???")


@pytest.mark.parametrize(
    ("name", "text", "expected", "result"),
    [
        ("exact", " yes\n", "yes", "right"),
        ("exact", "yes.", "yes", "wrong"),
        ("regex", " ab12 ", r"[a-z]+\d+", "right"),
        ("regex", "ab12!", r"[a-z]+\d+", "wrong"),
        ("json-schema", '{"a": 1}', {"type": "object", "required": ["a"]}, "right"),
        ("json-schema", '{"a": 1}', '{"type": "object", "required": ["a"]}', "right"),
        ("json-schema", '{"b": 1}', {"type": "object", "required": ["a"]}, "wrong"),
        ("json-schema", "{'b': 1}", {"type": "object"}, "unparsable"),
        ("json-schema", "NaN", {"type": "number"}, "unparsable"),
        ("json-schema", "[0,0,0,0,0,0,0,0,0,0,0,0,0]", {"type": "array"}, "right"),
    ],
)
def test_text_and_json(name: str, text: str, expected: Any, result: str) -> None:
    assert outcome(name, text, expected) == result


ACCEPTS_ALL = {"number": "72", "math": "72", "exact": "", "regex": "(?s).*", "json-schema": {}}


@pytest.mark.parametrize("name", verifiers())
@pytest.mark.parametrize("text", ["", " \n\t"])
def test_F15_an_empty_response_gets_no_reward(name: str, text: str) -> None:
    assert outcome(name, text, ACCEPTS_ALL.get(name, "72")) == "unparsable"


@pytest.mark.parametrize("name", ["number", "math", "regex"])
@pytest.mark.parametrize(
    "text",
    [
        "72 " * 50,
        r"\boxed{72}" * 50,
        "The answer is 72.\n" * 12,
        "first I think about it and then " + "so it is 72, and again, " * 10,
    ],
)
def test_F15_a_response_that_ends_in_a_loop_gets_no_reward(name: str, text: str) -> None:
    assert outcome(name, text, ACCEPTS_ALL[name]) == "unparsable"


def test_F15_a_loop_that_was_cut_within_a_word_is_a_loop() -> None:
    text = "The answer is 72. " * 12 + "The ans"
    assert outcome("regex", text, ".*", finished=False) == "unparsable"
    assert outcome("regex", text, ".*") == "right"


@pytest.mark.parametrize("text", ["= 1000000000000", "so 0.3333333333333333", "72\n----------------", "ha ha ha 72"])
def test_repeated_digits_and_rules_are_not_a_loop(text: str) -> None:
    assert not is_loop(text)


@pytest.mark.parametrize("name", ["number", "math"])
@pytest.mark.parametrize(
    "text",
    [
        "70, 71, 72",
        "70,71,72",
        "It is 70, 71, or 72.",
        "70\n71\n72\n",
        r"\boxed{70} \boxed{71} \boxed{72}",
        "The answer is 70. The answer is 71. The answer is 72.",
        "#### 70\n#### 71\n#### 72",
        "A: 70\nA: 71\nA: 72",
    ],
)
def test_F15_a_list_of_guesses_gets_no_reward(name: str, text: str) -> None:
    assert outcome(name, text, "72") != "right"


@pytest.mark.parametrize(
    "text",
    [
        "He has 1, 2 and 3 apples, so 6",
        "100 - 50 - 30 - 15 = $5",
        "The answer is 5. The answer is 5. The answer is 5.",
        "The answer is 4; no, the answer is 5",
        r"from \boxed{4} we get \boxed{5}",
    ],
)
def test_intermediate_numbers_are_not_guesses(text: str) -> None:
    assert count_guesses(text) < MANY_GUESSES


def test_guards_take_no_time_on_what_a_model_may_write() -> None:
    began = time.process_time()  # of the processor: whatever else runs on the machine
    for text in (
        "1," * 50_000,
        "1 " * 50_000 + "x",
        "9" * 100_000,
        "a b " * 50_000,
        r"\boxed{" * 20_000,
        "-$" * 50_000,
    ):
        is_loop(text)
        count_guesses(text)
        check_number(text, "1")
    assert time.process_time() - began < 10


def test_F15_a_check_that_does_not_end_is_counted_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "LIMITS", replace(verifier.LIMITS, seconds=0.3))
    assert outcome("regex", "a" * 60 + "!", "(a+)+") == "timed_out"
    assert outcome("regex", "aaa", "(a+)+") == "right"
    assert outcome("json-schema", '"' + "a" * 60 + '!"', {"pattern": "^(a+)+$"}) == "timed_out"


def test_F15_computer_algebra_that_does_not_end_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "LIMITS", replace(verifier.LIMITS, seconds=0.5))
    assert outcome("math", r"\boxed{9^{9^{9^9}}}", "72") == "timed_out"
    monkeypatch.undo()
    assert outcome("math", r"\boxed{72}", "72") == "right"


def test_one_process_serves_all_checks_and_every_thread() -> None:
    assert outcome("regex", "a", "a") == "right"
    process = verifier._runner._process
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(outcome("math", r"\boxed{72}", "72"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["right"] * 4
    assert verifier._runner._process is process and process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert outcome("regex", "a", "a") == "right", "ended from outside between two checks: no fault of the next one"


def test_after_an_interruption_no_reply_is_taken_for_another_request() -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert outcome("regex", "a", "a") == "right"
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            outcome("regex", "a" * 26 + "!", "(a+)+")  # takes seconds, then says wrong
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [outcome("regex", "a", "a") for _ in range(3)] == ["right"] * 3


@pytest.mark.parametrize("reference", ["https://example.invalid/schema.json", "other.json#/a"])
def test_F17_a_schema_that_refers_elsewhere_is_refused_and_nothing_is_fetched(reference: str, network: Any) -> None:
    with pytest.raises(DataError, match="is not in it; put it under"):
        outcome("json-schema", "{}", {"$ref": reference})
    assert network.attempts() == []


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("number", {}, "reads the column 'answer', but the row with prompt 'x' has none"),
        ("number", {"answer": True}, "has a bool there"),
        ("number", {"answer": "unknown"}, "does not end in a number"),
        ("regex", {"pattern": "("}, "invalid regular expression: '\\('"),
        ("json-schema", {"schema": {"type": "objekt"}}, "invalid JSON Schema: "),
        ("json-schema", {"schema": "{"}, "invalid JSON Schema: "),
    ],
)
def test_a_row_that_cannot_be_checked_is_one_line_and_not_a_wrong_response(
    name: str, column: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        VerifierReward(verifiers()[name])([Group("x", (Response("1"),), None, column)])
    assert "\n" not in str(caught.value)


def test_scores_are_one_for_right_and_outcomes_add_up() -> None:
    groups = [Group("x", (Response("72"), Response("73")), None, {"answer": "72"})] * 2
    reward = VerifierReward(verifiers()["number"])
    scores, parts = reward.explain(groups)
    assert scores.tolist() == [[1, 0], [1, 0]] == reward(groups).tolist()
    assert {name: float(part.sum()) for name, part in parts.items()} == {
        "right": 2, "wrong": 2, "unparsable": 0, "timed_out": 0,
    }  # fmt: skip


def test_a_file_in_the_package_is_all_that_a_verifier_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "starts_with.py").write_text(
        'NAME = "starts-with"\nCOLUMN = "answer"\nGUARDED = False\n\n\n'
        'def check(text, answer):\n    return "right" if text.startswith(answer) else "wrong"\n'
    )
    package = sys.modules[verifiers.__module__]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    verifiers.cache_clear()
    try:
        reward = build_reward("starts-with")
        assert reward([Group("x", (Response("72!"), Response("!72")), None, {"answer": 72})]).tolist() == [[1, 0]]
        with pytest.raises(ConfigError, match=r"no such folder; .*number, regex, (.*, )?starts-with; or "):
            build_reward("start-with")
    finally:
        sys.modules.pop(f"{package.__name__}.starts_with", None)
        verifiers.cache_clear()


def test_the_page_of_rewards_lists_every_verifier_with_its_column() -> None:
    page = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text().split("## Verifiers")[1].split("##")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| `([a-z]+)`", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted((name, verifier.column) for name, verifier in verifiers().items())


def test_verifiers_are_listed_without_torch_or_computer_algebra() -> None:
    code = (
        "import sys; from kleash.rewards.verifiers import verifiers; assert len(verifiers()) >= 5; "
        "print([name for name in ('torch', 'transformers', 'math_verify', 'jsonschema') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("command", ["score", "best-of-n", "ppo", "grpo"])
def test_help_lists_every_verifier(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _run([command, "--help"])
    text = "".join(capsys.readouterr().out.split())  # lines break within names too
    assert f"averifier({','.join(verifiers())})" in text
