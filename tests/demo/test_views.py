"""What the page says: classes, blocks, times; names are shown as they are."""

import re

import pytest

from sit_atconv.demo.drawing import Choices, draw
from sit_atconv.demo.views import caption, class_choices, class_title, describe, kernels_view, strip_view

NAME = "<b>runs & more</b>"


@pytest.fixture(scope="module")
def hybrid(tiny_pipeline):
    pipeline = tiny_pipeline(mixer="hybrid")
    return pipeline, draw(pipeline, Choices(label=1, num_inference_steps=20))


def test_classes_have_their_names(hybrid):
    assert class_choices(hybrid[0])[1:3] == [("1 · goldfish, Carassius auratus", 1), ("2 · cat", 2)]
    assert [class_title(7, "7"), class_title(7, None)] == ["7", "class 7"]


def test_pipelines_and_drawings_are_described(hybrid):
    pipeline, drawing = hybrid
    assert describe(pipeline).startswith("1 ATConv and 1 attention blocks, 0.0")
    assert describe(pipeline).endswith("8 × 8 pixels")
    text = caption(NAME, drawing, drawing)
    assert f"{drawing.seconds:.2f} s, 40 network calls, 1.00 × the time of the first" in text
    assert "<b>" not in text and "first" not in caption(NAME, drawing)


def test_a_strip_has_pictures_with_their_times(hybrid):
    shown = strip_view(NAME, *hybrid)
    times = re.findall(r'<img alt="t = ([\d.]+)" src="data:image/png;base64,', shown)
    assert len(times) == 8 and times[0] == "0.00" and times[-1] == "1.00" and "<b>" not in shown


def test_kernels_are_shown_where_there_are_some(hybrid):
    shown = kernels_view(NAME, *hybrid, block=1, t=0.52)
    assert "3 × 3 kernels of 16 of 16 channels, block 1, t = 0.50" in shown and "data:image/png" in shown
    assert shown != kernels_view(NAME, *hybrid, block=1, t=0.9)
    for block, reason in ((0, "Block 0 mixes tokens by attention, which has no kernels."), (2, "There is no block 2.")):
        text = kernels_view(NAME, *hybrid, block=block, t=0.5)
        assert f"{reason} Blocks with kernels: 1." in text and "<img" not in text
