"""What training sees, and in which order.

Everything random is a function of the seed and of the sample's position in the run (step · batch + place in the batch),
so that a run can stop, resume and change its number of processes or workers without changing what it sees.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from .base import ImageDataset
from .decode import BrokenImageError

MAX_SUBSTITUTES = 100  # draws of another image in place of a broken one


def sample_generator(seed: int, stream: int, position: int) -> np.random.Generator:
    """The random numbers of one sample of a run; `stream` keeps the uses apart (order, flip, noise…)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, position]))


ORDER, FLIP, NOISE, TIME, CLASS_DROPOUT, POSTERIOR, SUBSTITUTE = range(7)  # streams of `sample_generator`


def draw(seed: int, stream: int, position: int, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Standard normal numbers of the sample at `position`: float32 of this shape, on the CPU."""
    values = sample_generator(seed, stream, position).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


class TrainingView(Dataset):
    """A data set as training sees it: items are asked for as (index, position), everything else follows from them.

    An item is a dictionary:

        x: float32: pixels (C, S, S) in [−1, 1], or latents (c, s, s) as the transformer takes them
        label: class id
        position: of the sample in the run
        noise: (c, s, s), x_0
        time: one standard normal number, for `InterpolantLoss.time_from_normal`
        dropout: one uniform number in [0, 1]; the label is dropped where it is below the model's probability
        posterior: (c, s, s), noise for the VAE's posterior, where pixels are still to be encoded
        broken: indices of images that could not be read, and in whose place another one stands

    Default collation makes batches of it, but for `broken`: use `collate`. The draws are made here so that the loader's
    workers share the work.

    Args:
        dataset: images or latents.
        seed: of the run.
        horizontal_flip: mirror half of the images.
        noise_shape: (c, s, s), what the transformer takes.
        posterior: pixels are going to be encoded with noise.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        seed: int,
        horizontal_flip: bool,
        noise_shape: tuple[int, int, int],
        posterior: bool = False,
    ):
        self.dataset = dataset
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.noise_shape = tuple(noise_shape)
        self.posterior = posterior

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, position = key
        flip = self.horizontal_flip and sample_generator(self.seed, FLIP, position).random() < 0.5
        index, x, broken = self._read(index, position, flip)
        item = {
            "x": x,
            "label": int(self.dataset.labels[index]),
            "position": position,
            "noise": draw(self.seed, NOISE, position, self.noise_shape),
            "time": draw(self.seed, TIME, position),
            "dropout": torch.special.ndtr(draw(self.seed, CLASS_DROPOUT, position)),
            "broken": broken,
        }
        if self.posterior:
            item["posterior"] = draw(self.seed, POSTERIOR, position, self.noise_shape)
        return item

    def _read(self, index: int, position: int, flip: bool) -> tuple[int, torch.Tensor, list[tuple[int, str]]]:
        """The image at `index` or, where it is broken, one drawn by position: what stands in for it is the same on
        every run, whichever worker or process comes across it."""
        broken, substitutes = [], None
        while True:
            try:
                if self.dataset.is_latents:
                    noise = draw(self.seed, POSTERIOR, position, self.noise_shape)
                    return index, self.dataset.latents(index, flip, noise), broken
                return index, self.dataset.tensor(index, flip), broken
            except BrokenImageError as error:
                broken.append((int(index), str(error)))
                if len(broken) > MAX_SUBSTITUTES:
                    raise
                substitutes = substitutes or sample_generator(self.seed, SUBSTITUTE, position)
                index = int(substitutes.integers(len(self.dataset)))

    @staticmethod
    def collate(items: list[dict]) -> dict:
        """A batch: tensors stacked, `broken` joined to one list of (index, reason)."""
        broken = [entry for item in items for entry in item.pop("broken")]
        return torch.utils.data.default_collate(items) | {"broken": broken}


class BrokenImages:
    """Keeps the list of images that training could not read.

    The list is a file in the run folder, one line an image, to which all processes add, so that the count is the run's
    and goes on when the run is continued.

    Args:
        file: the list; None keeps it in memory, each process its own.
        limit: how many are put up with.

    Attributes:
        reasons: by index, why an image cannot be read, as far as this process knows.
    """

    def __init__(self, file: Path | None, limit: int):
        self.file = file
        self.limit = limit
        self.reasons: dict[int, str] = {}
        self._read()

    @property
    def too_many(self) -> bool:
        """Whether there are more than the limit."""
        return len(self.reasons) > self.limit

    def add(self, broken: list[tuple[int, str]]) -> None:
        """Note what `TrainingView` has found broken."""
        for index, reason in broken:
            if index in self.reasons:
                continue
            self._read()  # what other processes have found
            if index in self.reasons:
                continue
            self.reasons[index] = reason = " ".join(reason.split())
            print(f"skipped: {reason}", file=sys.stderr)
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8") as opened:
                    opened.write(f"{index}\t{reason}\n")

    def _read(self) -> None:
        if self.file is not None and self.file.exists():
            lines = (line.partition("\t") for line in self.file.read_text(encoding="utf-8").splitlines())
            self.reasons |= {int(index): reason for index, _, reason in lines}


def too_many_broken(reasons: list[str], limit: int) -> str:
    """The message that ends a run."""
    shown = "\n  ".join(reasons[:20]) + (f"\n  … and {len(reasons) - 20} more" if len(reasons) > 20 else "")
    return (
        f"max_broken_images={limit}: {len(reasons)} images cannot be read. To go on without them raise "
        f"--max_broken_images; where you repair or remove them, start anew in another --output_dir:\n  {shown}"
    )


class TrainingOrder(Sampler):
    """Batches of (index, position) for one process, from `start_step` on, shuffled anew each epoch.

    Positions count samples over the whole run and all processes; process r of w takes the r-th of w equal parts of each
    global batch, so the same samples are seen whatever w is.

    Args:
        num_samples: in the data set.
        batch_size: over all processes.
        seed: of the run.
        start_step, max_steps: the steps to make, counted from 0.
        rank, world_size: which process of how many.
        epoch_order: generator -> the order of one epoch, a permutation of all indices; a full shuffle where None.
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
        self.part = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.epoch_order = epoch_order or (lambda generator: generator.permutation(num_samples))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self):
        epoch, order = -1, None
        for step in self.steps:
            batch = []
            for place in self.part:
                position = step * self.batch_size + place
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = self.epoch_order(sample_generator(self.seed, ORDER, epoch))
                batch.append((int(order[position % self.num_samples]), position))
            yield batch
