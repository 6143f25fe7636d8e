"""The digits are scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sit_atconv.data import (
    DigitsDataset,
    open_dataset,
)


def test_digits_are_scikit_learns():
    dataset, digits = open_dataset("digits"), load_digits()
    assert isinstance(dataset, DigitsDataset)
    assert len(dataset) == 1797
    assert (dataset.channels, dataset.image_size, dataset.classes) == (1, 8, [str(i) for i in range(10)])
    for index in (0, 1, 1000, 1796):
        pixels = dataset.tensor(index)
        assert pixels.dtype == torch.float32
        assert pixels.shape == (1, 8, 8)
        assert dataset.labels[index] == digits.target[index]
        np.testing.assert_array_equal(dataset.image(index)[..., 0], np.round(digits.images[index] / 16 * 255))
        np.testing.assert_allclose(pixels[0], digits.images[index] / 8 - 1, atol=0.51 / 127.5)
        assert torch.equal(dataset.tensor(index, flip=True), pixels.flip(-1))
    everything = torch.stack([dataset.tensor(i) for i in range(100)])
    assert everything.min() == -1
    assert everything.max() == 1


@pytest.mark.parametrize("image_size", [12, 0])
def test_other_sizes_are_refused(image_size):
    open_dataset("digits", 8)
    with pytest.raises(ValueError, match=f"image_size={image_size}"):
        open_dataset("digits", image_size)


def test_enlarged_digits():
    """They have the size that is asked for, and are the digits again when they are made small."""
    small, large = DigitsDataset(), DigitsDataset(16)
    assert large.image_size == 16 and large.image(5).shape == (16, 16, 1) and large.fingerprint() != small.fingerprint()
    again = large.image(5)[:, :, 0].reshape(8, 2, 8, 2).mean((1, 3))
    assert np.corrcoef(again.ravel(), small.image(5).ravel())[0, 1] > 0.98
