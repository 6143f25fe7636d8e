"""Ways between images: noises and classes between those of several images.

P points, N frames, C latent channels, (h, w) latent size, K classes.
"""

from collections.abc import Sequence

import torch


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Spherical interpolation of two noises of one shape: share 0 is `start`, 1 is `end`.

    Between two independent noises, a straight line passes through the less noise the nearer it is to its middle, which
    no network was trained on; the arc keeps the norm. Parallel noises have no arc, and take the line.
    """
    cosine = torch.nn.functional.cosine_similarity(start.flatten(), end.flatten(), dim=0).clamp(-1, 1)
    angle = torch.acos(cosine.double())
    if angle.sin() < 1e-4:
        return torch.lerp(start, end, share)
    weights = torch.sin(torch.stack([(1 - share) * angle, share * angle])) / angle.sin()
    return (weights[0] * start + weights[1] * end).to(start.dtype)


def frames_between(
    noises: torch.Tensor, labels: Sequence[int], num_classes: int, frames: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lead from each point to the next one in equal steps.

    Args:
        noises: (P, C, h, w).
        labels: the class of each point.
        num_classes: K.
        frames: the number of frames from one point to the next, without the next one.

    Returns:
        The classes of all frames as weights (N, K) and their noises (N, C, h, w), for `SiTPipeline.__call__`; N is
        (P − 1)·frames + 1.
    """
    points = torch.nn.functional.one_hot(torch.tensor(labels), num_classes).float()  # (P, K)
    weights, latents = [], []
    for i in range(len(labels) - 1):
        for frame in range(frames):
            weights.append(torch.lerp(points[i], points[i + 1], frame / frames))
            latents.append(slerp(noises[i], noises[i + 1], frame / frames))
    return torch.stack([*weights, points[-1]]), torch.stack([*latents, noises[-1]])
