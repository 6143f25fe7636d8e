"""Pooling of tokens against plain means, PyTorch's adaptive pooling and its own form as a matrix product."""

import pytest
import torch
import torch.nn.functional as F

from sit_atconv.ops.pooling import cached_pooling_matrix, pool_tokens, pooling_matrix

GRIDS = [(1, 1), (1, 7), (5, 3), (4, 4), (6, 11), (9, 2)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_strips_are_runs_of_the_raster_order(grid, kernel_size):
    H, W = grid
    N, K = H * W, kernel_size**2
    tokens = torch.randn(2, N, 3, dtype=torch.float64)
    pooled = pool_tokens(tokens, grid, kernel_size, "strips")
    expected = torch.stack([tokens[:, i * N // K : -(-(i + 1) * N // K)].mean(1) for i in range(K)], dim=1)
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_grid_pooling_averages_tiles(grid, kernel_size):
    tokens = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64)
    pooled = pool_tokens(tokens, grid, kernel_size, "grid")
    images = tokens.view(2, *grid, 3).permute(0, 3, 1, 2)
    expected = F.adaptive_avg_pool2d(images, (kernel_size, kernel_size)).permute(0, 2, 3, 1).reshape(2, -1, 3)
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("kernel_pool", ["strips", "grid"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_pooling_as_a_product(grid, kernel_size, kernel_pool, assert_close):
    tokens = torch.randn(2, grid[0] * grid[1], 3, dtype=torch.float64)
    bins = pooling_matrix(grid, kernel_size, kernel_pool, torch.device("cpu")).double()
    expected = pool_tokens(tokens, grid, kernel_size, kernel_pool)
    assert_close(bins @ tokens / bins.sum(1, keepdim=True), expected, 1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)]
)
def test_pooling_while_tracing_keeps_the_dtype(dtype, tolerance, monkeypatch, assert_close):
    tokens = 1 + torch.rand(2, 256, 3, dtype=torch.float64)
    expected = pool_tokens(tokens, (16, 16), 3, "strips")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    pooled = pool_tokens(tokens.to(dtype), (16, 16), 3, "strips")
    assert pooled.dtype == dtype
    assert_close(pooled, expected.to(dtype), tolerance)


def test_pooling_on_a_gpu_serves_training_after_inference():
    """The bins are kept between calls, and an inference tensor could not be saved for backward."""
    cached_pooling_matrix.cache_clear()
    with torch.inference_mode():
        cached_pooling_matrix((4, 3), 3, "strips", torch.device("cpu"))
    matrix = cached_pooling_matrix((4, 3), 3, "strips", torch.device("cpu"))
    assert not matrix.is_inference()


def test_grid_and_strips_differ():
    tokens = torch.randn(1, 36, 2)
    assert not torch.allclose(pool_tokens(tokens, (6, 6), 3, "strips"), pool_tokens(tokens, (6, 6), 3, "grid"))
