"""What training sees of one sample: its image and its random numbers.

S image side and C channels of the pixels; s side and c channels of what the transformer takes.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.data import Dataset

from .base import ImageDataset
from .decode import BrokenImageError
from .streams import Stream, draw, sample_generator

Sample = TypeVar("Sample")

MAX_SUBSTITUTES = 100  # images drawn in place of a broken one until the data set is given up


class View(Dataset):
    """A data set as training sees it. It is indexed with (index, position), and everything random follows from these.

    An item is a dictionary of tensors and numbers, and of `broken`: (index, reason) of each image that could not be
    read, if another one stands in for it. Use `collate` to make batches, because PyTorch's default cannot stack
    `broken`.

    Args:
        dataset: images or precomputed latents.
        seed: seed of the run.
    """

    def __init__(self, dataset: ImageDataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def read(
        self, index: int, position: int, read: Callable[[int], Sample]
    ) -> tuple[int, Sample, list[tuple[int, str]]]:
        """Read the image at `index`, or a substitute if it is broken.

        Substitutes are drawn by position, so they are the same in every run and on every worker and process.

        Args:
            index: index of the image.
            position: position of the sample in the run.
            read: reads the image with an index; it raises `BrokenImageError` for a broken one.

        Returns:
            The index of the image that was read, what `read` returned, and the broken ones.
        """
        broken: list[tuple[int, str]] = []
        substitutes = None
        while True:
            try:
                return index, read(index), broken
            except BrokenImageError as error:
                broken.append((int(index), str(error)))
                if len(broken) > MAX_SUBSTITUTES:
                    raise
                substitutes = substitutes or sample_generator(self.seed, Stream.SUBSTITUTE, position)
                index = int(substitutes.integers(len(self.dataset)))

    @staticmethod
    def collate(items: list[dict]) -> dict:
        """Make a batch: tensors are stacked, and `broken` becomes one list of (index, reason)."""
        broken = [entry for item in items for entry in item.pop("broken")]
        return torch.utils.data.default_collate(items) | {"broken": broken}


class TrainingView(View):
    """What SiT is trained on: images or latents with their noise and times.

    An item is a dictionary:

        x: float32 pixels (C, S, S) in [−1, 1], or precomputed latents (c, s, s) as the transformer takes them
        posterior: (c, s, s), noise for the VAE's posterior; only if `x` are pixels that the VAE has yet to encode
        label: class id
        noise: (c, s, s), x_0, of standard deviation `noise_scale`
        time: one standard normal number, for `InterpolantLoss.time_from_normal`
        targets: (N, Z) float16, the stored features of the image; only of the first `target_samples`
        end_time: another one, for `MeanFlowLoss.times_from_normal`; only with `steps`
        position: number of the sample in the run
        dropout: one uniform number in [0, 1]; the label is dropped if it is below the model's class dropout probability
        broken: see `View`

    The numbers are drawn here rather than in the training loop so that the data workers share the work.

    Args:
        dataset: images or precomputed latents.
        seed: seed of the run.
        horizontal_flip: whether to mirror half of the images.
        noise_shape: (c, s, s).
        posterior: whether there is a VAE, so that each sample needs noise for its posterior.
        steps: whether steps of the flow are trained, so that each sample needs a second time.
        target_samples: number of first samples of the run that come with the features that are stored beside latents.
        noise_scale: standard deviation of the noise.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        seed: int,
        horizontal_flip: bool,
        noise_shape: tuple[int, ...],
        posterior: bool = False,
        steps: bool = False,
        target_samples: float = 0,
        noise_scale: float = 1.0,
    ):
        super().__init__(dataset, seed)
        self.horizontal_flip = horizontal_flip
        self.noise_shape = tuple(noise_shape)
        self.posterior = posterior
        self.steps = steps
        self.target_samples = target_samples
        self.noise_scale = noise_scale

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, position = key
        flip = self.horizontal_flip and sample_generator(self.seed, Stream.FLIP, position).random() < 0.5
        posterior = draw(self.seed, Stream.POSTERIOR, position, self.noise_shape) if self.posterior else None
        index, tensors, broken = self.read(
            index, position, lambda each: self.dataset.training_tensors(each, flip, posterior)
        )
        if position < self.target_samples:
            tensors["targets"] = self.dataset.target_features(index, flip)
        end_time = {"end_time": draw(self.seed, Stream.END_TIME, position)} if self.steps else {}
        return tensors | {
            **end_time,
            "position": position,
            "label": int(self.dataset.labels[index]),
            "noise": self.noise_scale * draw(self.seed, Stream.NOISE, position, self.noise_shape),
            "time": draw(self.seed, Stream.TIME, position),
            "dropout": torch.special.ndtr(draw(self.seed, Stream.CLASS_DROPOUT, position)),
            "broken": broken,
        }
