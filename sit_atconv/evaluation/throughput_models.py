"""Sampling and encoding as the scripts do it, in turns with the networks alone: what files and bookkeeping cost.

B batch, c latent channels, S image side in pixels.
"""

import itertools
from functools import partial

import torch

from ..benchmarks.calls import TimedCalls
from ..data import FolderDataset
from ..models.transformer_sit import SiTTransformer2DModel
from ..models.vae import load_vae, posterior_moments
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..training.encode import encode_latents
from ..utils.environment import pick_device
from .sample_folder import sample_to_folder
from .sampling import generate, load_pipeline
from .sampling_options import SamplingOptions
from .throughput_files import BenchmarkFiles
from .throughput_options import ThroughputOptions
from .throughput_scores import silently

SMALL_SIZE = 64  # pixels of the pipeline that is made if none is given
SMALL = dict(sample_size=SMALL_SIZE, in_channels=3, num_classes=10)


def small_pipeline_folder(files: BenchmarkFiles) -> str:
    """A folder of a small pipeline in pixel space with random weights."""
    folder = files.root / "pipeline"
    if not folder.exists():
        torch.manual_seed(0)
        model = SiTTransformer2DModel.from_preset("SiT-ATConv-Nano/4", **SMALL)
        SiTPipeline(model, InterpolantODEScheduler()).save_pretrained(folder)
    return str(folder)


def sampling_calls(files: BenchmarkFiles, options: ThroughputOptions, device: torch.device) -> TimedCalls:
    """eval/sample.py from a pipeline folder to PNG files, compared with the pipeline alone, loaded before."""
    folder = options.pipeline or small_pipeline_folder(files)
    sampling = SamplingOptions(
        options.num_drawn, batch_size=options.batch_size, num_inference_steps=options.steps, dtype="float32"
    )
    pipeline = load_pipeline(folder, device)
    labels = sampling.label_ids(range(options.num_drawn), pipeline.transformer.config.num_classes)
    numbers = itertools.count()

    def alone() -> None:
        for _ in generate(pipeline, labels, sampling):
            pass

    def to_folder() -> None:
        sample_to_folder(folder, str(files.root / f"drawn-{next(numbers)}"), sampling, device=str(device))

    calls = {"the pipeline alone": alone, "eval/sample.py": to_folder}
    return TimedCalls(
        {name: partial(silently, call) for name, call in calls.items()}, dict.fromkeys(calls, "the pipeline alone")
    )


def encoding_calls(files: BenchmarkFiles, options: ThroughputOptions, device: torch.device) -> TimedCalls:
    """train/encode_latents.py from pictures to latents on disk, compared with the VAE alone on pixels in memory."""
    if device.type != pick_device("auto").type:  # which the encoding takes
        raise ValueError(f"device={options.device!r}: encode_latents.py takes {pick_device('auto')}; leave device out")
    folder = files.pictures_to_encode()
    images = FolderDataset(folder, options.image_size)
    vae = load_vae(files.vae()).to(device)
    pixels = torch.stack([images.tensor(i) for i in range(len(images))])  # (N, 3, S, S)
    numbers = itertools.count()

    def alone() -> None:
        for batch in pixels.split(options.batch_size):
            posterior_moments(vae, batch.to(device))

    def to_folder() -> None:
        encode_latents(
            str(folder),
            files.vae(),
            str(files.root / f"encoded-{next(numbers)}"),
            options.image_size,
            batch_size=options.batch_size,
            num_workers=options.num_workers,
        )

    calls = {"the VAE alone": alone, "train/encode_latents.py": to_folder}
    return TimedCalls(
        {name: partial(silently, call) for name, call in calls.items()}, dict.fromkeys(calls, "the VAE alone")
    )
