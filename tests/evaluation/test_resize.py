"""The resizing of the ADM evaluations against other forms of it; clean-fid's is tested in test_inception.py."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sit_atconv.evaluation.resize import resize_tensorflow


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
