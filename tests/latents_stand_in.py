"""A small autoencoder, photos, and precomputed latents of these photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from PIL import Image

from sit_atconv.training import encode

IMAGES = 22


@pytest.fixture(scope="session", name="vae")
def small_vae(tmp_path_factory):
    """The folder of an AutoencoderKL that halves the sides of images."""
    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            shift_factor=0.1,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of images of two classes."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        file = folder / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


def options(photos, vae, folder, **others) -> dict:
    """Arguments of `encode_latents` for these photos."""
    return (
        dict(
            data=str(photos),
            vae=str(vae),
            output_dir=str(folder),
            image_size=16,
            flip=True,
            shard_size=4,
            batch_size=3,
            num_workers=0,
        )
        | others
    )


@pytest.fixture(scope="session")
def latents(photos, vae, tmp_path_factory):
    """The folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("latents") / "cache"
    AcceleratorState._reset_state(reset_partial_state=True)
    encode.encode_latents(**options(photos, vae, folder))
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file in a folder, except for its lock."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}
