from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from kleash.data.batch import GroupBatch, collate
from kleash.data.group import EncodedGroup, EncodedResponse, Group
from kleash.errors import ModelError
from kleash.models import forward
from kleash.models.forward import (
    BackEnd,
    check_forward,
    find_decoder,
    plain_attention,
    projection,
    response_logprobs,
    response_scores,
    response_states,
)
from tests.jitter import jitter

VOCABULARY = 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
CONFIGS = {
    "llama": transformers.LlamaConfig(**GROUPED),
    "qwen2": transformers.Qwen2Config(**GROUPED),
    "qwen3": transformers.Qwen3Config(**GROUPED, head_dim=8),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES),
    "opt": transformers.OPTConfig(
        **{name: size for name, size in SIZES.items() if name != "intermediate_size"},
        ffn_dim=64,
        word_embed_proj_dim=32,
        dropout=0.0,
    ),
    "bloom": transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, eos_token_id=1, pad_token_id=0, bos_token_id=None
    ),
    "granite": transformers.GraniteConfig(**GROUPED, logits_scaling=3.0),
    "cohere": transformers.CohereConfig(**GROUPED, logit_scale=0.25),
}
BACK_ENDS: tuple[BackEnd, ...] = ("rows", "cache", "joined")
SHARING: dict[str, tuple[BackEnd, ...]] = {
    "bloom": ("cache",),  # places are counted from the mask
    "mistral": (),
    "gemma2": (),
    "gemma3": (),
}
"""The back ends besides plain rows of the models that cannot take all."""
WINDOWED = {
    "mistral": transformers.MistralConfig(**GROUPED, sliding_window=4),
    "gemma2": transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=4, final_logit_softcapping=0.5),
    "gemma3": transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=4),
}


def build(config: transformers.PreTrainedConfig, seed: int = 0, classify: bool = False):
    config = copy.deepcopy(config)
    kind = AutoModelForCausalLM
    if classify:
        config.num_labels = 1
        kind = AutoModelForSequenceClassification
    torch.manual_seed(seed)
    model = kind.from_config(config).eval()
    with torch.no_grad():  # from_config draws small weights; larger ones make positions and masks matter
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else None
    return jitter(model)


def groups(lengths: Sequence[tuple[int, Sequence[int]]], seed: int = 0) -> list[EncodedGroup]:
    """Random groups: (prompt length, response lengths) for each."""
    draw = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, VOCABULARY) for _ in range(count))

    return [
        EncodedGroup(ids(prompt), tuple(EncodedResponse(ids(n), (True,) * n) for n in responses), Group("x"))
        for prompt, responses in lengths
    ]


UNEVEN = groups([(3, (7, 1, 12)), (9, (2, 12, 1)), (1, (5, 5, 3))])


