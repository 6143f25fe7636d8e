"""The random numbers of a run: a pure function of (seed, stream, position).

No generator is carried along, so a run can stop, resume, and change its number of processes or data workers without
changing what it draws.
"""

from enum import IntEnum

import numpy as np
import torch


class Stream(IntEnum):
    """What random numbers are used for. Each use has its own stream, independent of the others.

    The values enter the random numbers: changing one changes every run.
    """

    ORDER = 0
    FLIP = 1
    NOISE = 2
    TIME = 3
    CLASS_DROPOUT = 4
    POSTERIOR = 5
    SUBSTITUTE = 6
    END_TIME = 7
    HELD_OUT = 8
    AUGMENTATION = 9
    MIXUP = 10
    DROPOUT = 11


def sample_generator(seed: int, stream: Stream, position: int) -> np.random.Generator:
    """Return the generator of one sample of a run.

    Args:
        seed: seed of the run.
        stream: what the random numbers are used for.
        position: position of the sample in the run, counted over all steps and processes.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, position]))


def draw(seed: int, stream: Stream, position: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Draw standard normal numbers for the sample at `position`: a float32 tensor of this shape, on the CPU."""
    values = sample_generator(seed, stream, position).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
