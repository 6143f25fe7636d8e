"""eval/parity.py: both computations agree on two sets of images, and extractors that do not resize are refused."""

import json

import numpy as np
import parity
import pytest
import torch
from PIL import Image
from torch import nn

from sit_atconv.data import DigitsDataset


@pytest.fixture
def noisy_digits(tmp_path) -> str:
    """120 digits as photographs of 20×20 pixels, with noise on them."""
    digits, rng = DigitsDataset(), np.random.default_rng(0)
    (tmp_path / "noisy").mkdir()
    for i in range(120):
        image = Image.fromarray(digits.image(i).repeat(3, axis=2)).resize((20, 20), Image.Resampling.BICUBIC)
        pixels = (np.asarray(image) + rng.integers(-60, 60, (20, 20, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "noisy" / f"{i:03}.png")
    return str(tmp_path / "noisy")


@pytest.fixture
def network(tmp_path) -> str:
    """16 features of 32×32 images, as a TorchScript extractor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 8, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    torch.jit.script(model).save(tmp_path / "net.pt")
    return f"torchscript:{tmp_path / 'net.pt'}@32"


def test_parity_command(noisy_digits, network, tmp_path, capsys):
    output = tmp_path / "parity.json"
    arguments = [noisy_digits, "--reference", "digits", "--extractor", network, "--num_images", "40"]
    arguments.append("--trust_torchscript")
    parity.main([*arguments, "--device", "cpu", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["num_samples"] == result["num_reference"] == 40
    assert 0 < result["fid"]["ours"] and result["fid"]["relative_difference"] < 1e-4
    assert result["kid"]["relative_difference"] < 1e-4
    assert f"FID {result['fid']['ours']:.9g}" in capsys.readouterr().out
    for change, part in ((["--num_images", "121"], "num_images=121"), (["--extractor", "pixels"], "does not resize")):
        with pytest.raises(SystemExit):
            parity.main([*arguments, *change])
        assert part in capsys.readouterr().err
