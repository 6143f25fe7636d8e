"""The demo's page, in Gradio: choose a class, draw, and look at the image, the way to it and the kernels.

Gradio is an extra, and imported where it is used.
"""

import html
from collections.abc import Callable, Mapping
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..models.generated_kernels import blocks_with_kernels
from .drawing import Choices, Drawing, draw, enlarge, solver_names
from .markup import STYLE
from .views import caption, class_choices, describe, kernels_view, strip_view

MAX_SEED = 2**31 - 1
SHOWN_SIDE = 512  # pixels, to which smaller images are enlarged


class Demo:
    """A page that draws with one pipeline, or with two from the same noise.

    Args:
        pipelines: pipelines by name. They have the same classes and latents of the same shape.
    """

    def __init__(self, pipelines: Mapping[str, DiffusionPipeline]):
        self.pipelines = dict(pipelines)
        self.first = next(iter(self.pipelines.values()))
        self.draw_all(Choices(num_inference_steps=1))  # the first call of a network takes longer than those that follow
        self.drawings = self.draw_all(Choices(num_inference_steps=self.first.default_num_inference_steps))

    @property
    def headings(self) -> list[str]:
        """What stands above the pictures of each pipeline: its name, if there are two."""
        return list(self.pipelines) if len(self.pipelines) > 1 else [""]

    @property
    def solvers(self) -> list[str]:
        """The solvers that all pipelines offer."""
        offered = [solver_names(pipeline) for pipeline in self.pipelines.values()]
        return [name for name in offered[0] if all(name in names for names in offered)]

    @property
    def default_block(self) -> int:
        """A block in the middle that generates kernels, in whichever pipeline has some; 0 if none has."""
        known = sorted({i for each in self.pipelines.values() for i in blocks_with_kernels(each.transformer)})
        return known[len(known) // 2] if known else 0

    @property
    def num_blocks(self) -> int:
        """The number of blocks of the deepest network."""
        return max(len(pipeline.transformer.blocks) for pipeline in self.pipelines.values())

    def draw_all(self, choices: Choices) -> list[Drawing]:
        """Draw one image with each pipeline, in turn."""
        return [draw(pipeline, choices) for pipeline in self.pipelines.values()]

    def results(self, drawings: list[Drawing], block: int, t: float) -> list[Any]:
        """What the page shows of drawings, in the order of its outputs: images, captions, strips, kernels."""
        others = [None, *drawings[:1] * (len(drawings) - 1)]
        return [
            *(enlarge(drawing.image, SHOWN_SIDE) for drawing in drawings),
            *(caption(*each) for each in zip(self.headings, drawings, others, strict=True)),
            *(strip_view(*each) for each in zip(self.headings, self.pipelines.values(), drawings, strict=True)),
            *self.kernels(drawings, block, t),
        ]

    def kernels(self, drawings: list[Drawing], block: int, t: float) -> list[str]:
        """What the page shows of the kernels of drawings."""
        shown = zip(self.headings, self.pipelines.values(), drawings, strict=True)
        return [kernels_view(*each, int(block), t) for each in shown]

    def build(self) -> Any:
        """Return the page, a `gradio.Blocks`."""
        import gradio as gr

        block, t = self.default_block, 0.5
        shown = self.results(self.drawings, block, t)
        count = len(self.pipelines)
        with gr.Blocks(title="sit-atconv", analytics_enabled=False) as page:
            gr.Markdown(self.header())
            state = gr.State(self.drawings, time_to_live=3600)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    choices, button = self.add_choices()
                with gr.Column(scale=2, min_width=280):
                    images, captions = add_images(list(self.pipelines), shown[: 2 * count])
            gr.Markdown("### From noise to image")
            strips = [gr.HTML(value, elem_classes="demo-view") for value in shown[2 * count : 3 * count]]
            gr.Markdown("### Generated kernels")
            with gr.Row():
                block_slider = gr.Slider(0, self.num_blocks - 1, block, step=1, label="Block", elem_id="block")
                t_slider = gr.Slider(0, 1, t, step=0.01, label="Time t: 0 is noise, 1 the image", elem_id="time")
            kernels = [gr.HTML(value, elem_classes="demo-view") for value in shown[3 * count :]]

            def drawn(block: int, t: float, *values: Any) -> list[Any]:
                drawings = self.draw_all(self.choices(*values))
                return [drawings, *self.results(drawings, block, t)]

            outputs = [state, *images, *captions, *strips, *kernels]
            one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "network"}  # so that times mean something
            sliders = [block_slider, t_slider]
            button.click(told(drawn), [*sliders, *choices], outputs, api_name="draw", **one_at_a_time)
            for slider in sliders:
                slider.input(
                    told(self.kernels), [state, *sliders], kernels, trigger_mode="always_last", api_name=False,
                    show_progress="hidden", **one_at_a_time,
                )  # fmt: skip
        return page

    def header(self) -> str:
        """Title and facts, as Markdown."""
        names = [html.escape(name) for name in self.pipelines]
        facts = [
            f"**{name}**: {describe(pipeline)}" for name, pipeline in zip(names, self.pipelines.values(), strict=True)
        ]
        title = f"# {' and '.join(names)}" + (", from the same noise" if len(names) > 1 else "")
        return "\n\n".join([title, "<br>".join(facts)])

    def add_choices(self) -> tuple[list[Any], Any]:
        """Add what a visitor chooses, in the order of `choices`, and the button that draws."""
        import gradio as gr

        config, factor = self.first.transformer.config, self.first.vae_scale_factor
        classes, unit, side = class_choices(self.first), config.patch_size * factor, config.sample_size * factor
        label = gr.Dropdown(classes, value=0, label="Class", elem_id="class", visible=len(classes) > 1)
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120, elem_id="seed")
            another = gr.Button("Another seed", min_width=120, size="md", elem_id="another")
        guidance = gr.Slider(
            1, 10, 1, step=0.1, label="Guidance scale", elem_id="guidance", visible=config.class_dropout_prob > 0
        )
        steps = gr.Slider(1, 100, self.first.default_num_inference_steps, step=1, label="Solver steps", elem_id="steps")
        solvers = self.solvers
        solver = gr.Dropdown(
            solvers, value=self.first.scheduler.config.get("solver") if solvers else None, label="Solver",
            info="Adaptive solvers, such as dopri5, choose their own steps", elem_id="solver", visible=bool(solvers),
        )  # fmt: skip
        with gr.Accordion("Size", open=False):
            height = gr.Slider(unit, 4 * side, side, step=unit, label="Height, pixels", elem_id="height")
            width = gr.Slider(unit, 4 * side, side, step=unit, label="Width, pixels", elem_id="width")
        another.click(None, None, seed, js=f"() => Math.floor(Math.random() * {MAX_SEED})", api_name=False)
        button = gr.Button("Draw", variant="primary", size="lg", elem_id="draw")
        return [label, seed, guidance, steps, solver, height, width], button

    def choices(
        self, label: int, seed: float, guidance: float, steps: float, solver: str | None, height: float, width: float
    ) -> Choices:
        """What a visitor chose, from the values of the page; sliders have numbers that may be floats."""
        return Choices(int(label), int(seed or 0), float(guidance), int(steps), solver, int(height), int(width))


