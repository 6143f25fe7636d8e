"""`sit-atconv morph`: the way from one image to another, through the noises and classes between them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..sharing.folder import check_pipeline_name
from ..utils.checks import check_count, check_device, check_seed
from ..utils.text import counted, printable
from .sample import (
    MIN_TILE,
    add_machine_options,
    add_sampling_options,
    check_picture,
    describe,
    load,
    numbered,
    sampling_options,
)

if TYPE_CHECKING:
    import torch

    from ..evaluation.sampling_options import SamplingOptions
    from ..pipelines.pipeline_sit import SiTPipeline

OUT = "morph.png"
ANIMATIONS = (".gif", ".webp")
COLUMNS = 16  # of a strip, at most; longer ones continue below


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.usage = "%(prog)s FOLDER --classes CLASS ... --seeds N ... [--OPTION VALUE ...]"
    add = command.add_argument
    add("folder", metavar="FOLDER", help="a pipeline folder, or the name of one on the Hub")
    add("--classes", metavar="CLASS", nargs="+", default=["0"], help="of the images on the way (default: 0)")
    add("--seeds", metavar="N", nargs="+", type=int, default=[0, 1], help="of their noises (default: 0 1)")
    add("--frames", metavar="N", type=int, default=8, help="images from one to the next (default: %(default)s)")
    add("--out", metavar="FILE", help=f"a strip, or an animation: .gif or .webp (default: {OUT})")
    add("--overwrite", action="store_true", help="replace a file that exists")
    add_sampling_options(command)
    add_machine_options(command)


def run(args: argparse.Namespace) -> None:
    """Draw the images between those of several classes and seeds, as a strip or an animation.

    Raises:
        ValueError: naming what cannot be used.
    """
    if args.out is None:
        args.out = OUT if args.overwrite else numbered(OUT)
    check_picture("out", args.out, args.overwrite)
    check_pipeline_name(args.folder)
    check_device("device", args.device)
    check_count("frames", args.frames)
    for seed in args.seeds:
        check_seed("seeds", seed)
    points = max(len(args.classes), len(args.seeds))
    for field, given in (("classes", args.classes), ("seeds", args.seeds)):
        if len(given) not in (1, points):
            raise ValueError(f"{field}: {len(given)} for {counted(points, 'image')}; give one for all, or one for each")
    if points < 2:
        raise ValueError(f"seeds={args.seeds[0]} and classes={args.classes[0]}: one image leads nowhere; add another")
    options = sampling_options(args, args.seeds[0])
    pipeline = load(args)
    from ..evaluation.sampling_dtype import cast_pipeline, resolve_dtype
    from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
    from ..utils.class_labels import labels_from_words
    from ..utils.image_grid import animate, grid_picture, save_grid
    from .drawing import fit_to_memory

    labels = pipeline.get_label_ids(labels_from_words(args.classes, pipeline.labels))
    options = options.resolve(pipeline)
    pipeline = options.configure(pipeline)
    if isinstance(pipeline.scheduler, InterpolantSDEScheduler):
        raise ValueError("an SDE draws noise at each step, other noise for each image on the way; give --sampler ode")
    options = fit_to_memory(pipeline, options)
    options = resolve_dtype([pipeline], options)  # with tiles where memory is short: the trial draws in float32 as well
    cast_pipeline(pipeline, options.dtype)
    classes, seeds = ([*each] * (points // len(each)) for each in (labels, args.seeds))  # one for each image
    images = draw_between(pipeline, classes, seeds, args.frames, options)
    if Path(args.out).suffix.lower() in ANIMATIONS:
        animate([grid_picture(image[None], 1, MIN_TILE) for image in images], args.out)
    else:
        settings = describe(args, pipeline, options, {"classes": labels, "seeds": args.seeds, "frames": args.frames})
        rows = -(-len(images) // COLUMNS)
        save_grid(images, args.out, -(-len(images) // rows), MIN_TILE, settings=settings)
    print(printable(f"{counted(len(images), 'image')} in {args.out}"))


def draw_between(
    pipeline: "SiTPipeline", labels: list[int], seeds: list[int], frames: int, options: "SamplingOptions"
) -> "torch.Tensor":
    """Draw the way from each point to the next one: (N, channels, H, W) in [0, 1].

    Args:
        pipeline: the pipeline, with its sampler.
        labels: the class of each point.
        seeds: the seed of the noise of each point, whose own image is the first of `sit-atconv sample` with that seed.
        frames: the number of images from one point to the next.
        options: guidance, solver steps and batch size.
    """
    import torch

    from ..pipelines.mixing import frames_between
    from ..utils.randomness import image_generator
    from .drawing import Drawn, in_batches, joined

    config = pipeline.transformer.config
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    noises = torch.cat([pipeline.draw_noise(shape, image_generator(seed, 0)).cpu() for seed in seeds])
    weights, latents = frames_between(noises, labels, config.num_classes, frames)

    def draw_batch(indices: range) -> Drawn:
        images = pipeline(
            weights[indices.start : indices.stop],
            latents=latents[indices.start : indices.stop],
            guidance_scale=options.guidance_scale,
            guidance_interval=tuple(options.guidance_interval),
            num_inference_steps=options.num_inference_steps,
            output_type="pt",
        ).images
        return Drawn(images.cpu())

    return joined(in_batches(draw_batch, len(weights), options.batch_size)).images
