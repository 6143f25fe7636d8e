"""`sit-atconv sample`: images from a pipeline folder."""

import argparse
from pathlib import Path

from ..utils.files import check_new_file
from ..utils.text import printable

FIRST_CLASSES = 10  # drawn if none are named


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("folder", help="a pipeline folder, or the name of one on the Hub")
    command.add_argument("--out", default="samples.png", help="a new PNG file (default: %(default)s)")
    command.add_argument("--classes", nargs="+", default=[], help="class ids or names (default: the first ten)")
    command.add_argument("--images_per_class", type=int, default=8, help="images per row (default: %(default)s)")
    command.add_argument("--guidance_scale", type=float, default=1.0, help="1 disables guidance (default: %(default)s)")
    command.add_argument("--num_inference_steps", type=int, help="solver steps (default: about 50 network calls)")
    command.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    command.add_argument("--device", default="auto", help="cpu, cuda, … (default: the GPU, if there is one)")


def run(args: argparse.Namespace) -> None:
    """Draw images from a pipeline folder into one picture, one class per row.

    Raises:
        ValueError: naming what cannot be used.
    """
    check_new_file("out", args.out)
    from PIL import Image

    from ..pipelines.pipeline_sit import SiTPipeline
    from ..sharing.folder import reading_folder, weights_variant
    from ..utils.checks import check_count
    from ..utils.class_labels import labels_from_words
    from ..utils.environment import pick_device
    from ..utils.image_grid import save_grid
    from ..utils.randomness import image_generator

    check_count("images_per_class", args.images_per_class)
    if Path(args.out).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"out={args.out!r}: unknown image format; use .png")
    device = pick_device(args.device)
    with reading_folder(args.folder):
        pipeline = SiTPipeline.from_pretrained(args.folder, variant=weights_variant(args.folder))
    pipeline.to(device)
    first = range(min(FIRST_CLASSES, pipeline.transformer.config.num_classes))
    rows = pipeline.get_label_ids(labels_from_words(args.classes, pipeline.labels) or first)
    labels = [label for label in rows for _ in range(args.images_per_class)]
    images = pipeline(
        labels,
        guidance_scale=args.guidance_scale,
        num_inference_steps=args.num_inference_steps,
        generator=[image_generator(args.seed, i) for i in range(len(labels))],
        output_type="pt",
    ).images
    save_grid(images, args.out, columns=args.images_per_class)
    print(printable(f"{len(labels)} images of classes {', '.join(map(str, rows))} in {args.out}"))
