"""Several sources as one: each row as often as its source's weight says, and no prompt on both sides."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kleash.config import DATA
from kleash.content import content_hash
from kleash.data.formats import read_groups
from kleash.data.split import prompt_only, read_split
from kleash.errors import ConfigError, DataError

Write = Callable[[str, list[dict[str, Any]]], Path]


@pytest.fixture
def mixture(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("one.jsonl", [{"prompt": f"one {n}"} for n in range(100)])
    write("two.jsonl", [{"question": f"two {n}"} for n in range(200)])
    path = tmp_path / "mixture.yaml"
    path.write_text("parts:\n- data: one.jsonl\n  weight: 2.5\n- data: two.jsonl\n  columns: prompt=question\n")
    return path


def test_each_row_is_trained_on_as_often_as_its_weight_says(mixture: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kleash")
    train, held_out = read_split(mixture, None, seed=0, usable=prompt_only)
    assert "100 rows of one.jsonl × 2.5, 200 rows of two.jsonl × 1" in caplog.text
    counts = Counter(str(group.prompt) for group in train)
    assert set(Counter(str(group.prompt) for group in held_out).values()) == {1}
    assert counts.keys().isdisjoint(str(group.prompt) for group in held_out)
    assert len(counts) + len(held_out) == 300
    assert {number for prompt, number in counts.items() if prompt.startswith("two")} == {1}
    ones = [number for prompt, number in counts.items() if prompt.startswith("one")]
    assert set(ones) == {2, 3}
    assert read_split(mixture, None, seed=0, usable=prompt_only) == (train, held_out)


def test_rows_are_read_in_order_and_a_mixture_may_be_held_out(mixture: Path) -> None:
    assert [group.prompt for group in read_groups(mixture)][99:101] == ["one 99", "two 0"]
    train, held_out = read_split("one.jsonl", mixture, seed=0, usable=prompt_only)
    assert (len(train), len(held_out)) == (100, 300)


def test_the_identity_of_a_mixture_is_the_content_of_its_parts(mixture: Path, write: Write) -> None:
    before = content_hash(mixture, DATA)
    assert content_hash(mixture, DATA) == before
    write("two.jsonl", [{"question": "other"}])
    assert content_hash(mixture, DATA) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: []", "holds no mixture"),
        ("- data: one.jsonl", "should be a mapping"),
        ("parts:\n- weight: 2", "part 1: 'data' is missing"),
        ("parts:\n- data: one.jsonl\n  weight: 0", "part 1: 'weight' is 0, but should be greater than 0"),
        ("parts:\n- data: one.jsonl\n  wieght: 2", "did you mean 'weight'"),
        ("parts:\n- data: mixture.yaml", "mixture.yaml is a mixture, too"),
        ("parts:\n- data: gone.jsonl", "there is no file or folder gone.jsonl"),
    ],
)
def test_a_wrong_mixture_is_explained_in_one_line(mixture: Path, text: str, message: str) -> None:
    mixture.write_text(text)
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        list(read_groups(mixture))
    assert "\n" not in str(caught.value)
