from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicLayer

from kleash.data.batch import GroupBatch
from kleash.errors import DataError, ModelError
from kleash.models.forward import response_logprobs
from kleash.sampling import local
from kleash.sampling.local import LocalSampler, draw, stream
from tests.jitter import jitter

PAD, END = 0, 1
PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9, 10], [11, 12], [8, 8, 8], [20, 21, 22, 23, 24]]


def tokenizer(size: int = 40, **special: str) -> PreTrainedTokenizerFast:
    words = {f"w{index}": index for index in range(size)}
    special = special or {"pad_token": "w0", "eos_token": "w1"}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), clean_up_tokenization_spaces=False, **special
    )


def build(kind: str = "llama", size: int = 40, spread: float = 3.0, **changes):
    """A tiny model whose next-token distributions are far from uniform."""
    grouped = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": PAD,
        "eos_token_id": END,
        "bos_token_id": None,
    } | changes
    ungrouped = {name: value for name, value in grouped.items() if name != "num_key_value_heads"}
    config = {
        "llama": lambda: LlamaConfig(**grouped),
        "qwen2": lambda: transformers.Qwen2Config(**grouped),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=1
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**ungrouped),
        "mistral": lambda: transformers.MistralConfig(**grouped, sliding_window=4),
        "gemma2": lambda: transformers.Gemma2Config(**grouped, head_dim=8, sliding_window=4),
    }[kind]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(spread) if parameter.dim() > 1 else None
    return jitter(model)


def responses(batch: GroupBatch) -> list[list[list[int]]]:
    rows = zip(batch.response_ids, batch.response_attention, strict=True)
    return [[ids[real].tolist() for ids, real in zip(*row, strict=True)] for row in rows]


def flat(batch: GroupBatch) -> list[list[int]]:
    return [response for group in responses(batch) for response in group]


@pytest.fixture
def model():
    return build()


@pytest.fixture
def sampler(model) -> LocalSampler:
    return LocalSampler(model, tokenizer(), max_new_tokens=16, end_ids=[END, 7, 9])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox", "mistral", "gemma2"])
@torch.no_grad()
def test_F7_logprobs_are_those_of_the_training_forward(kind: str, temperature: float) -> None:
    model = build(kind)
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=16, temperature=temperature, end_ids=[END, 7, 9])
    batch = sampler(PROMPTS, group_size=4, seed=0)
    logprobs, _ = response_logprobs(model, batch, temperature=temperature)
    torch.testing.assert_close(batch.sampler_logprobs, logprobs, atol=1e-4, rtol=0)
    assert len({len(response) for response in flat(batch)}) > 3  # or retirement and padding were not tested


def test_a_response_is_the_same_alone_in_a_batch_in_another_order_and_with_other_siblings(model) -> None:
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=16, end_ids=[END, 7, 9])
    for seed in range(3, 9):
        sampler.near_ties = 0
        whole = sampler(PROMPTS, group_size=5, seed=seed)
        if sampler.near_ties == 0:  # else rounding could decide
            break
    assert sampler.near_ties == 0
    expected = responses(whole)
    for key, prompt in enumerate(PROMPTS):
        alone = sampler([prompt], group_size=1, seed=seed, keys=[key])
        assert responses(alone) == [expected[key][:1]]
        length = len(expected[key][0])
        torch.testing.assert_close(
            alone.sampler_logprobs[0, 0, :length], whole.sampler_logprobs[key, 0, :length], atol=1e-5, rtol=0
        )
    order = [4, 1, 5, 0, 3, 2]
    shuffled = sampler([PROMPTS[key] for key in order], group_size=3, seed=seed, keys=order)
    assert responses(shuffled) == [expected[key][:3] for key in order]


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_retiring_finished_rows_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = LocalSampler(build(kind), tokenizer(), max_new_tokens=16, end_ids=[END, 7, 9])
    found = []
    for share in (10.0, 0.25, 1e-9):  # never, as shipped, at every end
        monkeypatch.setattr(local, "RETIRE_SHARE", share)
        found.append(sampler(PROMPTS, group_size=5, seed=3))
    for batch in found[1:]:
        assert torch.equal(batch.response_ids, found[0].response_ids)
        assert torch.equal(batch.mask, found[0].mask)
        torch.testing.assert_close(batch.sampler_logprobs, found[0].sampler_logprobs, atol=1e-5, rtol=0)


