"""Which image is seen at which step of a run.

A sample's position is its number in the run: step · batch size + place in the global batch.
"""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

from .streams import Stream, sample_generator


class TrainingOrder(Sampler[list[tuple[int, int]]]):
    """Batches of (index, position) for one process, from `start_step` on, reshuffled in each epoch.

    Positions count the samples of the whole run over all processes. Process r of w takes the r-th of w equal parts of
    each global batch, so that w processes together see what a single process would see.

    Args:
        num_samples: number of images in the data set.
        batch_size: global batch size, over all processes.
        seed: seed of the run.
        start_step: first step, counted from 0.
        max_steps: step before which to stop.
        rank: number of this process.
        world_size: number of processes.
        epoch_order: function from a generator to the order of one epoch, a permutation of all indices. If None, a full
            shuffle.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        start_step: int,
        max_steps: int,
        rank: int,
        world_size: int,
        epoch_order: Callable[[np.random.Generator], np.ndarray] | None = None,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.steps = range(start_step, max_steps)
        self.places = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.epoch_order = epoch_order or (lambda generator: generator.permutation(num_samples))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, np.int64)
        for step in self.steps:
            batch = []
            for place in self.places:
                position = step * self.batch_size + place
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self.epoch_order(sample_generator(self.seed, Stream.ORDER, epoch))
                batch.append((int(order[position % self.num_samples]), position))
            yield batch
