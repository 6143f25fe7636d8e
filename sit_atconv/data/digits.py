"""scikit-learn's handwritten digits, which need no download."""

import numpy as np

from .base import ImageDataset, hash_of


class DigitsDataset(ImageDataset):
    """The 1,797 handwritten digits of scikit-learn: 8×8 pixels, 17 grey levels spread over 0…255.

    Args:
        image_size: None or 8.

    Raises:
        ValueError: for another image size.
    """

    name = source = "digits"
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

    def fingerprint(self) -> str:
        return hash_of(super().fingerprint(), self._images)