def test_finished_rows_stop_costing(model, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=16, end_ids=[END, 7, 9])
    fed: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    batch = sampler(PROMPTS, group_size=5, seed=3)
    assert fed[0] == len(PROMPTS) * 8  # each prompt once, for all its responses
    real = int(batch.mask.sum()) - 30  # the first token of each row comes from the prompt
    assert sum(fed[1:]) < 1.4 * real < 30 * 15


@pytest.mark.parametrize("max_rows", [2, 7, 13])
def test_blocks_do_not_show(sampler: LocalSampler, max_rows: int) -> None:
    expected = sampler(PROMPTS, group_size=5, seed=3)
    sampler.max_rows = max_rows
    found = sampler(PROMPTS, group_size=5, seed=3)
    assert torch.equal(found.response_ids, expected.response_ids)
    assert torch.equal(found.prompt_ids, expected.prompt_ids)
    assert torch.equal(found.mask, expected.mask)


def test_prompts_of_similar_length_share_a_block(model) -> None:
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=1, max_rows=2)
    fed: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    sampler([[5] * length for length in (30, 2, 29, 1, 3, 31)], group_size=1, seed=0)
    assert fed == [2 * 2, 2 * 29, 2 * 31]


def test_a_longer_limit_extends_and_never_changes(model) -> None:
    short, long = (
        flat(LocalSampler(model, tokenizer(), max_new_tokens=limit)(PROMPTS, group_size=2, seed=1)) for limit in (5, 20)
    )
    assert short == [response[:5] for response in long]


def test_streams_differ_by_seed_key_and_sibling(sampler: LocalSampler) -> None:
    same = [[5, 6, 7]] * 2
    first = flat(sampler(same, group_size=3, seed=0))
    assert len({tuple(response) for response in first}) == 6
    assert flat(sampler(same, group_size=3, seed=0)) == first
    assert not set(map(tuple, first)) & set(map(tuple, flat(sampler(same, group_size=3, seed=1))))
    assert flat(sampler(same, group_size=3, seed=0, keys=[1, 1])) == first[3:] * 2


def test_stream_is_uniform_and_extends() -> None:
    numbers = np.concatenate([stream(0, key, k, 20) for key in range(50) for k in range(4)])
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    first = np.array([stream(0, key, 0, 1)[0] for key in range(1000)])  # across streams as well as along them
    assert stats.kstest(first, "uniform").pvalue > 1e-3
    assert np.array_equal(stream(5, 6, 7, 30)[:8], stream(5, 6, 7, 8))
    assert not np.array_equal(stream(1, 12, 3, 4), stream(11, 2, 3, 4))


@torch.no_grad()
def exact_distribution(model, prompt: Sequence[int], ends: set[int], limit: int, temperature: float) -> dict:
    """Probability of every response of up to `limit` tokens, by the chain rule, one row at a time."""
    found: dict[tuple[int, ...], float] = {}

    def extend(response: tuple[int, ...], probability: float) -> None:
        if len(response) == limit or (response and response[-1] in ends):
            found[response] = probability
            return
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, -1].double()
        for token, p in enumerate((logits / temperature).softmax(-1).tolist()):
            extend((*response, token), probability * p)

    extend((), 1.0)
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_exact_distribution(temperature: float) -> None:
    model, count = build(size=5, spread=2.0), 1500
    sampler = LocalSampler(model, tokenizer(5), max_new_tokens=3, temperature=temperature, end_ids=[END])
    prompts = [[2, 3, 4], [4]]  # the second is padded
    batch = sampler(prompts, group_size=count, seed=0)
    for prompt, drawn in zip(prompts, responses(batch), strict=True):
        exact = exact_distribution(model, prompt, {END}, 3, temperature)
        assert sum(exact.values()) == pytest.approx(1.0)
        assert len(exact) == 1 + 4 + 16 * 5
        counts = {response: 0 for response in exact}
        for response in drawn:
            counts[tuple(response)] += 1
        common = [response for response, p in exact.items() if p * count >= 5]
        observed = [counts[response] for response in common]
        expected = [exact[response] * count for response in common]
        observed.append(count - sum(observed))
        expected.append(count - sum(expected))
        assert len(common) > 15
        assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_the_end_token_is_included_and_nothing_after_it(sampler: LocalSampler) -> None:
    batch = sampler(PROMPTS, group_size=8, seed=0)
    finished = 0
    for response in flat(batch):
        assert not set(response[:-1]) & {END, 7, 9}
        ended = response[-1] in (END, 7, 9)
        finished += ended
        assert ended or len(response) == 16
    assert 10 < finished < 48  # both kinds were seen
    assert torch.equal(batch.mask, batch.response_attention)
    assert (batch.response_ids[~batch.mask] == PAD).all()
    assert not batch.sampler_logprobs[~batch.mask].any()
    lengths = batch.lengths[..., None]  # real tokens come first
    assert torch.equal(batch.response_attention, torch.arange(batch.shape[2]) < lengths)
    assert batch.shape[2] == int(batch.lengths.max())


