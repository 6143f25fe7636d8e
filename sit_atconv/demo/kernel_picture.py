"""Generated kernels as a picture: one tile of k × k cells for each channel."""

import numpy as np
from PIL.Image import Image, fromarray, new

# From negative over zero to positive, told apart also by those who see few colours.
WEIGHT_COLOURS = np.array([(33, 102, 172), (247, 247, 247), (178, 24, 43)])


def kernel_picture(kernels: np.ndarray, columns: int = 16, cell: int = 12, gap: int = 6) -> Image:
    """Draw kernels, channel by channel in rows; between the tiles the picture is transparent.

    Args:
        kernels: (C, k, k) weights; rows are dy and columns dx. Beyond [−1, 1] the colours are those of the ends.
        columns: tiles in a row.
        cell: side of the square that shows one weight, in pixels.
        gap: pixels between tiles.

    Returns:
        A picture in which blue is negative, white zero and red positive.
    """
    C, k, _ = kernels.shape
    colours = weight_colours(kernels).repeat(cell, axis=1).repeat(cell, axis=2)  # (C, side, side, 3)
    side, rows = k * cell, -(-C // columns)
    picture = new("RGBA", (columns * (side + gap) - gap, rows * (side + gap) - gap))
    for channel, tile in enumerate(colours):
        row, column = divmod(channel, columns)
        picture.paste(fromarray(tile), (column * (side + gap), row * (side + gap)))
    return picture


def weight_colours(weights: np.ndarray) -> np.ndarray:
    """The colours of weights: (…) -> (…, 3) uint8."""
    channels = [np.interp(weights, (-1, 0, 1), WEIGHT_COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
