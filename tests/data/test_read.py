"""Which rows are trained on and measured on, and what is said about the others."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from kleash.data.group import EncodedGroup, EncodedResponse, Group, Preference, Ranking, Response, prompt_key
from kleash.data.read import distinct, read_encoded
from kleash.data.split import comparison, hold_out, prompt_only
from kleash.errors import DataError

Write = Callable[[str, list[dict[str, Any]]], Path]

SAME = [
    "a b",
    ({"role": "user", "content": "a b"},),
    ({"content": "a b", "role": "user"},),
    ({"content": "a b", "name": None, "role": "user"},),
]
"""One prompt, written in four ways."""


def test_a_prompt_is_one_prompt_however_it_is_written() -> None:
    assert len({prompt_key(prompt) for prompt in SAME}) == 1
    others = ["a c", ({"role": "system", "content": "a b"},), (*SAME[1], {"role": "assistant", "content": "x"})]
    assert len({prompt_key(prompt) for prompt in [*others, SAME[0]]}) == 4


def test_one_prompt_is_never_on_both_sides_of_the_split() -> None:
    rows = [
        Group(prompt)
        for number in range(30)
        for prompt in (
            f"a {number}",
            ({"role": "user", "content": f"a {number}"},),
            ({"content": f"a {number}", "role": "user"},),
        )
    ]
    train, held_out = hold_out(rows, seed=0)
    assert len(held_out) == 9  # three prompts with three rows each
    assert {prompt_key(row.prompt) for row in train}.isdisjoint(prompt_key(row.prompt) for row in held_out)


def encoded(*ids: tuple[int, ...], label: Preference | Ranking | None) -> EncodedGroup:
    texts = tuple(Response(" ".join(map(str, row))) for row in ids)
    rows = tuple(EncodedResponse(row, (True,) * len(row)) for row in ids)
    return EncodedGroup((1,), rows, Group("p", texts, label))


def test_a_pair_of_equal_responses_compares_nothing() -> None:
    assert distinct(encoded((1, 2), (1, 2), label=Preference())) is None
    pair = encoded((1, 2), (1, 3), label=Preference())
    assert distinct(pair) is pair
    samples = encoded((1, 2), (1, 2), label=None)
    assert distinct(samples) is samples


def test_of_the_equal_responses_of_a_ranking_the_first_stays() -> None:
    ranking = distinct(encoded((1,), (2,), (1,), (3,), label=Ranking((1, 0, 1, 2), "A")))
    assert ranking is not None
    assert [response.ids for response in ranking.responses] == [(1,), (2,), (3,)]
    assert ranking.source.label == Ranking((1, 0, 2), "A")
    assert [response.text for response in ranking.source.responses] == ["1", "2", "3"]
    pair = distinct(encoded((1,), (1,), (2,), label=Ranking((1, 1, 0), "A")))
    assert pair is not None
    assert pair.source.label == Preference(0.0, "A")
    assert distinct(encoded((1,), (1,), (1,), label=Ranking((0, 1, 2)))) is None


def read(
    data: Path, tokenizer: PreTrainedTokenizerFast, **settings: Any
) -> tuple[list[EncodedGroup], list[EncodedGroup], dict[str, Any]]:
    counts: dict[str, Any] = {}
    defaults: dict[str, Any] = {"eval_data": None, "max_length": None, "usable": comparison, "seed": 0}
    train, held_out = read_encoded(
        str(data), tokenizer=tokenizer, note=lambda section, **parts: counts.update({section: parts}),
        **defaults | settings,
    )  # fmt: skip
    return train, held_out, counts["rows"]


def test_equal_pairs_are_counted_in_the_data_and_after_the_cut(
    write: Write, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kleash")
    rows = [{"prompt": f"{'ab'[n % 2]} c", "chosen": "a b c d e f g", "rejected": "a b c d e f h"} for n in range(8)]
    rows += [{"prompt": "d", "chosen": "a b", "rejected": "a b"}] * 2 + [
        {"prompt": "d", "chosen": "a", "rejected": "b"}
    ]
    data = write("pairs.jsonl", rows)
    tests = write("eval.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3 + [rows[8]])
    train, held_out, counts = read(data, tiny_tokenizer, eval_data=str(tests), max_length=6)
    assert len(train) == 1
    assert len(held_out) == 3
    assert counts["train"] == {
        "read": 11, "used": 1, "cut": 8, "prompt_too_long": 0, "equal_scores": 0, "equal_responses": 10,
    }  # fmt: skip
    assert (counts["held_out"]["used"], counts["held_out"]["equal_responses"]) == (3, 1)
    assert (
        "10 of 11 comparisons left out, their responses are equal, 8 of them only as tokens within max_length 6"
        in caplog.text
    )
    assert "eval.jsonl: 1 of 4 comparisons left out, their responses are equal\n" in caplog.text


def test_data_of_equal_pairs_only_is_refused(write: Write, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    data = write("pairs.jsonl", [{"prompt": "d", "chosen": "a b", "rejected": "a b"}] * 12)
    with pytest.raises(DataError, match="have equal scores or are equal; there is nothing to compare"):
        read(data, tiny_tokenizer)


def test_a_prompt_left_out_of_the_held_out_part_is_counted_and_warned_of(
    write: Write, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kleash")
    long = "a b c d e f g h " * 8
    data = write("prompts.jsonl", [{"prompt": f"{letter} b"} for letter in "abcdef"])
    tests = write("eval.jsonl", [{"prompt": "a"}, {"prompt": long.strip()}])
    _, held_out, counts = read(data, tiny_tokenizer, usable=prompt_only, eval_data=str(tests), max_length=20)
    assert len(held_out) == 1
    assert (counts["held_out"]["read"], counts["held_out"]["used"], counts["held_out"]["prompt_too_long"]) == (2, 1, 1)
    assert "eval.jsonl: of 2 rows, 1 dropped, the prompt too long" in caplog.text
    assert (counts["train"]["used"], counts["train"]["prompt_too_long"]) == (6, 0)
    with pytest.raises(DataError, match=r"long.jsonl: no row can be used"):
        read(
            data,
            tiny_tokenizer,
            usable=prompt_only,
            eval_data=str(write("long.jsonl", [{"prompt": long}])),
            max_length=9,
        )


def test_the_tenth_that_is_held_out_is_announced(
    write: Write, tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kleash")
    data = write("prompts.jsonl", [{"prompt": f"{a} {b}"} for a in "abcde" for b in "abcdef"])
    read(data, tiny_tokenizer, usable=prompt_only)
    assert caplog.text.count("3 of 30 rows are held out to measure on, a tenth; --eval-data names other rows") == 1
    caplog.clear()
    read(data, tiny_tokenizer, usable=prompt_only, eval_data=str(data))
    assert "held out" not in caplog.text


@pytest.mark.parametrize("stage", ["reward", "dpo"])
def test_a_stage_leaves_equal_pairs_out_of_training_and_accuracy(base: Path, write: Write, stage: str) -> None:
    from kleash.stages import dpo, reward_model

    different = [{"prompt": f"{a} {b}", "chosen": "a b", "rejected": "c d"} for a in "abc" for b in "abcdefg"]
    equal = [{"prompt": f"{a} {b}", "chosen": "c a", "rejected": "c a"} for a in "hij" for b in "abcd"]
    data = write("pairs.jsonl", [*equal, *different])
    settings: dict[str, Any] = {
        "model": str(base), "data": str(data), "eval_data": str(data), "out": base.parent / stage, "batch_size": 8,
    }  # fmt: skip
    if stage == "reward":
        folder = reward_model.run(reward_model.RewardConfig.make(settings | {"centre_samples": 0}))
    else:
        folder = dpo.run(dpo.DPOConfig.make(settings | {"kl_samples": 0}))
    record = json.loads((folder.path / "run.json").read_text())
    assert record["rows"]["train"] | {"read": 33, "used": 21, "equal_responses": 12} == record["rows"]["train"]
    assert record["rows"]["held_out"] == record["rows"]["train"]
    assert record["results"]["report"]["pairs"] == 21
    assert record["results"]["rows"] == 21
    assert len(folder.metrics()) == 3  # 8 + 8 + 5: the epoch sees every pair once
