"""Inception features equal those of clean-fid and of the network itself; its file is fetched once."""

from pathlib import Path

import cleanfid.fid
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image

from sit_atconv.evaluation import inception
from sit_atconv.evaluation.features import build_extractor
from sit_atconv.evaluation.image_sets import FolderImages
from sit_atconv.evaluation.inception import SPATIAL_LAYERS
from sit_atconv.utils.hashing import file_sha256

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script_file(tmp_path_factory) -> str:
    """A TorchScript file with the interface of clean-fid's Inception network, and other layers."""

    class Inception(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 2048, kernel_size=64, stride=64), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1)
            )

        def forward(self, x):
            return self.layers(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        file = tmp_path_factory.mktemp("inception") / inception.INCEPTION_FILE
        torch.jit.script(Inception()).save(file)
    return str(file)


@pytest.mark.slow
def test_inception_features_equal_clean_fids(script_file, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, shape in enumerate([(40, 30, 3), (299, 299, 3), (400, 310, 3), (8, 8)]):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    extractor = build_extractor("inception", script_file, CPU)
    images = FolderImages(folder)
    prepared = torch.stack([extractor.prepare(images.image(i)) for i in range(len(images))])
    with torch.no_grad():
        actual = extractor.embed(prepared)["features"]
        grey = extractor.prepare(np.asarray(Image.open(folder / "3.png"))[..., None])
    assert torch.equal(grey, prepared[3])
    model = InceptionV3W(str(Path(script_file).parent), download=False)
    expected = cleanfid.fid.get_folder_features(
        str(folder), model=model, num_workers=0, device=CPU, mode="clean", verbose=False
    )
    assert expected.shape == (4, 2048)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert extractor.weights["sha256"] == file_sha256(Path(script_file))


def test_inception_is_fetched_once_into_the_cache(script_file, tmp_path, monkeypatch):
    fetched = []

    def download(url, file):
        fetched.append(url)
        Path(file).write_bytes(Path(script_file).read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        build_extractor("inception", None, CPU)
    assert fetched == [inception.inception_url]


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
