"""Which fonts show the names of classes: those of the system where matplotlib's lacks characters; else row numbers."""

import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from sit_atconv.utils.fonts import PLAIN, font_for, hidden_names, shows
from sit_atconv.utils.image_grid import grid_picture

CAT = "\u732b"


def fonts(monkeypatch, *names: str) -> None:
    """Let the system have these fonts of matplotlib alone."""
    known = [each for each in font_manager.fontManager.ttflist if each.name in names]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", known)


def test_the_plain_font_comes_first_then_one_that_has_all_characters(monkeypatch):
    fonts(monkeypatch, "Last Resort High-Efficiency", "DejaVu Sans Mono", "STIXGeneral")
    assert font_for(["cat", "ä Ω ж"]) == PLAIN
    [special] = [chr(c) for c in sorted({*FT2Font(_file("STIXGeneral")).get_charmap()} - _characters(PLAIN))[:1]]
    assert font_for(["cat", special]).name.startswith("STIXGeneral") and not hidden_names(["cat", special])
    assert font_for(["cat", CAT]) == PLAIN  # the last resort would have a frame for it
    assert hidden_names(["cat", CAT]) == [CAT] and not shows(PLAIN, CAT)


def test_a_name_that_no_font_shows_is_the_number_of_its_row(monkeypatch):
    fonts(monkeypatch)
    images = torch.zeros(2, 1, 64, 64)
    assert np.array_equal(grid_picture(images, 1, 64, ["a", CAT]), grid_picture(images, 1, 64, ["a", "row 2"]))
    assert not np.array_equal(grid_picture(images, 1, 64, ["a", CAT]), grid_picture(images, 1, 64, ["a", "b"]))


def _file(name: str) -> str:
    return str(PLAIN.parent / f"{name}.ttf")


def _characters(font) -> set[int]:
    return {*FT2Font(str(font)).get_charmap()}
