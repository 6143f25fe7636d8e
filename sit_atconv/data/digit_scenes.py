"""Small scenes with known boxes and masks, made of handwritten digits, for trying detectors and segmenters.

n digits in a scene of side S. Boxes are (left, top, right, bottom) in pixels, right and bottom exclusive.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from .base import ImageDataset

INK = 100  # of 255: pixels of an enlarged digit that are darker belong to the background
SIDES = (16, 29)  # of a pasted digit, in pixels
TRIES = 100  # places that are tried before a digit is left out


class DigitScene(NamedTuple):
    """A scene and what is in it."""

    image: np.ndarray  # (S, S, 3), bytes
    boxes: np.ndarray  # (n, 4)
    labels: np.ndarray  # (n,): the digits
    classes: np.ndarray  # (S, S): 0 for the background, 1 + digit for its ink


def digit_scene(
    digits: ImageDataset, generator: np.random.Generator, image_size: int = 48, max_digits: int = 4
) -> DigitScene:
    """Paste one to `max_digits` digits on a dark, noisy ground, in random sizes, places and colours.

    The squares in which digits lie do not overlap; one for which there is no room is left out.

    Args:
        digits: images of digits, such as `DigitsDataset()` or a part of it.
        generator: random numbers, from which everything follows.
        image_size: S; at least the largest digit.
        max_digits: the largest n.

    Raises:
        ValueError: if `image_size` is too small for a digit.
    """
    if image_size < SIDES[1]:
        raise ValueError(f"image_size={image_size} has no room for a digit; it must be at least {SIDES[1]}")
    ground = generator.uniform(0, 90, 3) + generator.normal(0, 12, (image_size, image_size, 3))
    classes = np.zeros((image_size, image_size), np.int64)
    taken = np.zeros((image_size, image_size), bool)
    boxes, labels = [], []
    for index in generator.choice(len(digits), generator.integers(1, max_digits + 1), replace=False):
        side = int(generator.integers(*SIDES))
        pen = np.asarray(Image.fromarray(digits.image(index)[..., 0]).resize((side, side), Image.Resampling.BICUBIC))
        colour = generator.uniform(150, 255, 3)
        for top, left in generator.integers(0, image_size - side + 1, (TRIES, 2)):
            place = np.s_[top : top + side, left : left + side]
            if taken[place].any():
                continue
            taken[place] = True
            weight = pen[..., None] / 255  # (side, side, 1): how much ink
            ground[place] = (1 - weight) * ground[place] + weight * colour
            classes[place][pen >= INK] = 1 + digits.labels[index]
            rows, columns = np.nonzero(pen >= INK)
            boxes.append((left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1))
            labels.append(digits.labels[index])
            break
    image = ground.clip(0, 255).astype(np.uint8)
    return DigitScene(image, np.array(boxes, np.int64), np.array(labels, np.int64), classes)
