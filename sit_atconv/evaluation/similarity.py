"""How alike two images are: peak signal-to-noise ratio and structural similarity, of 8-bit images.

B images of H × W pixels and C channels, with values in [0, 255].
"""

import torch
from torch.nn.functional import conv2d

PEAK = 255.0
MAX_PSNR = 100.0  # dB, of images that are equal, whose ratio would be infinite
WINDOW, WINDOW_STD = 11, 1.5  # pixels
K_1, K_2 = 0.01, 0.03


def psnr(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio (B,) in dB, 10 · log₁₀(255² / mean squared error); at most 100.

    Args:
        images, others: (B, C, H, W).
    """
    error = (images.double() - others.double()).square().flatten(1).mean(1)
    return (20 * torch.tensor(PEAK).log10() - 10 * error.log10()).clamp(max=MAX_PSNR)


def ssim(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Structural similarity (B,) of Wang et al. (2004): mean over channels and pixels, without those near the border.

    Means, variances and covariance are those under a Gaussian window of 11 × 11 pixels with a standard deviation of
    1.5, as in the paper; scikit-image computes it with gaussian_weights=True and use_sample_covariance=False.

    Args:
        images, others: (B, C, H, W), at least 11 pixels high and wide.

    Raises:
        ValueError: for smaller images.
    """
    if min(images.shape[-2:]) < WINDOW:
        height, width = images.shape[-2:]
        raise ValueError(f"SSIM needs images of at least {WINDOW} × {WINDOW} pixels, not {height} × {width}")
    offsets = torch.arange(WINDOW, dtype=torch.float64, device=images.device) - WINDOW // 2
    window = (-offsets.square() / (2 * WINDOW_STD**2)).exp()
    window = window / window.sum()

    def smooth(x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(0, 1)[:, None]  # (B·C, 1, H, W)
        return conv2d(conv2d(x, window[None, None, :, None]), window[None, None, None])

    x, y = images.double(), others.double()
    mean_x, mean_y = smooth(x), smooth(y)
    variance_x, variance_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c_1, c_2 = (K_1 * PEAK) ** 2, (K_2 * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c_1) * (2 * covariance + c_2)
    similarity = similarity / ((mean_x**2 + mean_y**2 + c_1) * (variance_x + variance_y + c_2))
    return similarity.unflatten(0, images.shape[:2]).flatten(1).mean(1)