def naive_logprobs(model, group: EncodedGroup, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of one response: the whole row alone, no padding, the model's own logits."""
    prompt, response = list(group.prompt_ids), list(group.responses[k].ids)
    logits = model(torch.tensor([prompt + response])).logits[0]
    logprobs = (logits / temperature).log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    return torch.stack([logprobs[i, t] for i, t in zip(at, response, strict=True)]), torch.stack(
        [entropy[i] for i in at]
    )


def padded(batch: GroupBatch, left: int, right: int, junk: int) -> GroupBatch:
    """The same groups under more padding, full of another token."""

    def grow(tensor: Tensor, value, response: bool) -> Tensor:
        sides = (0, right) if response else (left, 0)
        return torch.nn.functional.pad(tensor, sides, value=value)

    return GroupBatch(
        prompt_ids=grow(torch.where(batch.prompt_attention, batch.prompt_ids, junk), junk, False),
        prompt_attention=grow(batch.prompt_attention, False, False),
        response_ids=grow(torch.where(batch.response_attention, batch.response_ids, junk), junk, True),
        response_attention=grow(batch.response_attention, False, True),
        mask=grow(batch.mask, False, True),
    )


def checkpoint_activations(model) -> None:
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # renamed in 5.2x
    getattr(model, f"{name}_checkpointing_enable")()


GRADIENT = {"atol": 1e-5, "rtol": 1e-5}
"""How close gradients of a Llama in double precision come: its norms compute in float32."""


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [*CONFIGS, *WINDOWED])
@torch.no_grad()
def test_logprobs_and_entropy_are_those_of_each_separate_row(name: str) -> None:
    model = build((CONFIGS | WINDOWED)[name])
    logprobs, entropy = response_logprobs(model, collate(UNEVEN), temperature=0.7)
    for p, group in enumerate(UNEVEN):
        for k, response in enumerate(group.responses):
            expected = naive_logprobs(model, group, k, temperature=0.7)
            torch.testing.assert_close(logprobs[p, k, : len(response.ids)], expected[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(entropy[p, k, : len(response.ids)], expected[1], atol=1e-5, rtol=1e-5)
            assert not logprobs[p, k, len(response.ids) :].any()
            assert not entropy[p, k, len(response.ids) :].any()


def back_ends(model) -> tuple[BackEnd, ...]:
    """Those that a model can take, by whether asking for them is refused."""
    possible: list[BackEnd] = []
    for back_end in BACK_ENDS:
        try:
            response_states(model, collate(groups([(1, (1, 1))])), back_end=back_end)
        except ModelError:
            continue
        possible.append(back_end)
    return tuple(possible)


@contextmanager
def double_throughout() -> Iterator[None]:
    """Norms and rotations of the Llama family compute in float32 whatever the weights; here in double precision."""
    single, convert = torch.float32, Tensor.to

    def to(tensor: Tensor, *arguments: Any, **named: Any) -> Tensor:
        arguments = tuple(torch.float64 if argument is single else argument for argument in arguments)
        return convert(
            tensor, *arguments, **{key: torch.float64 if value is single else value for key, value in named.items()}
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "to", to)
        patch.setattr(Tensor, "float", Tensor.double)
        yield


@pytest.mark.parametrize("name", [*CONFIGS, *WINDOWED])
def test_every_back_end_that_a_model_can_take_gives_the_same_values_and_gradients(name: str) -> None:
    model, batch = build((CONFIGS | WINDOWED)[name]), padded(collate(UNEVEN), 2, 3, junk=7)
    precise = name != "bloom"  # in double precision its own mask of a padded place is NaN
    model = model.double() if precise else model
    weights = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = {}
    with double_throughout() if precise else nullcontext():
        for back_end in back_ends(model):
            logprobs, _ = response_logprobs(model, batch, back_end=back_end)
            found[back_end] = (logprobs.detach(), gradients(model, (logprobs * weights).sum()))
    values, rows = found.pop("rows")
    assert set(found) == set(SHARING.get(name, ("cache", "joined")))
    assert rows.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    loss = 1.0 if precise else 1e5
    for back_end, (other, gradient) in found.items():
        torch.testing.assert_close(other, values, atol=1e-10 * loss, rtol=0)
        for parameter, expected in rows.items():
            gap = float((gradient[parameter] - expected).norm())
            assert gap <= 1e-9 * loss * max(float(expected.norm()), 1e-3), (back_end, parameter, gap)


@pytest.mark.parametrize("back_end", ["cache", "joined"])
def test_back_ends_agree_in_float32(back_end: BackEnd) -> None:
    model, batch = build(CONFIGS["llama"]), collate(UNEVEN)
    found, rows = (response_logprobs(model, batch, back_end=each)[0] for each in (back_end, "rows"))
    torch.testing.assert_close(found, rows, atol=1e-5, rtol=0)
    first, second = gradients(model, found.sum()), gradients(model, rows.sum())
    for parameter, expected in second.items():
        assert (first[parameter] - expected).norm() <= 1e-5 * expected.norm() + 1e-7, parameter


def test_gradient_equals_that_of_separate_rows() -> None:
    model = build(CONFIGS["llama"]).double()
    naive = sum(naive_logprobs(model, group, k)[0].sum() for group in UNEVEN for k in range(3))
    expected = gradients(model, naive)
    found = gradients(model, response_logprobs(model, collate(UNEVEN))[0].sum())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, **GRADIENT)


@pytest.mark.parametrize("back_end", BACK_ENDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt"])
@torch.no_grad()
def test_F1_amount_and_content_of_padding_do_not_matter(name: str, back_end: BackEnd) -> None:
    model, batch = build(CONFIGS[name]).double(), collate(UNEVEN)
    expected, _ = response_logprobs(model, batch, back_end=back_end)
    for left, right in ((0, 0), (1, 0), (0, 3), (11, 7)):
        found, _ = response_logprobs(model, padded(batch, left, right, junk=7), back_end=back_end)
        torch.testing.assert_close(found[..., : expected.shape[-1]], expected, atol=1e-11, rtol=0)
        assert not found[..., expected.shape[-1] :].any()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_F1_gradients_do_not_see_padding(back_end: BackEnd) -> None:
    model, batch = build(CONFIGS["llama"]).double(), collate(UNEVEN)
    expected = gradients(model, response_logprobs(model, batch, back_end=back_end)[0].sum())
    found = gradients(model, response_logprobs(model, padded(batch, 5, 4, junk=3), back_end=back_end)[0].sum())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, **GRADIENT)


@torch.no_grad()
def test_long_padding_does_not_run_out_of_positions() -> None:
    model = build(CONFIGS["gpt2"])  # 64 learned positions: a padded position counted as real would be out of range
    batch = padded(collate(UNEVEN), 40, 40, junk=3)
    for back_end in BACK_ENDS:
        assert response_logprobs(model, batch, back_end=back_end)[0].isfinite().all()


@torch.no_grad()
def test_forced_tokens_are_seen_and_not_scored() -> None:
    group = groups([(4, (6,))])[0]
    masked = EncodedResponse(group.responses[0].ids, (True, False, False, True, True, True))
    batch = collate([EncodedGroup(group.prompt_ids, (masked,), group.source)])
    model = build(CONFIGS["llama"])
    logprobs, _ = response_logprobs(model, batch)
    expected, _ = naive_logprobs(model, group, 0)
    torch.testing.assert_close(logprobs[0, 0], expected * torch.tensor(masked.mask), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[(4, (0,))], [(4, (1,))], [(1, (1, 1))], [(3, (0, 5)), (2, (1, 0))]])
