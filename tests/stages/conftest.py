"""A tiny base model as a folder, and files of every kind of row about the same letters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Write = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def base(tmp_path: Path, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The tiny model and its tokenizer as a folder."""
    folder = tmp_path / "base"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows to a file of the test's folder."""

    def rows_to_file(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return rows_to_file


def letters(number: int, length: int) -> str:
    """Some letters, the same for the same number."""
    return " ".join("abcdefghij"[(number * 7 + place * 3) % 10] for place in range(length))


@pytest.fixture
def demonstrations(write: Write) -> Path:
    """Rows of unequal length."""
    rows = [{"prompt": letters(i, 1 + i % 4), "response": letters(i + 1, 1 + i % 7)} for i in range(40)]
    return write("demonstrations.jsonl", rows)


@pytest.fixture
def comparisons(write: Write) -> Path:
    """Pairs in which more of the letter z is better."""
    rows = [
        {"prompt": letters(i, 1 + i % 4), "chosen": "z " * (1 + i % 3) + letters(i, i % 5), "rejected": letters(i, 1 + i % 6)}
        for i in range(60)
    ]
    return write("comparisons.jsonl", [{k: v.strip() for k, v in row.items()} for row in rows])


@pytest.fixture
def prompts(write: Write) -> Path:
    """Prompts of unequal length."""
    return write("prompts.jsonl", [{"prompt": letters(i, 1 + i % 5), "number": i} for i in range(30)])