def add_images(names: list[str], shown: list[Any]) -> tuple[list[Any], list[Any]]:
    """Add an image and its caption for each pipeline, side by side."""
    import gradio as gr

    images, captions = [], []
    with gr.Row():
        for i, name in enumerate(names):
            with gr.Column(min_width=140):
                image = gr.Image(
                    shown[i], show_label=False, format="png", interactive=False, buttons=["download", "fullscreen"],
                    elem_classes="demo-image", elem_id=f"image-{i}", alt_text=f"The image that {name} drew",
                )  # fmt: skip
                images.append(image)
                captions.append(gr.HTML(shown[len(names) + i], elem_classes="demo-view", elem_id=f"caption-{i}"))
    return images, captions


def told(function: Callable) -> Callable:
    """The function, whose ValueError the page shows to the visitor."""
    import gradio as gr

    def telling(*values: Any) -> Any:
        try:
            return function(*values)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return telling


def launch(page: Any, **options: Any) -> None:
    """Serve a page until it is interrupted; the options are those of `gradio.Blocks.launch`."""
    import gradio as gr

    # Fonts of the system: the page loads nothing from other places.
    font = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(primary_hue="indigo", font=font, font_mono=["ui-monospace", "monospace"])
    looks = {"theme": theme, "css": STYLE, "footer_links": ["api", "settings"]}
    # Quiet, because Gradio's own lines advise to edit this call.
    _, local, public = page.launch(**looks, quiet=True, prevent_thread_lock=True, **options)
    print(f"the demo is at {public or local} (Ctrl-C ends it)", flush=True)
    page.block_thread()
