from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kleash.errors import ConfigError
from kleash.labels.constitution import Constitution, Principle

TWO = """
name: small
principles:
  - {name: kind, text: Choose the kinder response., weight: 3, category: tone}
  - name: short
    text: Choose the shorter response.
    examples: [{prompt: 'Why?', better: So., worse: 'So, and so on.', why: It goes on.}]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


def test_a_principle_is_drawn_as_often_as_its_weight_says_and_the_same_for_the_same_key(tmp_path: Path) -> None:
    constitution = Constitution.load(written(tmp_path, TWO))
    draws = [constitution.draw((0, row)).name for row in range(4000)]
    assert draws == [constitution.draw((0, row)).name for row in range(4000)]
    assert abs(Counter(draws)["kind"] / 4000 - 0.75) < 5 * (0.75 * 0.25 / 4000) ** 0.5
    assert draws != [constitution.draw((1, row)).name for row in range(4000)]


def test_a_principle_taken_out_is_never_drawn_and_the_others_stay(tmp_path: Path) -> None:
    constitution = Constitution.load(written(tmp_path, TWO))
    rest = constitution.without("kind")
    assert {rest.draw(row).name for row in range(50)} == {"short"}
    assert rest.principles == constitution.principles[1:]
    for name in ("unknown",):
        with pytest.raises(ConfigError, match="kind, short"):
            constitution.without(name)
    with pytest.raises(ConfigError, match="cannot be removed"):
        rest.without("short")


def test_principles_cannot_be_changed_once_read(tmp_path: Path) -> None:
    principle = Constitution.load(written(tmp_path, TWO)).principles[0]
    with pytest.raises(Exception, match="frozen"):
        principle.text = "Choose the first."  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("principles: []", "should hold 'principles'"),
        ("principles: [kind]", "should hold 'principles'"),
        ("principles: [{name: kind}]", "principle 1: 'text' is missing"),
        ("principles: [{name: kind, text: Be kind., wieght: 2}]", "principle 1: unknown key 'wieght'; did you mean"),
        ("principles: [{name: kind, text: Be kind., weight: 0}]", "principle 1: 'weight' is 0"),
        ("principles: [{name: a, text: A.}, {name: a, text: B.}]", "2 are called 'a'"),
        ("principles: [{name: a, text: A.}]\nextra: 1", "unknown key 'extra'"),
    ],
)
def test_a_file_that_is_wrong_is_one_line_that_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        Constitution.load(path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_shipped_constitution_is_read_by_its_name_and_asks_for_all_three_things() -> None:
    constitution = Constitution.load("assistant")
    assert len(constitution.principles) >= 10
    assert all(principle.text and principle.critique and principle.revision for principle in constitution.principles)
    assert {"harmlessness", "honesty", "helpfulness"} <= {principle.category for principle in constitution.principles}
    assert isinstance(constitution.draw("a row"), Principle)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no-such-file"):
        Constitution.load("no-such-file")
