import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.monitor.histograms import BINS, histogram, strided_sample, zero_fraction


def test_counts_are_numpys() -> None:
    # Bins of width 1 and values in their middles: no rounding decides, so the counts have to be equal.
    rng = np.random.default_rng(0)
    values = np.concatenate([[0.0, BINS], rng.integers(0, BINS, 5000) + 0.5]).astype(np.float32)
    counts, edges = np.histogram(values, BINS, (0, BINS))
    found = histogram(torch.from_numpy(values), sample=10**6)
    assert (found.low, found.high) == (edges[0], edges[-1])
    np.testing.assert_array_equal(found.counts, counts)
    assert found.total == values.sum(dtype=np.float64)
    assert found.total_squares == pytest.approx(np.square(values, dtype=np.float64).sum(), rel=1e-6)


def test_random_values_land_within_rounding_of_numpys_bins() -> None:
    values = np.random.default_rng(1).normal(size=50_000).astype(np.float32)
    counts, _ = np.histogram(values, BINS)
    found = histogram(torch.from_numpy(values), sample=10**6)
    assert np.abs(np.cumsum(found.counts) - np.cumsum(counts)).max() <= 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_floating_type(dtype: torch.dtype) -> None:
    values = torch.randn(2, 64, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = histogram(values, sample=10**6)
    assert found.counts.sum() == values.numel()
    assert found.total == pytest.approx(values.double().sum().item(), rel=1e-4)
    assert (found.low, found.high) == (values.min().item(), values.max().item())


def test_rectified() -> None:
    values = torch.tensor([-3.0, -1.0, 0.0, 2.0, 4.0])
    found = histogram(values, sample=100, rectify=True)
    assert (found.low, found.high, found.total) == (0.0, 4.0, 6.0)
    assert found.counts[0] == 3
    assert zero_fraction(values, rectify=True) == 0.6
    assert zero_fraction(values) == 0.2


@pytest.mark.parametrize("values", [[], [2.5], [0.0, 0.0], [math.nan, math.inf]])
def test_nothing_to_spread_over_bins(values: list[float]) -> None:
    found = histogram(torch.tensor(values), sample=100)
    finite = sum(map(math.isfinite, values))
    assert found.counts.sum() == finite
    assert found.high > found.low


def test_values_that_are_not_finite_are_left_out() -> None:
    found = histogram(torch.tensor([math.nan, 1.0, math.inf, 3.0, -math.inf]), sample=100)
    assert (found.low, found.high, found.total, found.counts.sum()) == (1.0, 3.0, 4.0, 2)


def test_values_that_only_overflow_together_have_a_histogram() -> None:
    found = histogram(torch.tensor([-3e38, 0.0, 3e38]), sample=100)
    assert found.counts.sum() == 3


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    limit=st.integers(1, 300),
    channels_last=st.booleans(),
)
@settings(max_examples=60)
def test_a_sample_is_bounded_and_spread_over_channels(
    shape: tuple[int, int, int, int], limit: int, channels_last: bool
) -> None:
    N, C, H, W = shape
    values = torch.arange(N * C * H * W, dtype=torch.float64).view(N, H, W, C).permute(0, 3, 1, 2)
    if not channels_last:
        values = values.contiguous()
    sample = strided_sample(values, limit)
    assert len(sample) <= limit
    assert len(sample.unique()) == len(sample)
    if channels_last and len(sample) >= C:
        assert {int(value) % C for value in sample} == set(range(C))


@pytest.mark.parametrize("shape", [(128, 64, 24, 24), (128, 64, 12, 12), (512, 64, 32, 32)])
def test_a_large_sample_is_nearly_as_large_as_allowed(shape: tuple[int, int, int, int]) -> None:
    values = torch.zeros(1).expand(math.prod(shape))
    assert 0.9 * 2**16 < len(strided_sample(values, 2**16)) <= 2**16


def test_a_tensor_within_the_limit_is_taken_whole() -> None:
    values = torch.randn(3, 5)
    assert torch.equal(strided_sample(values, 15), values.flatten())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sparsity_is_exact(dtype: torch.dtype, channels_last: bool) -> None:
    values = torch.randn(4, 32, 7, 7, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    if channels_last:
        values = values.to(memory_format=torch.channels_last)
    expected = float((values.float().numpy() == 0).mean())
    assert zero_fraction(values) == expected
    assert zero_fraction(values - values.max() * 0, rectify=True) == expected


def test_sparsity_of_odd_tensors() -> None:
    assert zero_fraction(torch.tensor([math.nan, 0.0, -0.0, 1.0])) == 0.5
    assert zero_fraction(torch.tensor([math.nan, 0.0, -1.0, 1.0]), rectify=True) == 0.5
    assert math.isnan(zero_fraction(torch.tensor([])))
