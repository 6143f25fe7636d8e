"""Fixtures of the tests of models."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from sit_atconv.models.attnet import AttNet

TINY = dict(depths=(1, 2, 1, 1), dims=(8, 12, 16, 20), num_classes=5)


@pytest.fixture(scope="session")
def attnet_files(parity_dir):
    """Function: kind ("model", "ATConv", "Block") -> [(entry of the index, tensors, state)] of AttNet's numbers."""
    folder = parity_dir / "attnet"
    if not folder.is_dir():
        pytest.skip(f"no reference numbers in {folder}")
    index = json.loads((folder / "index.json").read_text())["files"]

    def load(kind: str):
        files = [(name, entry, load_file(folder / name)) for name, entry in index.items() if entry["kind"] == kind]
        assert files
        return [
            (
                entry,
                tensors,
                {key[6:]: value for key, value in tensors.items() if key.startswith("state.")},
            )
            for _, entry, tensors in files
        ]

    return load


@pytest.fixture(scope="session")
def tiny_attnet():
    """Function: a small AttNet of timm, a function of its arguments, in which every branch counts."""

    def build(name: str = "attnet_t2", **arguments) -> AttNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(name, **{**TINY, **arguments})
            for key, value in model.state_dict().items():
                if value.is_floating_point():
                    torch.nn.init.uniform_(value, 0.5, 1.5) if "norm" in key or "var" in key else value.normal_(std=0.3)
        return model.eval()

    return build
