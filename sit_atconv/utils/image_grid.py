"""Grids of samples as one picture, with the names of the rows, and with a text that says how they were made.

B images of H × W pixels and C channels, in [0, 1].
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch.nn.functional import interpolate
from torchvision.utils import make_grid

from .files import staged
from .picture_text import SETTINGS_KEY
from .text import one_line

MAX_NAME = 24  # characters of a row's name


def save_grid(
    images: torch.Tensor,
    file: str | Path,
    columns: int,
    min_size: int = 32,
    names: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
) -> None:
    """Write images (B, C, H, W) in [0, 1] as one picture, which is complete as soon as it exists.

    Args:
        images: the images, row by row.
        file: the picture to write or replace, of a format that its name ends with; missing folders are created.
        columns: images per row.
        min_size: smaller images are enlarged, by a whole factor, to at least this many pixels.
        names: what is written at the left of the rows; nothing if it is empty. A name that no font here can show is
            replaced by the number of its row; `hidden_names` lists them.
        settings: how the images were made, stored as text in a PNG; `sit_atconv.utils.picture_text` reads it.
    """
    save_picture(grid_picture(images, columns, min_size, names), file, settings)


def save_picture(picture: Image.Image, file: str | Path, settings: dict[str, Any] | None = None) -> None:
    """Write a picture, which is complete as soon as it exists; the settings are stored in a PNG."""
    options: dict[str, Any] = {}
    if settings is not None and Path(file).suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt(SETTINGS_KEY, json.dumps(settings, ensure_ascii=False))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with staged(Path(file)) as staging:  # whose name has the same ending, which chooses the format
        picture.save(staging, **options)


def grid_picture(images: torch.Tensor, columns: int, min_size: int = 32, names: Sequence[str] = ()) -> Image.Image:
    """Arrange images (B, C, H, W) in a grid; arguments as those of `save_grid`."""
    factor = -(-min_size // images.shape[-1])
    if factor > 1:
        images = interpolate(images, scale_factor=factor, mode="nearest")
    padding = max(2, factor)
    grid = make_grid(images.float().cpu(), nrow=columns, padding=padding)  # (3, height, width)
    pixels = grid.mul(255).add(0.5).clamp(0, 255).permute(1, 2, 0).to(torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    if not any(names):
        return picture
    from .fonts import font_for, hidden_names  # only for names: it needs matplotlib

    shown = [one_line(name) for name in names]
    shown = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in shown]
    hidden = set(hidden_names(shown))
    shown = [f"row {i}" if name in hidden else name for i, name in enumerate(shown, start=1)]
    row = images.shape[-2] + padding
    font = ImageFont.truetype(font_for(shown), min(max(11, row // 6), 24))
    margin = max(int(font.getlength(name)) for name in shown) + 12
    labelled = Image.new("RGB", (picture.width + margin, picture.height))
    labelled.paste(picture, (margin, 0))
    draw = ImageDraw.Draw(labelled)
    for i, name in enumerate(shown):
        draw.text((6, padding + i * row + images.shape[-2] // 2), name, "white", font, anchor="lm")
    return labelled


def animate(frames: Sequence[Image.Image], file: str | Path, seconds: float = 4.0) -> None:
    """Write pictures of one size as an animation, a GIF or a WebP, which rests on the last one.

    Args:
        frames: the pictures.
        file: the animation; its name ends with .gif or .webp.
        seconds: how long it takes, without the rest.
    """
    each = max(20, round(1000 * seconds / len(frames)))
    durations = [each] * (len(frames) - 1) + [2000]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with staged(Path(file)) as staging:
        frames[0].save(staging, save_all=True, append_images=frames[1:], duration=durations, loop=0)
