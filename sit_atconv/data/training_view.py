"""What training sees of one sample: its image and its random numbers.

S image side and C channels of the pixels; s side and c channels of what the transformer takes.
"""

import torch
from torch.utils.data import Dataset

from .base import ImageDataset
from .decode import BrokenImageError
from .streams import Stream, draw, sample_generator

MAX_SUBSTITUTES = 100  # images drawn in place of a broken one until the data set is given up


class TrainingView(Dataset):
    """A data set as training sees it. It is indexed with (index, position), and everything random follows from these.

    An item is a dictionary:

        x: float32 pixels (C, S, S) in [−1, 1], or precomputed latents (c, s, s) as the transformer takes them
        posterior: (c, s, s), noise for the VAE's posterior; only if `x` are pixels that the VAE has yet to encode
        label: class id
        noise: (c, s, s), x_0
        time: one standard normal number, for `InterpolantLoss.time_from_normal`
        end_time: another one, for `MeanFlowLoss.times_from_normal`; only with `steps`
        position: number of the sample in the run; only with `steps`
        dropout: one uniform number in [0, 1]; the label is dropped if it is below the model's class dropout probability
        broken: (index, reason) of each image that could not be read, if another one stands in for it

    Use `collate` to make batches, because PyTorch's default cannot stack `broken`. The numbers are drawn here rather
    than in the training loop so that the data workers share the work.

    Args:
        dataset: images or precomputed latents.
        seed: seed of the run.
        horizontal_flip: whether to mirror half of the images.
        noise_shape: (c, s, s).
        posterior: whether there is a VAE, so that each sample needs noise for its posterior.
        steps: whether steps of the flow are trained, so that each sample needs a second time, and its position.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        seed: int,
        horizontal_flip: bool,
        noise_shape: tuple[int, ...],
        posterior: bool = False,
        steps: bool = False,
    ):
        self.dataset = dataset
        self.seed = seed
        self.horizontal_flip = horizontal_flip
        self.noise_shape = tuple(noise_shape)
        self.posterior = posterior
        self.steps = steps

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, position = key
        flip = self.horizontal_flip and sample_generator(self.seed, Stream.FLIP, position).random() < 0.5
        posterior = draw(self.seed, Stream.POSTERIOR, position, self.noise_shape) if self.posterior else None
        index, tensors, broken = self._read(index, position, flip, posterior)
        step = {"end_time": draw(self.seed, Stream.END_TIME, position), "position": position} if self.steps else {}
        return tensors | {
            **step,
            "label": int(self.dataset.labels[index]),
            "noise": draw(self.seed, Stream.NOISE, position, self.noise_shape),
            "time": draw(self.seed, Stream.TIME, position),
            "dropout": torch.special.ndtr(draw(self.seed, Stream.CLASS_DROPOUT, position)),
            "broken": broken,
        }

    def _read(
        self, index: int, position: int, flip: bool, posterior: torch.Tensor | None
    ) -> tuple[int, dict[str, torch.Tensor], list[tuple[int, str]]]:
        """Read the image at `index`, or a substitute if it is broken; return its index, tensors and the broken ones.

        Substitutes are drawn by position, so they are the same in every run and on every worker and process.
        """
        broken: list[tuple[int, str]] = []
        substitutes = None
        while True:
            try:
                return index, self.dataset.training_tensors(index, flip, posterior), broken
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
