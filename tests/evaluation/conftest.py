"""Fixtures of the tests of evaluations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from sit_atconv.data import DigitsDataset


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Work this small gains nothing from threads, and loses seconds to them where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def correlated():
    """Function: features (n, F) with correlations, scales from 0.1 to 10 and a mean away from 0."""

    def build(n: int, F: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        features = (rng.standard_normal((n, F)) * np.logspace(-1, 1, F)) @ rng.standard_normal((F, F))
        return features + rng.standard_normal(F)

    return build


@pytest.fixture(scope="session")
def moments():
    """Function: mean and covariance of features (N, F)."""
    return lambda features: (features.mean(axis=0), np.cov(features, rowvar=False))


@pytest.fixture(scope="session")
def digit_images():
    """Function: digits (B, 8, 8, 1) uint8."""

    def read(start: int = 0, stop: int | None = None) -> np.ndarray:
        digits = DigitsDataset()
        return np.stack([digits.image(i) for i in range(start, stop or len(digits))])

    return read


@pytest.fixture(scope="session")
def save_images():
    """Function: write images to a folder as PNG files; the folder's name."""

    def save(folder: Path, images) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images):
            Image.fromarray(image.squeeze()).save(folder / f"{i:04}.png")
        return str(folder)

    return save