def test_prompts_come_back_left_padded_in_order_with_the_version(sampler: LocalSampler) -> None:
    batch = sampler(PROMPTS, group_size=2, seed=0, version=17)
    assert batch.version == 17
    assert batch.shape[:2] == (len(PROMPTS), 2)
    for prompt, ids, real in zip(PROMPTS, batch.prompt_ids, batch.prompt_attention, strict=True):
        assert ids[real].tolist() == prompt
        assert real.tolist() == [False] * (8 - len(prompt)) + [True] * len(prompt)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "mistral"])
def test_greedy_is_that_of_generate(kind: str) -> None:
    model = build(kind)
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=20, temperature=0.0)
    found = responses(sampler(PROMPTS[:4], group_size=1, seed=0))
    for prompt, (response,) in zip(PROMPTS[:4], found, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=PAD,
        )
        assert response == whole[0, len(prompt) :].tolist()


@torch.no_grad()
def test_greedy_logprobs_are_those_of_temperature_one(model) -> None:
    batch = LocalSampler(model, tokenizer(), max_new_tokens=8, temperature=0.0)(PROMPTS, group_size=1, seed=0)
    torch.testing.assert_close(batch.sampler_logprobs, response_logprobs(model, batch)[0], atol=1e-4, rtol=0)


def test_draw_inverts_the_distribution() -> None:
    probabilities = torch.tensor([0.0, 0.1, 0.0, 0.4, 0.5, 0.0])
    uniforms = torch.tensor([0.0, 0.05, 0.0999, 0.1001, 0.3, 0.4999, 0.5001, 0.9, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs, near = draw(probabilities.log().expand(9, 6), uniforms, temperature=1.0)
    assert tokens.tolist() == [1, 1, 1, 3, 3, 3, 4, 4, 4]  # never one of probability 0
    torch.testing.assert_close(logprobs.exp(), probabilities[tokens])
    assert not near.any()  # the ends of the unit interval have no neighbour, also behind tokens of probability 0


@pytest.mark.parametrize("offset, counted", [(0.0, True), (5e-7, True), (-5e-7, True), (2e-6, False), (-2e-6, False)])
def test_near_ties_are_seen_on_both_sides_of_a_boundary(offset: float, counted: bool) -> None:
    logits = torch.zeros(3, 4)
    uniforms = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64) + offset
    assert draw(logits, uniforms, temperature=1.0)[2].tolist() == [counted] * 3


def test_near_ties_are_counted_in_real_tokens_only(model, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():  # a uniform policy over 40 tokens: boundaries at multiples of 1/40
        for parameter in model.parameters():
            parameter.zero_()
    planted = np.full(16, 0.5125)  # the middle of token 20
    planted[[2, 4, 9]] = 0.25, 0.5, 0.75  # tokens 10, 20, 30, each at its lower boundary
    monkeypatch.setattr(local, "stream", lambda *args: planted)
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=16)
    sampler(PROMPTS[:2], group_size=2, seed=0)
    assert (sampler.near_ties, sampler.tokens_sampled) == (12, 64)
    planted[5] = 0.0375  # the end token: the tie behind it never happens
    sampler(PROMPTS[:2], group_size=2, seed=0)
    assert (sampler.near_ties, sampler.tokens_sampled) == (12 + 8, 64 + 24)


def test_greedy_ties_are_counted() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [0.0, 3.0, 2.9], [0.0, 3.0, 3.0 + 2e-7]])
    assert draw(logits, torch.zeros(3, dtype=torch.float64), temperature=0.0)[2].tolist() == [True, False, True]


def test_F7_dropout_is_off_while_sampling_and_the_mode_restored() -> None:
    model = build(attention_dropout=0.5)
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=16)
    expected = flat(sampler(PROMPTS, group_size=2, seed=0))
    assert not model.training
    model.train()
    assert flat(sampler(PROMPTS, group_size=2, seed=0)) == expected
    assert model.training