@torch.no_grad()
def test_empty_and_single_token_responses(lengths: list) -> None:
    model, encoded = build(CONFIGS["llama"]), groups(lengths)
    for back_end in BACK_ENDS:
        logprobs, entropy = response_logprobs(model, collate(encoded), back_end=back_end)
        assert logprobs.shape == entropy.shape == collate(encoded).shape
        for p, group in enumerate(encoded):
            for k, response in enumerate(group.responses):
                if response.ids:
                    expected, _ = naive_logprobs(model, group, k)
                    torch.testing.assert_close(logprobs[p, k, : len(response.ids)], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_states_include_the_last_token_on_request() -> None:
    model, batch = build(CONFIGS["llama"]), collate(UNEVEN)
    prompts, responses, tokens = batch.shape
    for back_end in BACK_ENDS:
        without = response_states(model, batch, back_end=back_end)
        final = response_states(model, batch, back_end=back_end, final=True)
        assert without.shape == (prompts, responses, tokens, 32)
        assert final.shape == (prompts, responses, tokens + 1, 32)
        torch.testing.assert_close(final[:, :, :tokens], without, atol=1e-5, rtol=0)


def test_the_last_token_runs_through_the_model_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(CONFIGS["llama"]), collate(UNEVEN)
    seen: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    response_states(model, batch, back_end="cache")
    response_states(model, batch, back_end="cache", final=True)
    response_states(model, batch, back_end="rows")
    assert seen == [3 * 9, 9 * 11, 3 * 9, 9 * 12, 9 * (9 + 11)]


@pytest.mark.parametrize("name", WINDOWED)
def test_sliding_windows_take_plain_rows(name: str) -> None:
    model = build(WINDOWED[name])
    assert not plain_attention(find_decoder(model))
    with pytest.raises(ModelError, match="back_end='rows'"):
        response_states(model, collate(UNEVEN), back_end="cache")


def test_gradient_checkpointing_takes_plain_rows_and_gives_the_same_gradient() -> None:
    model, batch = build(CONFIGS["llama"]).double(), collate(UNEVEN)
    expected = gradients(model, response_logprobs(model, batch, back_end="cache")[0].sum())
    checkpoint_activations(model)
    model.train()
    with pytest.raises(ModelError, match="gradient checkpointing"):
        response_states(model, batch, back_end="cache")
    found = gradients(model, response_logprobs(model, batch)[0].sum())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, **GRADIENT)
    model.eval()  # nothing is checkpointed outside training
    response_states(model, batch, back_end="cache")


def test_the_prompt_is_shared_only_where_it_pays() -> None:
    model = build(CONFIGS["llama"])
    calls: list[int] = []
    model.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    response_states(model, collate(groups([(5, (4,)), (3, (2,))])))
    assert len(calls) == 1
    response_states(model, collate(groups([(5, (4, 4)), (3, (2, 1))])))
    assert len(calls) == 3


@torch.no_grad()
def test_a_bare_decoder_gives_the_same_states() -> None:
    model, batch = build(CONFIGS["llama"]), collate(UNEVEN)
    torch.testing.assert_close(response_states(model.model, batch), response_states(model, batch))


def test_F12_logits_exist_only_at_response_tokens_and_by_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(CONFIGS["llama"]), collate(UNEVEN)
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    whole, _ = response_logprobs(model, batch, chunk_size=10_000)
    total = int(batch.mask.sum())
    assert total == 48 < batch.mask.numel()
    assert [count for count in rows if count] == [total]
    rows.clear()
    chunked, _ = response_logprobs(model, batch, chunk_size=10)
    first, second = gradients(model, whole.sum()), gradients(model, chunked.sum())
    assert max(rows) == 10
    assert sum(rows) == 2 * total  # forward, and again in the backward pass
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)
    for parameter, gradient in first.items():
        torch.testing.assert_close(second[parameter], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite", "cohere", "gpt_neox"])
@torch.no_grad()
def test_projection_gives_the_models_own_logits(name: str) -> None:
    model = build((CONFIGS | WINDOWED)[name])
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    states = find_decoder(model)(input_ids=ids).last_hidden_state
    torch.testing.assert_close(projection(model)(states), model(ids).logits)


def plain_scores(model, encoded: Sequence[EncodedGroup], side: str = "right") -> Tensor:
    """The scores of `AutoModelForSequenceClassification` of all rows at once, padded on one side."""
    rows = [list(group.prompt_ids + response.ids) for group in encoded for response in group.responses]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = [row + pad if side == "right" else pad + row for row, pad in zip(rows, pads, strict=True)]
    real = [
        [1] * len(row) + pad if side == "right" else pad + [1] * len(row) for row, pad in zip(rows, pads, strict=True)
    ]
    logits = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(real)).logits
    return logits.squeeze(-1).reshape(len(encoded), -1)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "mistral"])
