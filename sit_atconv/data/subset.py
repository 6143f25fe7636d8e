"""Parts of a data set: some images are held out of training."""

import numpy as np
from PIL import Image

from .base import ImageDataset, hash_of
from .streams import Stream, sample_generator


class Subset(ImageDataset):
    """Some images of a data set, in their order in it, with all of its classes.

    Args:
        dataset: the whole data set.
        indices: (n,) indices of the images in it, in ascending order.
    """

    def __init__(self, dataset: ImageDataset, indices: np.ndarray):
        self.dataset, self.indices = dataset, indices
        self.name, self.source, self.classes = dataset.name, dataset.source, dataset.classes
        self.labels = dataset.labels[indices]
        self.channels, self.image_size = dataset.channels, dataset.image_size

    @property
    def notes(self) -> list[str]:
        return self.dataset.notes

    def image(self, index: int) -> np.ndarray:
        return self.dataset.image(int(self.indices[index]))

    def picture(self, index: int) -> Image.Image:
        return self.dataset.picture(int(self.indices[index]))

    def origin(self, index: int) -> str:
        return self.dataset.origin(int(self.indices[index]))

    def fingerprint(self) -> str:
        return hash_of(self.dataset.fingerprint(), self.indices)

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        places = np.full(len(self.dataset), -1)
        places[self.indices] = np.arange(len(self))
        order = places[self.dataset.epoch_order(generator)]  # what suits the storage of the whole
        return order[order >= 0]

    def verify(self) -> None:
        self.dataset.verify()


def hold_out(dataset: ImageDataset, share: float) -> tuple[Subset, Subset]:
    """Split a data set into the images for training and those held out, the same ones at every call.

    Args:
        dataset: the data set.
        share: share of the images of each class that are held out, rounded, but at least one of each class.

    Raises:
        ValueError: if a class has a single image, so that none could be held out and one kept.
    """
    held_out = np.zeros(len(dataset), bool)
    for label in np.unique(dataset.labels):
        images = np.flatnonzero(dataset.labels == label)
        if len(images) < 2:
            name = dataset.classes[int(label)] if dataset.classes else str(label)
            raise ValueError(
                f"held_out={share}: class {name!r} of data={dataset.source!r} has a single image; add images, or give "
                "a --validation source"
            )
        count = min(max(1, round(len(images) * share)), len(images) - 1)
        held_out[sample_generator(0, Stream.HELD_OUT, int(label)).permutation(images)[:count]] = True
    return Subset(dataset, np.flatnonzero(~held_out)), Subset(dataset, np.flatnonzero(held_out))
