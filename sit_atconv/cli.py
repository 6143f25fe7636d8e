"""The command line for everyday use: `sit-atconv sample FOLDER --classes 3 cat --out grid.png`."""

import argparse
import sys
from pathlib import Path

FIRST_CLASSES = 10  # drawn where none are named


def sample(args: argparse.Namespace) -> None:
    """Draw images from a pipeline folder into one picture, one class a row.

    Raises:
        ValueError: naming what cannot be used.
    """
    from PIL import Image

    from .evaluation import check_new_file, image_generator, pick_device
    from .images import save_grid
    from .pipelines.pipeline_sit import SiTPipeline
    from .validation import check_choice, check_count

    check_count("images_per_class", args.images_per_class)
    check_new_file("out", args.out)
    check_choice("the ending of out", Path(args.out).suffix.lower(), Image.registered_extensions())
    device = pick_device(args.device)
    try:
        pipeline = SiTPipeline.from_pretrained(args.folder)
    except OSError as error:
        raise ValueError(f"folder={args.folder!r} is no pipeline folder: {str(error).splitlines()[0]}") from error
    pipeline.to(device)
    first = range(min(FIRST_CLASSES, pipeline.transformer.config.num_classes))
    named = [int(name) if name.lstrip("-").isdigit() and name not in pipeline.labels else name for name in args.classes]
    rows = pipeline.get_label_ids(named or first)
    labels = [label for label in rows for _ in range(args.images_per_class)]
    images = pipeline(
        labels,
        guidance_scale=args.guidance_scale,
        num_inference_steps=args.num_inference_steps,
        generator=[image_generator(args.seed, i) for i in range(len(labels))],
        output_type="pt",
    ).images
    save_grid(images, args.out, columns=args.images_per_class)
    print(f"{len(labels)} images of classes {', '.join(map(str, rows))} in {args.out}")


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="sit-atconv", description="SiT with ATConv: everyday commands.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("sample", help="draw images from a pipeline folder, one class a row")
    command.set_defaults(run=sample)
    command.add_argument("folder", help="a pipeline folder, or the name of one on the Hub")
    command.add_argument("--out", default="samples.png", help="the PNG to write, a new file (%(default)s)")
    command.add_argument("--classes", nargs="+", default=[], help="class ids or names (the first ten)")
    command.add_argument("--images_per_class", type=int, default=8, help="images in a row (%(default)s)")
    command.add_argument("--guidance_scale", type=float, default=1.0, help="1 is no guidance (%(default)s)")
    command.add_argument("--num_inference_steps", type=int, help="solver steps (as many as make 50 network calls)")
    command.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    command.add_argument("--device", default="auto", help="such as cpu or cuda (the GPU where there is one)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `sit-atconv`; a mistake ends with one line and exit code 2."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except ValueError as error:
        print(f"sit-atconv: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
