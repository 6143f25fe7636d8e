"""Each weight has its place and its colour."""

import numpy as np

from sit_atconv.demo.kernel_picture import kernel_picture


def test_weights_are_where_their_tap_is():
    kernels = np.zeros((5, 3, 3))
    kernels[3, 0, 2] = 1  # row dy = −1, column dx = +1 of channel 3
    kernels[4, 2, 1] = -7
    picture = kernel_picture(kernels, columns=2, cell=2, gap=1)
    assert picture.size == (2 * 7 - 1, 3 * 7 - 1)
    red, white, blue = (178, 24, 43, 255), (247, 247, 247, 255), (33, 102, 172, 255)
    pixels = np.array(picture)
    found = {colour: set(zip(*np.nonzero((pixels == colour).all(-1)), strict=True)) for colour in (red, blue)}
    assert found[red] == {(7 + y, 7 + 4 + x) for y in (0, 1) for x in (0, 1)}  # channel 3: second row, second tile
    assert found[blue] == {(14 + 4 + y, 2 + x) for y in (0, 1) for x in (0, 1)}
    assert picture.getpixel((0, 0)) == white
    assert picture.getpixel((6, 0))[3] == 0 == picture.getpixel((9, 16))[3]  # between tiles, and where there is none


def test_colours_grow_with_the_weight():
    weights = np.array([-1, -0.5, 0, 0.5, 1]).reshape(5, 1, 1)
    row = np.array(kernel_picture(weights, columns=5, cell=1, gap=0)).astype(int)[0]
    redness = row[:, 0] - row[:, 2]
    assert (np.diff(redness) > 0).all() and redness[2] == 0
