"""Random numbers that depend on a seed and an index alone."""

import numpy as np
import torch


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random numbers of image `index` of the samples with this seed, the same on every device.

    PyTorch's CPU generator uses 32 bits of its seed. Counting up from a hashed start keeps the images of one seed
    apart. Hashing each index would not: of 50,000 images, two would share their noise with a probability of 25 %.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((start + index) % 2**32)
