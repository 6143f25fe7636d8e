"""What the training of a classifier sees of its images.

S side and C channels of what the model takes; K classes.
"""

from collections.abc import Callable

import torch
from PIL import Image

from ..data import ImageDataset, Stream, View
from .augmentation import Mixing, seeded

Transform = Callable[[Image.Image], torch.Tensor]


def read_tensor(dataset: ImageDataset, index: int, transform: Transform, channels: int) -> torch.Tensor:
    """Read a picture and transform it: float32 (C, S, S). Grey pictures are transformed as RGB.

    Args:
        dataset: the images.
        index: index of the image.
        transform: from RGB pictures to (3, S, S).
        channels: C, 1 or 3. Colour is converted to grey if it is 1.

    Raises:
        BrokenImageError: if it cannot be read.
    """
    picture = dataset.picture(index)
    if channels == 1 and picture.mode != "L":
        picture = picture.convert("L")
    return transform(picture.convert("RGB"))[:channels]


class ClassifierView(View):
    """Augmented images, of which `collate` makes batches of mixed ones.

    An item is a dictionary:

        x: float32 (C, S, S), augmented and normalized
        label: class id
        position: number of the sample in the run
        broken: see `View`

    A batch has `target` (B, K), the shares of the classes in each image, in place of the labels.

    Args:
        dataset: the training images.
        seed: seed of the run.
        transform: the random transform.
        mixing: mixes a batch.
    """

    def __init__(self, dataset: ImageDataset, seed: int, transform: Transform, mixing: Mixing):
        super().__init__(dataset, seed)
        self.transform = transform
        self.mixing = mixing

    def __getitem__(self, key: tuple[int, int]) -> dict:
        index, position = key
        index, x, broken = self.read(index, position, lambda each: self._augmented(each, position))
        return {"x": x, "label": int(self.dataset.labels[index]), "position": position, "broken": broken}

    def _augmented(self, index: int, position: int) -> torch.Tensor:
        with seeded(self.seed, Stream.AUGMENTATION, position):
            return read_tensor(self.dataset, index, self.transform, self.dataset.channels)

    def collate(self, items: list[dict]) -> dict:  # type: ignore[override]  # the mixing is the view's
        first = items[0]["position"]
        batch = View.collate(items)
        x, target = self.mixing(batch["x"], batch.pop("label"), first)
        return batch | {"x": x, "target": target}
