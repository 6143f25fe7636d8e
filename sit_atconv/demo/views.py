"""What the demo's page says and shows of a pipeline and its drawings, as text and HTML."""

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..models.generated_kernels import blocks_with_kernels, generated_kernels
from .drawing import Drawing, choose_frames, decode_frames
from .kernel_picture import kernel_picture
from .markup import heading, kernels_figure, note, strip

STRIP_FRAMES = 8
SHOWN_CHANNELS = 64
STRONG = 0.98  # share of the weights that are weaker than the full colours: a few outliers would leave the rest pale


def class_choices(pipeline: DiffusionPipeline) -> list[tuple[str, int]]:
    """The classes as a person and as the pipeline knows them: ("3 · cat", 3)."""
    names = pipeline.config.get("id2label") or {}
    count = pipeline.transformer.config.num_classes
    return [(class_title(i, names.get(str(i))), i) for i in range(count)]


def class_title(index: int, name: str | None) -> str:
    """A class as a person knows it; names that are the id, as those of digits, are not said twice."""
    if name is None:
        return f"class {index}"
    return name if name == str(index) else f"{index} · {name}"


def describe(pipeline: DiffusionPipeline) -> str:
    """Blocks, parameters and image size in one line."""
    model = pipeline.transformer
    blocks, with_kernels = len(model.blocks), len(blocks_with_kernels(model))
    kinds = [f"{count} {name}" for count, name in ((with_kernels, "ATConv"), (blocks - with_kernels, "attention"))]
    mixers = " and ".join(kind for kind in kinds if not kind.startswith("0 "))
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    side = model.config.sample_size * pipeline.vae_scale_factor
    return f"{mixers} block{'s' if blocks > 1 else ''}, {parameters:.2f} M parameters, {side} × {side} pixels"


def caption(name: str, drawing: Drawing, first: Drawing | None = None) -> str:
    """Time and network calls of a drawing, as HTML; compared with those of the first pipeline, if that is given."""
    facts = [f"{drawing.seconds:.2f} s", f"{drawing.network_calls} network calls"]
    if first is not None:
        facts.append(f"{drawing.seconds / first.seconds:.2f} × the time of the first for this one image")
    return heading(name) + note(", ".join(facts))


def strip_view(name: str, pipeline: DiffusionPipeline, drawing: Drawing) -> str:
    """The states from noise to image, evenly spaced in time."""
    frames = choose_frames(drawing.frames, STRIP_FRAMES)
    return heading(name) + strip(decode_frames(pipeline, frames), [f"t = {frame.t:.2f}" for frame in frames])


def kernels_view(name: str, pipeline: DiffusionPipeline, drawing: Drawing, block: int, t: float) -> str:
    """The kernels that a block generates for the state nearest to time t."""
    model = pipeline.transformer
    known = blocks_with_kernels(model)
    if block not in known:
        others = ", ".join(map(str, known)) or "none"
        exists = (
            f"block {block} mixes tokens by attention, which has no kernels"
            if block < len(model.blocks)
            else (f"there is no block {block}")
        )
        return heading(name) + note(f"{exists[0].upper()}{exists[1:]}. Blocks with kernels: {others}.")
    frame = min(drawing.frames, key=lambda frame: abs(frame.t - t))
    labels = torch.tensor([drawing.label], device=model.device)
    kernels = generated_kernels(model, frame.latents.to(model.device, model.dtype), frame.t, labels)[block][0].cpu()
    shown = kernels[:SHOWN_CHANNELS]
    strong = float(shown.abs().quantile(STRONG)) or 1.0
    text = (
        f"The {' × '.join(map(str, kernels.shape[1:]))} kernels of {len(shown)} of {len(kernels)} channels, block "
        f"{block}, t = {frame.t:.2f}. Blue is negative, white zero, red positive, full "
        f"at ±{strong:.2g}."
    )
    return heading(name) + kernels_figure(kernel_picture((shown / strong).numpy()), text)