def test_the_model_is_restored_when_sampling_fails(sampler: LocalSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler.model.train()
    monkeypatch.setattr(sampler, "_sample", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sampler(PROMPTS, group_size=1, seed=0)
    assert sampler.model.training


def test_sampled_responses_can_be_trained_on(sampler: LocalSampler) -> None:
    batch = sampler(PROMPTS, group_size=2, seed=0)
    logprobs, _ = response_logprobs(sampler.model, batch)
    (logprobs * batch.sampler_logprobs).sum().backward()  # an inference tensor could not be saved for this
    assert sampler.model.lm_head.weight.grad.isfinite().all()


def test_it_reads_the_trainers_weights_as_they_are(sampler: LocalSampler) -> None:
    before = flat(sampler(PROMPTS, group_size=1, seed=0))
    with torch.no_grad():
        sampler.model.lm_head.weight.mul_(-1.0)
    sampler.sync(1)
    assert flat(sampler(PROMPTS, group_size=1, seed=0)) != before


@torch.no_grad()
def test_it_runs_under_autocast(model) -> None:
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=8)
    with torch.autocast("cpu", torch.bfloat16):
        batch = sampler(PROMPTS, group_size=2, seed=0)
        logprobs, _ = response_logprobs(model, batch)
    assert batch.sampler_logprobs.dtype == torch.float32
    torch.testing.assert_close(batch.sampler_logprobs, logprobs.float(), atol=0.3, rtol=0)


def test_prompts_that_cannot_be_sampled_are_refused(model) -> None:
    sampler = LocalSampler(model, tokenizer(), max_new_tokens=50)
    sampler([[5] * 14], group_size=1, seed=0)
    with pytest.raises(DataError, match=r"prompt 1 has 15 tokens and 50 new .* 64"):
        sampler([[5], [5] * 15], group_size=1, seed=0)
    with pytest.raises(DataError, match="prompt 2 is empty"):
        sampler([[5], [6], []], group_size=1, seed=0)
    with pytest.raises(DataError, match="no prompt"):
        sampler([], group_size=1, seed=0)
    with pytest.raises(ModelError, match="end token"):
        LocalSampler(model, tokenizer(pad_token="w0"), max_new_tokens=4)
    with pytest.raises(ModelError, match="end_ids"):
        LocalSampler(model, tokenizer(), max_new_tokens=4, end_ids=[])


def test_buffered_cache_is_that_of_transformers() -> None:
    """In-place writes, views and moved rows against concatenation, over a random course of both."""
    generator = torch.Generator().manual_seed(0)

    def states(rows: int, length: int) -> Tensor:
        return torch.randn(rows, 2, length, 4, generator=generator)

    plain = DynamicLayer()
    plain.update(states(3, 5), states(3, 5))
    ours = local._FilledLayer(plain.keys, plain.values, repeats=4, room=9)
    plain.batch_repeat_interleave(4)
    for kept in (None, [0, 2, 3, 5, 7, 11], None, None, [1, 4], None, [0], None):
        if kept is not None:
            plain.batch_select_indices(torch.tensor(kept))
            ours.batch_select_indices(torch.tensor(kept))
        else:
            new = states(len(plain.keys), 1), states(len(plain.keys), 1)
            for found, expected in zip(ours.update(*new), plain.update(*new), strict=True):
                assert torch.equal(found, expected)
        assert ours.get_seq_length() == plain.get_seq_length()
        assert ours.get_mask_sizes(1) == plain.get_mask_sizes(1)
        assert torch.equal(ours.keys, plain.keys)
        assert torch.equal(ours.values, plain.values)


@torch.no_grad()
def test_pad_equal_to_end_changes_nothing(model) -> None:
    apart = LocalSampler(model, tokenizer(), max_new_tokens=16, end_ids=[END])
    same = LocalSampler(model, tokenizer(pad_token="w1", eos_token="w1"), max_new_tokens=16, end_ids=[END])
    first, second = (sampler(PROMPTS, group_size=4, seed=2) for sampler in (apart, same))
    assert responses(first) == responses(second)
    assert torch.equal(first.mask, second.mask)


def test_eager_attention_gives_the_same() -> None:
    model = build()
    eager = LlamaForCausalLM(copy.deepcopy(model.config)).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    found = [
        flat(LocalSampler(each, tokenizer(), max_new_tokens=12)(PROMPTS, group_size=2, seed=0))
        for each in (model, eager)
    ]
    assert found[0] == found[1]
    assert len(set(map(tuple, itertools.chain(*found)))) > 6
