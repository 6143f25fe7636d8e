"""The page, without a browser: what its button computes."""

import re

import pytest

from sit_atconv.demo.page import Demo

gradio = pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def demo(tiny_pipeline):
    return Demo({"SA": tiny_pipeline(mixer="attention"), "<ATConv>": tiny_pipeline()})


@pytest.fixture(scope="module")
def page(demo):
    return demo.build()


def named(page, name: str):
    """The function of the page with this name in its interface."""
    return next(each for each in page.fns.values() if each.api_name == name)


def test_the_button_draws_with_both_pipelines(demo, page):
    button = named(page, "draw")
    values = [0, 0.5, 3, 11, 2.0, 4, "euler", 8, 16]  # sliders for the kernels, then the choices
    assert len(button.inputs) == len(values)
    drawings, *shown = button.fn(*values)
    assert len(button.outputs) == 1 + len(shown) == 9
    assert [drawing.network_calls for drawing in drawings] == [4, 4] and drawings[0].label == 3
    assert drawings[0].image.size == (16, 8) and shown[0].size == (1024, 512)
    assert "4 network calls" in shown[2] and "&lt;ATConv&gt;" in shown[3]
    assert "has no kernels" in shown[6] and "t = 0.50" in shown[7]


def test_mistakes_are_shown_to_the_visitor(page):
    with pytest.raises(gradio.Error, match="guidance_scale"):
        named(page, "draw").fn(0, 0.5, 3, 11, -1.0, 4, "euler", 8, 8)


def test_the_page_offers_what_the_pipelines_have(page):
    labels = {each.label: each for each in page.blocks.values() if getattr(each, "label", None)}
    assert labels["Class"].choices[2] == ("2 · cat", 2)
    assert labels["Block"].maximum == 1 and labels["Solver steps"].value == 25
    assert ("dopri5", "dopri5") in labels["Solver"].choices and labels["Solver"].value == "midpoint"
    assert labels["Height, pixels"].step == 2


def test_a_model_without_a_null_class_has_no_guidance(tiny_pipeline):
    page = Demo({"A": tiny_pipeline(class_dropout_prob=0.0, num_classes=1)}).build()
    labels = {each.label: each for each in page.blocks.values() if getattr(each, "label", None)}
    assert not labels["Guidance scale"].visible and not labels["Class"].visible


def test_names_are_no_html(demo):
    assert "<ATConv>" not in demo.header() and re.search("SA and &lt;ATConv&gt;, from the same noise", demo.header())
