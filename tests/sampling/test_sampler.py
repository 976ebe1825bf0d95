from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from kleash.data.batch import collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.sampling.sampler import decode_groups


def batch(tokenizer: PreTrainedTokenizerFast, *groups: list[str]):
    prompt = Group("a")
    return collate(
        [
            EncodedGroup(
                (6,),
                tuple(EncodedResponse(tuple(ids), (True,) * len(ids)) for ids in tokenizer(texts).input_ids),
                prompt,
            )
            for texts in groups
        ]
    )


def test_ids_are_unchanged_and_the_text_excludes_the_end_token(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    sampled = batch(tiny_tokenizer, ["b c <end>", "d e f"], ["<end>", "a <end>"])
    prompts = [Group("x", columns={"answer": 3}), Group("y")]
    groups = decode_groups(sampled, prompts, tiny_tokenizer, [tiny_tokenizer.eos_token_id])
    assert [group.prompt for group in groups] == ["x", "y"]
    assert groups[0].columns == {"answer": 3}
    found = [(response.ids, response.finished, response.text) for group in groups for response in group.responses]
    end = tiny_tokenizer.eos_token_id
    assert found == [
        ((7, 8, end), True, "b c"),
        ((9, 10, 11), False, "d e f"),
        ((end,), True, ""),
        ((6, end), True, "a"),
    ]


def test_an_end_token_that_is_a_plain_word_is_left_out_too(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    stop = tiny_tokenizer.convert_tokens_to_ids("z")
    (group,) = decode_groups(batch(tiny_tokenizer, ["a z", "z a"]), [Group("x")], tiny_tokenizer, [stop])
    assert [(response.text, response.finished) for response in group.responses] == [("a", True), ("z a", False)]


def test_F7_nothing_is_decoded_before_someone_reads(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled, honest, calls = batch(tiny_tokenizer, ["b c", "d"]), tiny_tokenizer.decode, []

    def counted(ids: list[int], **options: bool) -> str:
        calls.append(ids)
        return honest(ids, **options)

    monkeypatch.setattr(tiny_tokenizer, "decode", counted)
    (group,) = decode_groups(sampled, [Group("x")], tiny_tokenizer, [1])
    assert not calls
    assert group.responses[1].text == "d"
    assert len(calls) == 1


def test_prompts_and_batch_must_match(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="longer"):
        decode_groups(batch(tiny_tokenizer, ["a"], ["b"]), [Group("x")], tiny_tokenizer, [1])
