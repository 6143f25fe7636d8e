"""What is given to a pipeline: images and latents of every kind, and those that are refused before any work."""

import numpy as np
import pytest
import torch
from PIL import Image
from sit_atconv.pipelines.inputs import images_from, latents_from

IMAGES = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))


def pictures(mode: str = "RGB") -> list[Image.Image]:
    arrays = (IMAGES.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(array).convert(mode) for array in arrays]


@pytest.mark.parametrize(
    "images",
    [IMAGES, IMAGES.double(), IMAGES.half(), IMAGES.permute(0, 2, 3, 1).numpy(), pictures(), tuple(pictures("RGBA"))],
    ids=["tensor", "float64", "float16", "array", "pictures", "pictures with alpha"],
)
def test_images(images):
    torch.testing.assert_close(images_from(images, 3).float(), IMAGES, rtol=0, atol=0.5 / 255 + 1e-6)


def test_pictures_are_converted_to_the_channels_of_the_model():
    assert images_from(pictures(), 1).shape == (2, 1, 4, 6)
    assert images_from(pictures("L")[0], 3).shape == (1, 3, 4, 6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES * 255, r"lie in \[.*\], but must lie in \[0, 1\]; give images / 255"),
        (IMAGES * 2 - 1, r"but must lie in \[0, 1\]; give \(images \+ 1\) / 2"),
        (IMAGES * 2000 - 1000, "give what output_type='pt' returns"),
        (torch.full_like(IMAGES, torch.nan), r"lie in \[nan, nan\]"),
        ((IMAGES * 255).to(torch.uint8), "images is torch.uint8; .* images / 255"),
        (torch.ones(1, 3, 4, 6, dtype=torch.uint8), r"images is torch.uint8; .* images\.float\(\)"),
        (IMAGES[0], r"images has shape \(3, 4, 6\)"),
        (IMAGES[:, :2], r"images has shape \(2, 2, 4, 6\); a tensor must be \(B, 3, H, W\)"),
        (IMAGES.numpy(), r"a tensor must be \(B, 3, H, W\)"),
        (IMAGES[0].numpy(), r"an array must be \(B, H, W, C\)"),
        (IMAGES[:0], "images has shape"),
        ([], "images is a list"),
        ("a.png", "images is a str"),
        (None, "images is a NoneType"),
        (IMAGES.to_sparse(), "images must be a dense tensor with values"),
        ([pictures()[0], pictures()[1].resize((8, 8))], "one size at a time"),
    ],
)
def test_images_that_cannot_be_used(images, message):
    with pytest.raises(ValueError, match=message):
        images_from(images, 3)


def test_latents():
    array = IMAGES.numpy()
    torch.testing.assert_close(latents_from(array, (2, 3, 4, 6)), IMAGES, rtol=0, atol=0)
    assert latents_from(IMAGES, (2, 3, 4, 6)) is IMAGES


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (IMAGES.tolist(), "latents must be .* not list"),
        (IMAGES.long(), "not torch.int64"),
        ((IMAGES.numpy() * 9).astype(int), "not int64"),
        (IMAGES[:1], "latents has shape"),
        (IMAGES / 0, "latents holds NaN or infinity"),
        (IMAGES.to_sparse(), "latents must be a dense tensor with values; it is torch.sparse_coo on cpu"),
        (IMAGES.to("meta"), "latents must be a dense tensor with values; it is torch.strided on meta"),
    ],
)
def test_latents_that_cannot_be_used(latents, message):
    with pytest.raises(ValueError, match=message):
        latents_from(latents, (2, 3, 4, 6))
