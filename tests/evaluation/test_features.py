"""Extractors: what they compute, beside clean-fid's resizing and features, which tests/eval/test_fid.py compares."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sit_atconv.evaluation.extractor import parse_extractor
from sit_atconv.evaluation.features import build_extractor, check_extractor
from sit_atconv.evaluation.inception import SPATIAL_LAYERS
from sit_atconv.evaluation.resize import resize_tensorflow
from sit_atconv.evaluation.timm_features import set_input_size

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(400, 310), (64, 64), (299, 299)])
def test_adm_resize_is_tensorflows(size):
    """Against the same sampling points as an affine grid, the form that PyTorch ports of the network use."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    height, width = size
    theta = torch.eye(2, 3, dtype=torch.float64)
    theta[0, 2] = 1 / width - 1 / 299
    theta[1, 2] = 1 / height - 1 / 299
    grid = F.affine_grid(theta[None], [1, 3, 299, 299], align_corners=False)
    # the grid's sampling point of output i is i · old / new, half a pixel from the centre that grid_sample would take
    x = torch.from_numpy(image).permute(2, 0, 1).double()[None]
    expected = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
    torch.testing.assert_close(resize_tensorflow(image).double(), expected, rtol=0, atol=2e-2)
    if size == (299, 299):
        np.testing.assert_array_equal(resize_tensorflow(image).permute(1, 2, 0).numpy(), image)


def test_adm_resize_of_a_ramp():
    """Twice as large: the values between two pixels are halfway, and the last pixel is repeated."""
    ramp = np.broadcast_to(np.array([0, 100, 200], dtype=np.uint8)[:, None, None], (3, 3, 3))
    assert resize_tensorflow(ramp, (6, 3))[0, :, 0].tolist() == [0, 50, 100, 150, 200, 200]


@pytest.mark.parametrize("name", ["inception", "inception-adm"])
def test_inceptions_spatial_features_and_classes(inception, name):
    model, file = inception
    extractor = build_extractor(name, file, CPU, {"features", "spatial", "probabilities"})
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        prepared = torch.stack([extractor.prepare(image) for image in images])
        result = extractor.embed(prepared)
        x = (prepared - 128) / 128
        pooled = model.layers(x)
        for layer in SPATIAL_LAYERS:
            x = getattr(model.layers, layer)(x)
        spatial = model.layers.mixed_6.conv(x)  # (2, 12, 17, 17)
        probabilities = F.linear(pooled, model.output.weight).softmax(dim=1)  # without the bias
    torch.testing.assert_close(result["features"], pooled)
    assert result["spatial"].shape == (2, 2023)
    torch.testing.assert_close(result["spatial"].view(2, 17, 17, 7)[1, 3, 5], spatial[1, :7, 3, 5])
    torch.testing.assert_close(result["probabilities"], probabilities)
    assert ("TensorFlow" in extractor.resize) == (name == "inception-adm")


def test_timm_probabilities_and_size(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", pretrained=False, num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    extractor = build_extractor(
        "timm:test_vit@96", str(tmp_path / "model.safetensors"), CPU, {"features", "probabilities"}
    )
    with torch.no_grad():
        result = extractor.embed(torch.stack([extractor.prepare(image) for image in images]))
        model.set_input_size(img_size=(96, 96))
        config = timm.data.resolve_model_data_config(model)
        mean, std = (torch.tensor(config[key]) for key in ("mean", "std"))
        expected = model(((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)).softmax(dim=1)
    torch.testing.assert_close(result["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert extractor.resize.endswith("96×96")


@pytest.mark.parametrize("name", ["vit_large_patch14_dinov2.lvd142m", "vit_large_patch14_reg4_dinov2.lvd142m"])
def test_dinov2_resamples_its_position_embedding_as_published(name):
    """Against `grid_sample` at the centres (i + ½) / scale, with scale = 16.1 / 37: bicubic, and not blurred."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=518, patch_size=14, embed_dim=8, depth=1, num_heads=2)
        model.pos_embed.data.normal_()
    learned = model.pos_embed.detach().clone()
    set_input_size(model, name, 224)
    centres = (torch.arange(16) + 0.5) / (16.1 / 37) / 37 * 2 - 1  # in [−1, 1] from edge to edge
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)[None]  # (1, 16, 16, 2)
    image = learned[:, 1:].unflatten(1, (37, 37)).permute(0, 3, 1, 2)
    expected = F.grid_sample(image, grid, mode="bicubic", padding_mode="border", align_corners=False)
    found = model.pos_embed[:, 1:].unflatten(1, (16, 16)).permute(0, 3, 1, 2)
    assert torch.allclose(found, expected, atol=1e-4) == ("reg4" not in name)  # with registers, timm's antialiasing
    torch.testing.assert_close(model.pos_embed[:, :1], learned[:, :1])


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
    with pytest.raises(ValueError, match="is no TorchScript file"):
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
    with pytest.raises(ValueError, match="is no file"):
        check_extractor("torchscript:missing.pt", None)
