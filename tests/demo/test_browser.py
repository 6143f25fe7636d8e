"""The demo in a real browser: start it, choose a class, click, and read the image.

Needs Gradio, Playwright for Python, and Chromium or Chrome; skipped where one of them is missing.
"""

import io
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from sit_atconv.demo.drawing import Choices, draw

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path")]


@pytest.fixture(scope="module")
def served(tiny_pipeline, tmp_path_factory):
    """The address of a demo of two pipelines, served by the command, and the pipelines."""
    root = tmp_path_factory.mktemp("demo")
    pipelines = {name: tiny_pipeline(mixer=name) for name in ("attention", "atconv")}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders = [str(root / name) for name in pipelines]
    program = "from sit_atconv.cli import main; main()"
    server = subprocess.Popen([sys.executable, "-c", program, "demo", *folders, "--port", str(port)])
    try:
        yield wait_until_served(f"http://127.0.0.1:{port}/", server), pipelines
    finally:
        server.terminate()
        server.wait(30)


def wait_until_served(address: str, server: subprocess.Popen) -> str:
    for _ in range(600):  # also on a machine that does much else
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address)
            return address
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the page was not served within five minutes")


@pytest.fixture
def page(served):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 400, "height": 900}, color_scheme="dark")
        page.set_default_timeout(180_000)
        page.foreign, page.failures = [], []
        page.on(
            "request", lambda request: page.foreign.append(request.url) if is_foreign(request.url, served[0]) else None
        )
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.goto(served[0])
        page.wait_for_selector("#draw")
        yield page
        browser.close()


def is_foreign(url: str, address: str) -> bool:
    return not url.startswith((address, "data:", "blob:"))


def shown_image(page, index: int) -> Image.Image:
    """The image that the page shows, as the server sends it."""
    address = page.get_attribute(f"#image-{index} img", "src")
    return Image.open(io.BytesIO(page.request.get(address).body())).convert("RGB")


def test_choosing_a_class_and_clicking_draws_it(page, served):
    _, pipelines = served
    before = page.get_attribute("#image-1 img", "src")
    page.click("#class input")
    page.click("text=3 · deer")
    page.fill("#seed input", "5")
    page.click("#draw")
    page.wait_for_function(f"document.querySelector('#image-1 img').src !== {before!r}")
    for i, pipeline in enumerate(pipelines.values()):
        expected = draw(pipeline, Choices(label=3, seed=5, num_inference_steps=25)).image
        image = shown_image(page, i).resize((8, 8), Image.Resampling.NEAREST)
        # Other processes may use other threads; a grey level is what they may differ by.
        assert np.abs(np.asarray(image, int) - np.asarray(expected.convert("RGB"), int)).max() <= 1
    assert re.search(r"[\d.]+ s, 50 network calls", page.inner_text("#caption-0"))
    assert page.locator(".demo-frames img").count() == 16
    assert page.failures == [] and page.foreign == []  # the page needs nothing from other places
    assert page.evaluate("document.documentElement.scrollWidth") <= 400  # fits a phone


def test_kernels_of_another_block_are_shown(page):
    kernels = page.locator(".demo-kernels figcaption")
    assert "block 1, t = 0.48" in kernels.inner_text() or "block 1, t = 0.52" in kernels.inner_text()
    page.fill("#block input[type=number]", "0")
    page.locator("#block input[type=number]").press("Tab")
    page.wait_for_function("document.querySelector('.demo-kernels figcaption').textContent.includes('block 0')")
    assert "has no kernels" in page.inner_text("body")
