"""Sets of images: cropped and resized folders."""

import shutil

import numpy as np
import pytest
from PIL import Image

from sit_atconv.evaluation import scores
from sit_atconv.evaluation.image_sets import FolderImages, open_images
from sit_atconv.evaluation.metric_options import MetricOptions


def compute_fid(samples: str, reference: str, device: str = "cpu", **options) -> dict:
    return scores.evaluate(samples, reference, MetricOptions(**options), device=device)


def test_image_size_crops_and_resizes_folders(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((20, 30), (30, 20), (16, 16))]
    (tmp_path / "a" / "deeper").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "a" / ("deeper" if i else "") / f"{i}.png")
    found = FolderImages(tmp_path / "a", image_size=16, uniform=True)
    assert found.shape == (16, 16, 3)
    assert [file.name for file in found.files] == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(found.image(2), images[2])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    report = compute_fid(str(tmp_path / "a"), str(tmp_path / "b"), image_size=16, extractor="pixels")
    assert report["fid"] == pytest.approx(0, abs=1e-4)
    assert report["image_size"] == 16


def test_latents_are_refused_before_anything_is_read(latents):
    with pytest.raises(ValueError, match=r"reference: images are compared, but .* holds precomputed latents"):
        open_images("reference", str(latents))
