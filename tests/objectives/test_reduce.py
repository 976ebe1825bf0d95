from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kleash.objectives import masked_mean, masked_sum, masked_whiten

shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)


@st.composite
def masked_arrays(draw):
    shape = draw(shapes)
    values = draw(hnp.arrays(np.float64, shape, elements=st.floats(-100, 100, width=32)))
    return values, draw(hnp.arrays(np.bool_, shape))


@settings(deadline=None)
@given(masked_arrays(), st.data())
def test_sum_and_mean_are_those_of_numpy_over_unmasked_positions(case, data):
    values, mask = case
    dim = data.draw(st.none() | st.integers(-values.ndim, values.ndim - 1))
    kept = np.ma.array(values, mask=~mask)
    x, m = torch.from_numpy(values), torch.from_numpy(mask)
    total, mean = masked_sum(x, m, dim), masked_mean(x, m, dim)
    np.testing.assert_allclose(total, np.ma.filled(kept.sum(axis=dim), 0.0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(mean, np.ma.filled(kept.mean(axis=dim), 0.0), rtol=1e-12, atol=1e-9)


def test_mean_over_two_axes_by_hand():
    x = torch.tensor([[[1.0, 2.0], [3.0, 50.0]], [[5.0, 70.0], [90.0, 80.0]]])
    mask = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    assert masked_mean(x, mask, (1, 2)).tolist() == [2.0, 5.0]
    assert masked_sum(x, mask, (0, 2)).tolist() == [8.0, 3.0]


@settings(deadline=None)
@given(masked_arrays())
def test_whitening_is_that_of_numpy_over_unmasked_positions(case):
    values, mask = case
    x, m = torch.from_numpy(values), torch.from_numpy(mask)
    white, scaled = masked_whiten(x, m).numpy(), masked_whiten(x, m, shift_mean=False).numpy()
    assert not white[~mask].any()
    assert not scaled[~mask].any()
    if mask.any():
        kept = values[mask]
        expected = (kept - kept.mean()) / np.sqrt(kept.var() + 1e-8)
        np.testing.assert_allclose(white[mask], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(scaled[mask], expected + kept.mean(), rtol=1e-9, atol=1e-9)


def test_whitened_values_have_mean_0_and_variance_1():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7 + 3
    mask = x > 0
    kept = masked_whiten(x, mask)[mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-9)
    assert kept.var(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert masked_whiten(x, mask, shift_mean=False)[mask].mean().item() == pytest.approx(x[mask].mean().item())


@pytest.mark.parametrize("kept", [0, 1])
def test_F4_whitening_one_value_or_none_gives_zero_and_no_nan(kept):
    x = torch.tensor([[3.0, -1.0], [7.0, 2.0]], requires_grad=True)
    mask = torch.zeros(2, 2, dtype=torch.bool)
    mask.view(-1)[:kept] = True
    white = masked_whiten(x, mask)
    assert white.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    white.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert masked_whiten(x, mask, shift_mean=False).flatten().tolist() == [3.0 * kept, 0.0, 0.0, 0.0]


def test_whitening_equal_values_gives_zero():
    white = masked_whiten(torch.full((3, 7), 0.1), torch.ones(3, 7, dtype=torch.bool))
    assert white.abs().max() < 1e-3
