"""What evaluations share: samples that depend on a seed and their index alone, and reports of how they were made.

B images of H × W pixels and C channels; images are uint8 (B, H, W, C), what a PNG would hold.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import diffusers
import numpy as np
import torch

from . import __version__
from .pipelines.pipeline_sit import SiTPipeline
from .validation import check_count

MAX_PIXEL_DIMENSIONS = 4096  # a covariance of 4096² float64 is 128 MiB


def pick_device(device: str = "auto") -> torch.device:
    """The device of that name; "auto" is the GPU where there is one.

    Raises:
        ValueError: for a name that PyTorch does not know, or a GPU that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(1, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}; try cpu or auto") from error
    return picked


def is_pipeline_folder(folder: str | Path) -> bool:
    """Whether the folder is one that `SiTPipeline.save_pretrained` wrote."""
    return (Path(folder) / SiTPipeline.config_name).is_file()


def load_pipeline(folder: str | Path, device: torch.device) -> SiTPipeline:
    """Load a pipeline folder with the installed classes, its progress bar off.

    Raises:
        ValueError: for a folder that is missing, incomplete or of another pipeline.
    """
    if not is_pipeline_folder(folder):
        raise ValueError(f"{str(folder)!r} is no pipeline folder: it has no {SiTPipeline.config_name}")
    try:
        pipeline = SiTPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} cannot be loaded as a SiTPipeline: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def image_shape(pipeline: SiTPipeline) -> tuple[int, int, int]:
    """(H, W, C) of the pipeline's images."""
    size = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
    channels = pipeline.transformer.out_channels if pipeline.vae is None else pipeline.vae.config.out_channels
    return size, size, channels


def balanced_labels(num_samples: int, num_classes: int) -> list[int]:
    """Class ids 0, 1, …, num_classes − 1, 0, 1, …: each as often as the others, up to one."""
    return [i % num_classes for i in range(num_samples)]


def image_generator(seed: int, index: int) -> torch.Generator:
    """The random numbers of image `index` of the samples with this seed, the same on every device.

    PyTorch's CPU generator uses 32 bits of its seed. Counting up from a hashed start keeps the images of one seed
    apart. Hashing each index would not: of 50,000 images, two would share their noise with a probability of 25 %.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((start + index) % 2**32)


def check_sampling(
    pipeline: SiTPipeline, seed: int, batch_size: int, guidance_scale: float, num_inference_steps: int
) -> None:
    """Find out before any work whether `generate` can do this.

    Raises:
        ValueError: naming the argument that cannot be used.
    """
    check_count("batch_size", batch_size)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number of at least 0")
    height, width, _ = image_shape(pipeline)
    pipeline.check_inputs(
        batch_size=batch_size,
        guidance_scale=guidance_scale,
        guidance_interval=(0.0, 1.0),
        guidance_channels=None,
        num_inference_steps=num_inference_steps,
        height=height,
        width=width,
        generator=None,
        latents=None,
        output_type="np",
    )
    if hasattr(pipeline.scheduler, "time_grid"):
        pipeline.scheduler.time_grid(num_inference_steps)


def generate(
    pipeline: SiTPipeline,
    labels: Sequence[int],
    seed: int,
    batch_size: int,
    guidance_scale: float,
    num_inference_steps: int,
) -> Iterator[np.ndarray]:
    """Sample one image per label, batch by batch. Image i depends on labels[i] and (seed, i) alone.

    Yields:
        (B, H, W, C) uint8, rounded as when a PNG is written.

    Raises:
        ValueError: for arguments that the pipeline refuses, or an image that is not finite.
    """
    check_sampling(pipeline, seed, batch_size, guidance_scale, num_inference_steps)
    for start in range(0, len(labels), batch_size):
        batch = list(labels[start : start + batch_size])
        images = pipeline(
            batch,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=[image_generator(seed, start + i) for i in range(len(batch))],
            output_type="np",
        ).images  # (B, H, W, C) float in [0, 1]
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        if not finite.all():
            i = start + int(np.argmin(finite))
            raise ValueError(f"image {i} (seed={seed}, class {labels[i]}) is not finite; check the pipeline's weights")
        yield (images * 255).round().astype(np.uint8)


def check_pixel_dimensions(shape: tuple[int, int, int]) -> None:
    """Raise ValueError where images of this (H, W, C) are too large to be compared by their raw pixels."""
    if np.prod(shape) > MAX_PIXEL_DIMENSIONS:
        raise ValueError(
            f"images of {'×'.join(map(str, shape))} have {np.prod(shape)} pixel values, more than the "
            f"{MAX_PIXEL_DIMENSIONS} that raw pixels are compared with; use eval/fid.py with --extractor inception or "
            "timm:NAME"
        )


def flatten_pixels(images: np.ndarray) -> np.ndarray:
    """Raw pixels as features: (B, H, W, C) uint8 -> (B, H·W·C) float64 in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0


def describe_pipeline(pipeline: SiTPipeline) -> dict:
    """What a report says of the pipeline itself: its mixer and its scheduler."""
    config = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    return {
        "mixer": pipeline.transformer.config.mixer,
        "scheduler": {"class": type(pipeline.scheduler).__name__, "config": config},
    }


def versions() -> dict[str, str]:
    """Versions of what made the numbers."""
    return {"torch": torch.__version__, "diffusers": diffusers.__version__, "sit_atconv": __version__}


def check_new_file(field: str, file: str | Path | None) -> None:
    """Raise ValueError unless `file` is None or can be written without replacing anything."""
    if file is None:
        return
    file = Path(file)
    if file.exists():
        raise ValueError(f"{field}={str(file)!r} exists; name another file, or remove that one first")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{field}={str(file)!r} cannot be written: {folder} is not a folder that you may write to")


def write_report(file: str | Path, report: dict) -> None:
    """Write a report as JSON to a new file."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as opened:
        json.dump(report, opened, indent=2, ensure_ascii=False)
        opened.write("\n")
