"""scikit-learn's handwritten digits, which need no download."""

import numpy as np
from PIL import Image

from .base import ImageDataset, hash_of

SIZE = 8  # side of the digits in pixels
SIZES = (8, 16, 32, 64)


class DigitsDataset(ImageDataset):
    """The 1,797 handwritten digits of scikit-learn: 8×8 pixels, 17 grey levels spread over 0…255.

    Args:
        image_size: None or 8; 16, 32 or 64 for digits that are enlarged, by bicubic interpolation.

    Raises:
        ValueError: for another image size.
    """

    name = source = "digits"
    channels = 1

    def __init__(self, image_size: int | None = None):
        from sklearn.datasets import load_digits

        if image_size not in (None, *SIZES):
            raise ValueError(
                f"image_size={image_size}: the digits are 8×8; leave image_size out, or enlarge them to 16, 32 or 64"
            )
        digits = load_digits()
        self.image_size = image_size or SIZE
        self.classes = [str(name) for name in digits.target_names]
        self.labels = digits.target
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
        if self.image_size != SIZE:
            side = (self.image_size, self.image_size)
            images = np.stack(
                [np.asarray(Image.fromarray(each).resize(side, Image.Resampling.BICUBIC)) for each in images]
            )
        self._images = images[..., None]  # (1797, S, S, 1)

    def image(self, index: int) -> np.ndarray:
        return self._images[index]

    def fingerprint(self) -> str:
        return hash_of(super().fingerprint(), self._images)
