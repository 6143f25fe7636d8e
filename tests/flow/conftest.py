"""Fixtures shared by the tests of solvers."""

import pytest
import torch


@pytest.fixture
def x():
    return torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