@torch.no_grad()
def test_F8_score_is_that_of_plain_transformers_up_to_the_offset(name: str) -> None:
    model = build((CONFIGS | WINDOWED)[name], classify=True)
    encoded = groups([(length % 7 + 1, (length, 1, 13 - length)) for length in range(1, 13)])
    expected = plain_scores(model, encoded)
    torch.testing.assert_close(response_scores(model, collate(encoded)), expected, atol=1e-5, rtol=0)
    model.config.kleash_offset = 1.5
    torch.testing.assert_close(response_scores(model, collate(encoded)), expected - 1.5, atol=1e-5, rtol=0)


@torch.no_grad()
def test_F8_score_does_not_depend_on_batch_size_padding_or_back_end() -> None:
    model = build(CONFIGS["llama"], classify=True)
    encoded = groups([(length % 5 + 1, (length, 14 - length)) for length in [*range(1, 13), 0, 3, 3, 14]])
    alone = torch.cat([response_scores(model, collate([group])) for group in encoded])
    for size, (left, right) in ((1, (6, 0)), (2, (0, 9)), (3, (3, 2)), (16, (0, 0))):
        parts = [padded(collate(encoded[start : start + size]), left, right, junk=9) for start in range(0, 16, size)]
        for back_end in BACK_ENDS:
            found = torch.cat([response_scores(model, part, back_end=back_end) for part in parts])
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_F3_score_is_read_at_the_last_real_token_of_any_id() -> None:
    model = build(CONFIGS["llama"], classify=True)
    end = pad = 0  # pad is end: the last real token looks like padding
    group = EncodedGroup(
        (end, 5, 6), (EncodedResponse((7, 8, end), (True,) * 3), EncodedResponse((9,), (True,))), Group("x")
    )
    scores = response_scores(model, collate([group], pad_id=pad))
    for k, row in enumerate(([0, 5, 6, 7, 8, 0], [0, 5, 6, 9])):
        state = model.model(torch.tensor([row])).last_hidden_state[0, -1]
        torch.testing.assert_close(scores[0, k], model.score(state)[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_empty_response_is_scored_at_the_end_of_its_prompt() -> None:
    model = build(CONFIGS["llama"], classify=True)
    group = groups([(5, (0, 4))])[0]
    state = model.model(torch.tensor([group.prompt_ids])).last_hidden_state[0, -1]
    for back_end in BACK_ENDS:
        scores = response_scores(model, collate([group]), back_end=back_end)
        torch.testing.assert_close(scores[0, 0], model.score(state)[0], atol=1e-5, rtol=0)


def test_models_without_the_head_are_refused() -> None:
    model = build(CONFIGS["llama"])
    with pytest.raises(ModelError, match="score"):
        response_scores(model, collate(UNEVEN))
    with pytest.raises(ModelError, match="output embedding"):
        projection(model.model)


@pytest.mark.parametrize("name", [*CONFIGS, *WINDOWED])
def test_check_accepts_what_the_field_uses(name: str) -> None:
    check_forward(build((CONFIGS | WINDOWED)[name]), collate(UNEVEN))


def test_check_accepts_a_reward_model_and_restores_its_mode() -> None:
    model = build(CONFIGS["llama"], classify=True).train()
    check_forward(model, collate(UNEVEN))
    assert model.training


def test_check_names_a_model_that_changes_its_logits_elsewhere() -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    torch.manual_seed(0)
    with pytest.raises(ModelError, match="own forward"):
        check_forward(jitter(Odd(LlamaConfig(**GROUPED))), collate(UNEVEN))


@pytest.mark.parametrize("back_end", ["cache", "joined"])
def test_check_names_the_back_end_that_differs(back_end: BackEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = forward._BACK_ENDS[back_end]
    monkeypatch.setitem(forward._BACK_ENDS, back_end, lambda *args: honest(*args) * 1.5)
    with pytest.raises(ModelError, match=f"shared prompt \\({back_end}\\)"):
        check_forward(build(CONFIGS["llama"]), collate(UNEVEN))
