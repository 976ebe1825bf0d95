from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from kleash.sampling.local import LocalSampler, draw
from kleash.sampling.truncation import Truncation
from kleash.testing import tiny_model, tiny_tokenizer

CASES = [
    Truncation(top_k=1), Truncation(top_k=3), Truncation(top_k=50), Truncation(top_k=51), Truncation(top_k=1000),
    Truncation(top_p=0.9), Truncation(top_p=0.3), Truncation(top_p=1e-9), Truncation(top_p=1.0), Truncation(min_p=0.1),
    Truncation(min_p=1.0), Truncation(top_k=20, top_p=0.8, min_p=0.05), Truncation(top_k=5, top_p=0.99, min_p=0.3),
]  # fmt: skip


NAMES = [f"k{each.top_k}-p{each.top_p:g}-min{each.min_p:g}" for each in CASES]


def of_transformers(truncation: Truncation, temperature: float) -> LogitsProcessorList:
    """The warpers that `generate` applies, in its order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if truncation.top_k is not None:
        warpers.append(TopKLogitsWarper(truncation.top_k))
    if truncation.top_p < 1:
        warpers.append(TopPLogitsWarper(truncation.top_p))
    if truncation.min_p > 0:
        warpers.append(MinPLogitsWarper(truncation.min_p))
    return warpers


def by_definition(logits: list[float], truncation: Truncation) -> list[float]:
    """The truncated distribution of logits that do not tie, token by token."""
    tokens = sorted(range(len(logits)), key=lambda token: -logits[token])
    if truncation.top_k is not None:
        tokens = tokens[: truncation.top_k]

    def shares() -> dict[int, float]:
        weights = {token: math.exp(logits[token]) for token in tokens}
        return {token: weight / sum(weights.values()) for token, weight in weights.items()}

    before, nucleus, of = 0.0, [], shares()
    for token in tokens:
        if before < truncation.top_p:
            nucleus.append(token)
        before += of[token]
    tokens = nucleus
    of = shares()
    tokens = [token for token in nucleus if of[token] >= truncation.min_p * of[nucleus[0]]]
    of = shares()
    return [of.get(token, 0.0) for token in range(len(logits))]


def random_logits(seed: int, rows: int = 20, size: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("truncation", CASES, ids=NAMES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_it_is_that_of_transformers(truncation: Truncation, temperature: float) -> None:
    logits = random_logits(0)
    ours = truncation(logits / temperature)[0]
    theirs = of_transformers(truncation, temperature)(torch.zeros(20, 1, dtype=torch.long), logits)
    assert torch.equal(ours, theirs)
    assert ((ours > -torch.inf).sum(-1) >= 1).all()


@pytest.mark.parametrize("truncation", CASES, ids=NAMES)
def test_the_sampler_draws_from_exactly_the_truncated_distribution(truncation: Truncation) -> None:
    """Every number of a fine grid through `draw`: the share of the grid that a token gets is its probability."""
    grid = 20_000
    uniforms = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    for row in random_logits(1, rows=2, size=8):
        expected = torch.tensor(by_definition(row.tolist(), truncation), dtype=torch.float64)
        tokens, logprobs, _ = draw(row.expand(grid, -1), uniforms, temperature=1.0, truncation=truncation)
        shares = torch.bincount(tokens, minlength=8).double() / grid
        torch.testing.assert_close(shares, expected, atol=1.5 / grid, rtol=0)
        torch.testing.assert_close(logprobs.exp(), expected[tokens])


def test_the_likeliest_token_passes_whatever_the_sums_are_rounded_to() -> None:
    logits = random_logits(3, rows=200, size=1000).float()
    assert bool((logits.softmax(-1).cumsum(-1, dtype=torch.float64)[:, -1] < 1 - 1e-9).any()), "or nothing is rounded"
    allowed = Truncation(top_p=1e-9)(logits)[0] > -torch.inf
    assert torch.equal(allowed.nonzero()[:, 1], logits.argmax(-1))


def test_tokens_that_tie_are_cut_the_same_way_in_every_batch() -> None:
    row = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    for rows in (1, 2, 300):
        logits = row.expand(rows, -1)
        kept = [(truncation(logits)[0] > -torch.inf) for truncation in (Truncation(top_k=2), Truncation(top_p=0.4))]
        assert kept[0].tolist() == [[True, False] * 3] * rows, "all that tie with the last of the k"
        assert kept[1].tolist() == [[False, False, True, False, True, False]] * rows, "enough of them, larger ids first"


@pytest.mark.parametrize(
    ("truncation", "logits"),
    [
        (Truncation(top_k=1), [0.0, 5e-7, -1.0]),
        (Truncation(top_p=0.5 + 1e-8), [math.log(0.5), math.log(0.3), math.log(0.2)]),
        (Truncation(min_p=0.6 - 1e-8), [math.log(0.5), math.log(0.3), math.log(0.2)]),
    ],
)
def test_a_border_that_rounding_could_cross_is_a_near_tie(truncation: Truncation, logits: list[float]) -> None:
    rows = torch.tensor([logits, [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert truncation(rows)[1].tolist() == [True, False]
    near = draw(rows, torch.full((2,), 0.3, dtype=torch.float64), temperature=1.0, truncation=truncation)[2]
    assert near.tolist() == [True, False]


@torch.no_grad()
def test_samples_pass_and_have_the_log_probabilities_of_the_truncated_distribution() -> None:
    model, truncation, prompt = tiny_model(), Truncation(top_k=10, top_p=0.9), [6, 7]
    sampler = LocalSampler(model, tiny_tokenizer(), max_new_tokens=6, temperature=0.8, truncation=truncation)
    assert not sampler.exact, "the trainer's are those of the whole distribution"
    batch = sampler([prompt], group_size=8, seed=0)
    for k in range(8):
        ids = batch.response_ids[0, k][batch.mask[0, k]]
        logits = model(torch.tensor([[*prompt, *ids.tolist()]])).logits[0, len(prompt) - 1 : -1].double()
        allowed = truncation(logits / 0.8)[0].log_softmax(-1)
        expected = allowed.gather(-1, ids[:, None])[:, 0]
        torch.testing.assert_close(batch.sampler_logprobs[0, k, : len(ids)].double(), expected, atol=1e-4, rtol=0)


def test_greedy_takes_the_likeliest_whatever_is_cut() -> None:
    logits = random_logits(2)
    for truncation in CASES:
        tokens = draw(logits, torch.zeros(20, dtype=torch.float64), temperature=0.0, truncation=truncation)[0]
        assert torch.equal(tokens, logits.argmax(-1))
