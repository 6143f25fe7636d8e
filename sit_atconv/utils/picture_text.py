"""The text in a PNG that says how its images were sampled. Nothing heavy is imported to read it."""

from pathlib import Path
from typing import Any

from .bounded_text import load_json
from .files import open_regular

SETTINGS_KEY = "sit-atconv"


def read_settings(file: str | Path) -> dict[str, Any]:
    """Return how the images in a picture were sampled, as `sit-atconv sample` has stored it.

    Raises:
        ValueError: if the file is no picture, or one that does not say so.
    """
    from PIL import Image

    try:
        with open_regular(file) as opened, Image.open(opened, formats=["PNG"]) as picture:
            text = getattr(picture, "text", {}).get(SETTINGS_KEY)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{str(file)!r} is no picture that can be read: {error}") from error
    if text is None:
        raise ValueError(f"{str(file)!r} does not say how it was made; sit-atconv sample stores that in .png files")
    settings = load_json(text, file)
    if not isinstance(settings, dict):
        raise ValueError(f"{str(file)!r}: its text {SETTINGS_KEY} is damaged")
    return settings
