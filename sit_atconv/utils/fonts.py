"""Fonts that show the characters of a text: matplotlib's, or one of the system."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font

PLAIN = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"  # Pillow's own font knows ASCII alone


def shows(font: Path, text: str) -> bool:
    """Whether a font has every character of a text."""
    characters = _characters(str(font))
    return all(ord(character) in characters for character in text)


def font_for(texts: Iterable[str]) -> Path:
    """The font for these texts: matplotlib's, unless it lacks characters that another font of the system has."""
    text = "".join(texts)
    if shows(PLAIN, text):
        return PLAIN
    from matplotlib import font_manager  # looks through the fonts of the system

    # The last resort has a frame for every character.
    found = sorted({Path(each.fname) for each in font_manager.fontManager.ttflist if "Resort" not in each.name})
    return next((font for font in found if shows(font, text)), PLAIN)


def hidden_names(names: Sequence[str]) -> list[str]:
    """The names with characters that no font here has."""
    font = font_for(names)
    return [name for name in names if not shows(font, name)]


@functools.lru_cache(maxsize=64)
def _characters(font: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError):  # it is gone, or damaged
        return frozenset()
