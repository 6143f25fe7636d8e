"""Fixtures of the tests of conversion."""

import pytest
import torch


@pytest.fixture(scope="module")
def reference_state(parity_model):
    def load(name: str) -> dict[str, torch.Tensor]:
        _, tensors = parity_model(name)
        return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}

    return load
