"""The sin-cos position embedding against the reference's numbers and its formula."""

import math

import pytest
import torch

from sit_atconv.models.embeddings import sincos_position_embedding


def test_sincos_parity(parity_model, assert_close):
    _, reference = parity_model("hybrid")
    assert_close(sincos_position_embedding(48, (4, 4), torch.device("cpu")), reference["state.pos_embed"], 1e-6)


@pytest.mark.parametrize("grid", [(3, 5), (1, 4), (6, 2)])
def test_sincos_of_any_grid(grid):
    H, W = grid
    embedding = sincos_position_embedding(16, grid, torch.device("cpu")).view(H, W, 4, 4)
    for h in range(H):
        for w in range(W):
            for i in range(4):
                frequency = 10000 ** (-i / 4)
                expected = [math.sin(w * frequency), math.cos(w * frequency)]
                expected += [math.sin(h * frequency), math.cos(h * frequency)]
                assert embedding[h, w, :, i].tolist() == pytest.approx(expected, abs=1e-6)
