"""Data as people bring them, through the command line: what is read, what is said, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kleash.cli import main
from kleash.io import read_jsonl
from kleash.run import read_record

Write = Callable[[str, list[dict[str, Any]]], Path]


def kleash(*words: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    return int(end.value.code or 0)


def sentences(number: int) -> list[tuple[str, str]]:
    return [(f"{'abcdefghij'[n % 10]} {'abcdefghij'[n // 10]}", f"{'jihgfedcba'[n % 10]} a") for n in range(number)]


def test_sft_reads_named_columns_of_csv_and_sees_every_row(
    base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("problem,solution\n" + "".join(f"{prompt},{answer}\n" for prompt, answer in sentences(48)))
    options = ["--model", base, "--data", data, "--batch-size", 32, "--gate-prompts", 0]
    code = kleash("sft", *options, "--out", tmp_path / "wrong", "--columns", "prompt=problem,response=answer")
    assert code == 2
    assert (
        "rows.csv has no column 'answer', named by --columns; it has: 'problem', 'solution'" in capfd.readouterr().err
    )
    code = kleash("sft", *options, "--out", tmp_path / "sft", "--columns", "prompt=problem,response=solution")
    assert code in (0, 1)
    record = read_record(tmp_path / "sft") or {}
    assert record["status"] == "finished"
    assert record["config"]["columns"] == {"prompt": "problem", "response": "solution"}
    assert (record["rows"]["train"]["used"], record["rows"]["held_out"]["used"]) == (43, 5)
    assert len(read_jsonl(tmp_path / "sft" / "metrics.jsonl")) == 2
    assert "5 of 48 rows are held out to measure on, a tenth" in caplog.text


def test_grpo_counts_a_prompt_that_its_held_out_part_lost(
    base: Path, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write("prompts.jsonl", [{"prompt": prompt, "answer": "a"} for prompt, _ in sentences(10)])
    tests = write("eval.jsonl", [{"prompt": "a b", "answer": "a"}, {"prompt": "a " * 4000, "answer": "a"}])
    options = ["--reward", "exact", "--batch-size", 4, "--group-size", 2, "--max-new-tokens", 2, "--force"]
    code = kleash("grpo", "--model", base, "--data", data, "--eval-data", tests, "--out", "o", *options)
    assert code in (0, 1)
    record = read_record(tmp_path / "o") or {}
    assert record["rows"]["held_out"] | {"read": 2, "used": 1, "prompt_too_long": 1} == record["rows"]["held_out"]
    assert len([row for row in read_jsonl(tmp_path / "o" / "metrics.jsonl") if row["step"] > 0]) == 3
    assert "eval.jsonl: of 2 rows, 1 dropped, the prompt too long" in caplog.text


def test_score_writes_rows_of_another_tool_in_known_names(base: Path, write: Write, tmp_path: Path) -> None:
    data = write("rows.jsonl", [{"question": "1 + 1?", "answer": "2"}, {"prompt": "1", "response": "3", "answer": "2"}])
    assert kleash("score", "--reward", "exact", "--data", data, "--out", tmp_path / "scored.jsonl") == 0
    assert read_jsonl(tmp_path / "scored.jsonl") == [
        {"prompt": "1 + 1?", "response": "2", "answer": "2", "score": 1.0},
        {"prompt": "1", "response": "3", "answer": "2", "score": 0.0},
    ]


def test_inspect_and_check_take_columns_too(base: Path, write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    data = write("rows.jsonl", [{"problem": "a b", "solution": "c"}])
    names = ["--columns", "prompt=problem,response=solution"]
    assert kleash("inspect", "--model", base, "--data", data) == 2
    assert "--columns prompt=…,response=…" in capfd.readouterr().err
    assert kleash("inspect", "--model", base, "--data", data, *names) == 0
    assert kleash("check", data, *names, "--json") in (0, 1)
    assert "rows end" in capfd.readouterr().out
    assert kleash("inspect", "--model", base, "--data", data, "--columns", "prompt") == 2
    assert "--columns is 'prompt', but should be pairs" in capfd.readouterr().err


def test_text_beside_a_chat_template_is_announced_and_as_chat_makes_turns(
    base: Path, write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write("rows.jsonl", [{"prompt": prompt} for prompt, _ in sentences(3)])
    options = ["--model", base, "--data", data, "--max-new-tokens", 2]
    assert kleash("generate", *options, "--out", tmp_path / "text.jsonl") == 0
    line = "3 of 3 prompts are plain text, and the model has a chat template; --as-chat makes each one turn of the user"
    assert caplog.text.count(line) == 1
    assert kleash("generate", *options, "--out", tmp_path / "chat.jsonl", "--as-chat") == 0
    assert caplog.text.count(line) == 1
    assert read_jsonl(tmp_path / "chat.jsonl")[0]["prompt"] == [{"role": "user", "content": "a a"}]
