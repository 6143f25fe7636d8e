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


def check_generator(generator: object, num_images: int) -> None:
    """Raise ValueError unless `generator` is None, a torch.Generator, or a list with one per image."""
    generators = generator if isinstance(generator, list) else [generator]
    if not all(each is None or isinstance(each, torch.Generator) for each in generators):
        raise ValueError(f"generator={generator!r} must be a torch.Generator, or a list with one per image")
    if isinstance(generator, list) and len(generator) != num_images:
        raise ValueError(f"generator lists {len(generator)} generators for {num_images} images; give one per image")
