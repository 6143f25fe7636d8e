"""Sampling for evaluations: images that depend on their label, a seed and their index, and on nothing else.

B images of H × W pixels and C channels; images are uint8 (B, H, W, C), as a PNG file holds them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..data import ImageDataset
from ..models.codecs import vae_image_channels
from ..models.finite import NotFiniteError
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
from ..sharing.folder import check_pipeline_folder
from ..utils.randomness import image_generator
from .sampling_options import SamplingOptions

SAMPLERS = {"ode": InterpolantODEScheduler, "sde": InterpolantSDEScheduler}


def load_pipeline(folder: str | Path, device: torch.device) -> SiTPipeline:
    """Load a pipeline folder with the installed classes, without a progress bar.

    Raises:
        ValueError: if the folder is missing, incomplete, or holds another kind of pipeline.
    """
    check_pipeline_folder(folder)
    try:
        pipeline = SiTPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} cannot be loaded as a SiTPipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def image_shape(pipeline: SiTPipeline) -> tuple[int, int, int]:
    """(H, W, C) of the pipeline's images."""
    size = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    channels = pipeline.transformer.out_channels if pipeline.vae is None else vae_image_channels(pipeline.vae)
    return size, size, channels


def check_same_images(pipeline: SiTPipeline, dataset: ImageDataset) -> None:
    """Check that the pipeline draws images like those of a data set, of the same classes in the same order.

    Raises:
        ValueError: naming the difference.
    """
    shape = (dataset.image_size, dataset.image_size, dataset.channels)
    if shape != image_shape(pipeline):
        shapes = ["×".join(map(str, value)) for value in (shape, image_shape(pipeline))]
        raise ValueError(f"images of {dataset.name} are {shapes[0]}, the pipeline's {shapes[1]}; they must be alike")
    num_classes = pipeline.transformer.config.num_classes
    if dataset.num_classes != num_classes:
        raise ValueError(
            f"{dataset.name} has {dataset.num_classes} classes, the pipeline {num_classes}; both must have the same"
        )
    for name, label in pipeline.labels.items():
        if name in dataset.classes and dataset.classes.index(name) != label:
            raise ValueError(
                f"class {name!r} is {dataset.classes.index(name)} in {dataset.name}, but {label} in the pipeline; "
                "give the data that it was trained on"
            )


def draw_images(
    pipeline: SiTPipeline, indices: Sequence[int], options: SamplingOptions, labels: Sequence[int] | None = None
) -> np.ndarray:
    """Sample the images with these indices in one batch.

    Args:
        pipeline: the pipeline, with the sampler that `options.configure` gave it.
        indices: numbers of the images; image i gets the noise of (seed, i).
        options: the seed, the guidance and the number of solver steps.
        labels: class ids of the images. If None, those that the options assign to the indices.

    Returns:
        (B, H, W, C) uint8, rounded as when a PNG file is written.

    Raises:
        ValueError: if an image is not finite.
    """
    if labels is None:
        labels = options.label_ids(indices, pipeline.transformer.config.num_classes)
    try:
        images = pipeline(
            list(labels),
            guidance_scale=options.guidance_scale,
            guidance_interval=tuple(options.guidance_interval),
            guidance_channels=options.guidance_channels,
            num_inference_steps=options.num_inference_steps,
            generator=[image_generator(options.seed, i) for i in indices],
            output_type="np",
        ).images  # (B, H, W, C) float in [0, 1]
    except NotFiniteError as error:
        if (bad := error.row) is None:
            raise
        raise ValueError(
            f"image {indices[bad]} (seed={options.seed}, class {labels[bad]}) is not finite: {error}"
        ) from error
    return (images * 255).round().astype(np.uint8)


def generate(pipeline: SiTPipeline, labels: Sequence[int], options: SamplingOptions) -> Iterator[np.ndarray]:
    """Sample one image per label, batch by batch. Image i depends on labels[i] and (seed, i) only.

    Yields:
        (B, H, W, C) uint8, rounded as when a PNG file is written.

    Raises:
        ValueError: if the pipeline cannot use an option, or an image is not finite.
    """
    options = options.resolve(pipeline)
    for start in range(0, len(labels), options.batch_size):
        indices = range(start, min(start + options.batch_size, len(labels)))
        yield draw_images(pipeline, indices, options, [labels[i] for i in indices])


@contextmanager
def counting_rows(model: torch.nn.Module) -> Iterator[list[int]]:
    """Count the images that pass through a network: a list whose only entry grows by B with each call of B images.

    Divided by the number of images drawn, this is the number of network calls per image; guidance makes two at a time.
    """
    rows = [0]

    def count(module, inputs, output):
        rows[0] += len(output[0])

    handle = model.register_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels as features: (B, H, W, C) uint8 -> (B, H·W·C) float64 in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0
