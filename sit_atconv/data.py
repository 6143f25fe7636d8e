"""Image data sets: the embedded digits and folders of images, and the order in which training sees them.

An item is (pixels, label): float32 (C, S, S) in [−1, 1] and a class id. Everything random is a function of the seed and
of the sample's position in the run (step · batch + place in the batch), so that a run can stop, resume and change its
number of processes without changing what it sees.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset, Sampler

from .validation import check_count


class ImageDataset(Dataset):
    """A labelled set of square images.

    Attributes:
        name: short, for run folders and reports.
        classes: class names, by id.
        labels: (len,) the class id of each image.
        channels: of the images: 1 or 3.
        image_size: side S, in pixels.
    """

    name: str
    classes: list[str]
    labels: np.ndarray
    channels: int
    image_size: int

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """One image as uint8, (S, S, C)."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = torch.from_numpy(np.array(self.image(index))).permute(2, 0, 1)  # (C, S, S)
        return pixels.float() / 127.5 - 1, int(self.labels[index])


class DigitsDataset(ImageDataset):
    """scikit-learn's 1,797 real handwritten digits, 8×8, 17 grey levels spread over 0…255."""

    name = "digits"
    channels = 1

    def __init__(self, image_size: int | None = None):
        from sklearn.datasets import load_digits

        if image_size not in (None, 8):
            raise ValueError(f"image_size={image_size}: the digits are 8×8; leave image_size out")
        digits = load_digits()
        self.image_size = 8
        self.classes = [str(name) for name in digits.target_names]
        self.labels = digits.target
        self._images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1)

    def image(self, index: int) -> np.ndarray:
        return self._images[index]


class FolderDataset(ImageDataset):
    """A folder with one sub-folder of images per class. Images are cropped to their centre square and resized.

    Raises:
        ValueError: for a folder that is missing or empty, or class folders without images.
    """

    channels = 3

    def __init__(self, folder: str | Path, image_size: int | None = None):
        from torchvision.datasets import ImageFolder

        folder = Path(folder)
        if not folder.is_dir():
            raise ValueError(f"data={str(folder)!r} is no folder; give 'digits', or a folder with one folder per class")
        if image_size is None:
            raise ValueError(f"image_size must be given for data={str(folder)!r}, such as --image_size 64")
        check_count("image_size", image_size)
        if not any(entry.is_dir() for entry in folder.iterdir()):
            raise ValueError(f"data={str(folder)!r} holds no class folders; put the images of each class into one")
        listing = ImageFolder(folder, allow_empty=True)
        counts = np.bincount(listing.targets, minlength=len(listing.classes))
        if empty := [name for name, count in zip(listing.classes, counts, strict=True) if count == 0]:
            raise ValueError(
                f"data={str(folder)!r}: class folders without images: {', '.join(empty)}; fill or remove them"
            )
        self.name = folder.resolve().name
        self.image_size = image_size
        self.classes = listing.classes
        self.labels = np.array(listing.targets)
        self.files = [Path(file) for file, _ in listing.samples]

    def image(self, index: int) -> np.ndarray:
        return read_image(self.files[index], self.image_size)


def read_image(file: str | Path, image_size: int | None = None) -> np.ndarray:
    """Read an image upright, as RGB; its centre square resized to `image_size` where that is given: (H, W, 3) uint8.

    Raises:
        ValueError: naming the file, where it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), method=Image.Resampling.BICUBIC)
    return np.asarray(image)


def open_dataset(source: str | Path, image_size: int | None = None) -> ImageDataset:
    """Open "digits" or a folder of images.

    Raises:
        ValueError: naming what is wrong with the source.
    """
    return DigitsDataset(image_size) if str(source) == "digits" else FolderDataset(source, image_size)


def sample_generator(seed: int, stream: int, position: int) -> np.random.Generator:
    """The random numbers of one sample of a run; `stream` keeps the uses apart (order, flip, noise…)."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, stream, position]))


ORDER, FLIP, NOISE, TIME, CLASS_DROPOUT, POSTERIOR = range(6)  # streams of `sample_generator`


class TrainingView(Dataset):
    """A data set as training sees it: items are asked for as (index, position), and flipped by position."""

    def __init__(self, dataset: ImageDataset, seed: int, horizontal_flip: bool):
        self.dataset = dataset
        self.seed = seed
        self.horizontal_flip = horizontal_flip

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int, int]:
        index, position = key
        pixels, label = self.dataset[index]
        if self.horizontal_flip and sample_generator(self.seed, FLIP, position).random() < 0.5:
            pixels = pixels.flip(-1)
        return pixels, label, position


class TrainingOrder(Sampler):
    """Batches of (index, position) for one process, from `start_step` on, shuffled anew each epoch.

    Positions count samples over the whole run and all processes; process r of w takes the r-th of w equal parts of each
    global batch, so the same samples are seen whatever w is.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, start_step: int, max_steps: int, rank: int, world_size: int
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.steps = range(start_step, max_steps)
        self.part = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)

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
                    order = sample_generator(self.seed, ORDER, epoch).permutation(self.num_samples)
                batch.append((int(order[position % self.num_samples]), position))
            yield batch


def draw_per_sample(seed: int, stream: int, positions: torch.Tensor, shape: tuple[int, ...] = ()) -> torch.Tensor:
    """Standard normal numbers of the samples at `positions` (B,): (B, *shape) float32, on the CPU."""
    draws = np.empty((len(positions), *shape), dtype=np.float32)
    for i, position in enumerate(positions.tolist()):
        draws[i] = sample_generator(seed, stream, position).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(draws)
