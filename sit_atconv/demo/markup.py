"""The parts of the demo's page that are HTML: rows of small pictures with captions."""

import base64
import html
import io
from collections.abc import Sequence

from PIL.Image import Image

STYLE = """
.demo-frames { display: grid; grid-template-columns: repeat(auto-fit, minmax(4.2rem, 1fr)); gap: .5rem; }
.demo-frames figure, .demo-kernels { margin: 0; }
.demo-frames img, .demo-kernels img { width: 100%; image-rendering: pixelated; border-radius: 4px; display: block; }
.demo-frames figcaption, .demo-kernels figcaption, .demo-note {
  color: var(--body-text-color); opacity: .75; font-size: .8rem; font-variant-numeric: tabular-nums;
}
.demo-frames figcaption { text-align: center; }
.demo-kernels { max-width: 48rem; } .demo-kernels figcaption { margin-top: .4rem; }
.demo-name { font-weight: 600; margin-bottom: .35rem; }
.demo-view > .html-container { padding: 0; }
#another { align-self: end; }
.demo-image img { image-rendering: pixelated; }
"""


def data_url(image: Image) -> str:
    """The address that holds a picture itself, as PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def heading(name: str) -> str:
    """A line above the pictures of one pipeline; nothing if it needs no name."""
    return f'<div class="demo-name">{html.escape(name)}</div>' if name else ""


def note(text: str) -> str:
    """A line that stands in the place of pictures."""
    return f'<div class="demo-note">{html.escape(text)}</div>'


def strip(images: Sequence[Image], captions: Sequence[str]) -> str:
    """A row of pictures that wraps on a narrow page; each caption is also what a screen reader says."""
    figures = [
        f'<figure><img alt="{html.escape(caption)}" src="{data_url(image)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for image, caption in zip(images, captions, strict=True)
    ]
    return f'<div class="demo-frames">{"".join(figures)}</div>'


def kernels_figure(picture: Image, caption: str) -> str:
    """A picture of kernels with its caption."""
    text = html.escape(caption)
    return (
        f'<figure class="demo-kernels"><img alt="{text}" src="{data_url(picture)}"><figcaption>{text}</figcaption>'
        "</figure>"
    )
