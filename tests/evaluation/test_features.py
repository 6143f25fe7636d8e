"""Extractors: their names on the command line, and TorchScript files."""

import numpy as np
import pytest
import torch
from torch import nn

from sit_atconv.evaluation.extractor import check_extractor, parse_extractor
from sit_atconv.evaluation.features import build_extractor

CPU = torch.device("cpu")


def test_torchscript_extractor(tmp_path):
    model = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    torch.jit.script(model).save(tmp_path / "net.pt")
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    as_it_is = build_extractor(f"torchscript:{tmp_path / 'net.pt'}", None, CPU)
    expected = image[..., 0].reshape(2, 4, 2, 4).mean(axis=(1, 3)).reshape(-1)
    actual = as_it_is.embed(as_it_is.prepare(image)[None])["features"]
    np.testing.assert_allclose(actual[0].numpy(), np.tile(expected, 3), rtol=1e-6)
    resized = build_extractor(f"torchscript:{tmp_path / 'net.pt'}@16", None, CPU)
    assert resized.embed(resized.prepare(image)[None])["features"].shape == (1, 3 * 4 * 4)
    (tmp_path / "broken.pt").write_text("no network")
    with pytest.raises(ValueError, match="is not a TorchScript file"):
        build_extractor(f"torchscript:{tmp_path / 'broken.pt'}", None, CPU)


def test_extractor_names():
    assert parse_extractor("dinov2") == ("timm", "vit_large_patch14_dinov2.lvd142m", 224)
    assert parse_extractor("timm:resnet18.a1_in1k") == ("timm", "resnet18.a1_in1k", None)
    check_extractor("dinov2", None)  # timm knows it
    assert parse_extractor("efficientnet-lite0@64") == ("efficientnet-lite0", "tf_efficientnet_lite0", 64)
    for name in (
        "vgg",
        "efficientnet-lite0@big",
        "efficientnet-lite1",
        "timm:",
        "timm:resnet18@big",
        "timm:resnet18@0",
        "inception:x",
        "torchscript:",
    ):
        with pytest.raises(ValueError, match="extractor="):
            parse_extractor(name)
    with pytest.raises(ValueError, match="sFID is defined on Inception's"):
        check_extractor("pixels", None, {"features", "spatial"})
    with pytest.raises(ValueError, match="has no classes"):
        check_extractor("pixels", None, {"features", "probabilities"})
    with pytest.raises(ValueError, match="is not a file"):
        check_extractor("torchscript:missing.pt", None)
