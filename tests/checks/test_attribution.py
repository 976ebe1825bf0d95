from __future__ import annotations

from typing import Any

import pytest

from kleash.checks.attribution import leave_one_out, pieces
from kleash.data.group import Group


@pytest.mark.parametrize(
    "text",
    [
        "",
        "one",
        "A b. C d! E?",
        "no end\nbut lines\n\nand more",
        "happy to help . it eats fish .",
        " ".join("word" * 50),
        "  a.  ",
    ],
)
def test_pieces_are_the_text_again(text: str) -> None:
    assert "".join(pieces(text)) == text


def test_sentences_are_pieces_and_long_ones_are_cut() -> None:
    assert pieces("A b. C d! It is 3.5 m, e.g.") == ["A b. ", "C d! ", "It is 3.5 m, e.g."]
    long = pieces(" ".join(["word"] * 40))
    assert [len(part.split()) for part in long] == [13, 14, 13]


def test_leaving_out_a_piece_costs_its_share_of_the_reward() -> None:
    import torch

    worth = {"good": 2.0, "bad": -1.0}

    def reward(groups: Any) -> torch.Tensor:
        return torch.tensor(
            [
                [
                    sum(worth.get(w, 0.0) for w in r.text.split()) + float(r.finished) * g.columns["x"]
                    for r in g.responses
                ]
                for g in groups
            ]
        )

    found = leave_one_out(reward, "prompt", "good good . so so . bad .", finished=True, x=5.0)
    assert found == [("good good . ", 4.0), ("so so . ", 0.0), ("bad .", -1.0)]
    assert leave_one_out(reward, "prompt", "", x=5.0) == []

    def turns(groups: list[Group]) -> torch.Tensor:
        assert all(r.content[0]["role"] == "assistant" for g in groups for r in g.responses)  # type: ignore[index, union-attr]
        return torch.tensor([[float(len(r.text)) for r in g.responses] for g in groups])

    assert leave_one_out(turns, ({"role": "user", "content": "q"},), "Yes. No.") == [("Yes. ", 5.0), ("No.", 4.0)]


def test_the_only_piece_of_a_response_that_was_cut_off_is_left_out_as_an_empty_response_that_ended() -> None:
    import torch

    def reward(groups: list[Group]) -> torch.Tensor:
        assert all(r.finished or r.text for g in groups for r in g.responses)
        return torch.tensor([[float(len(r.text)) for r in g.responses] for g in groups])

    assert leave_one_out(reward, "prompt", "so good", finished=False) == [("so good", 7.0)]
