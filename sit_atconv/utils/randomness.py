"""Random numbers that depend only on a seed and an index."""

import numpy as np
import torch


def image_generator(seed: int, index: int) -> torch.Generator:
    """Return the random numbers of sample number `index` with this seed, the same for every device.

    PyTorch's CPU generator uses 32 bits of its seed. Counting up from a hashed start gives all images of one seed
    different noise. Hashing each index would not: of 50,000 images, two would share theirs with a probability of 25 %.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((start + index) % 2**32)
