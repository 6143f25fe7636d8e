"""`sit-atconv sample`: images from a pipeline folder."""

import argparse
import os
import secrets
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..flow.choices import SAMPLING_DTYPES
from ..sharing.folder import check_pipeline_name
from ..utils.checks import check_count, check_device
from ..utils.files import check_new_file
from ..utils.text import counted, printable

if TYPE_CHECKING:
    import torch

    from ..evaluation.sampling_options import SamplingOptions
    from ..pipelines.pipeline_sit import SiTPipeline
    from .drawing import Drawn

FIRST_CLASSES = 10  # drawn if none are named
MIN_TILE = 64  # pixels; smaller images are enlarged in grids
OUT = "samples.png"
REPLACE = "choose another name, or add --overwrite"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.usage = "%(prog)s FOLDER [--classes CLASS ...] [--OPTION VALUE ...]"
    add = command.add_argument
    add("folder", metavar="FOLDER", help="a pipeline folder, or the name of one on the Hub")
    add("--classes", metavar="CLASS", nargs="+", default=[], help="ids or names (default: the first ten)")
    add("--images_per_class", metavar="N", type=int, default=8, help="images per row (default: %(default)s)")
    add("--seed", metavar="N", type=int, help="of the noise (default: a random one, which is printed)")
    add("--height", metavar="N", type=int, help="in pixels (default: that of the training images)")
    add("--width", metavar="N", type=int, help="in pixels (default: that of the training images)")
    add_sampling_options(command)
    output = command.add_argument_group("output")
    add = output.add_argument
    add("--out", metavar="FILE", help=f"the picture, or the folder of --separate (default: {OUT}, samples-2.png …)")
    add("--separate", action="store_true", help="a file for each image, CLASS-seedN-I.png, in the folder --out")
    add("--animate", metavar="FILE", help="also write the way from noise to images, a .gif or .webp")
    add("--overwrite", action="store_true", help="replace files that exist")
    add_machine_options(command)


def add_sampling_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say how the pipeline samples."""
    sampling = command.add_argument_group("sampling")
    add = sampling.add_argument
    add("--num_inference_steps", "--steps", metavar="N", type=int, help="solver steps (default: about 50 calls)")
    add("--guidance_scale", metavar="X", type=float, default=1.0, help="1 disables guidance (default: %(default)s)")
    add("--guidance_interval", metavar="T", nargs=2, type=float, default=[0.0, 1.0], help="guide from T to T (0 1)")
    add("--sampler", choices=("ode", "sde"), help="(default: that of the folder)")
    add("--solver", metavar="NAME", help="such as euler, midpoint, heun3, dopri5: docs/samplers.md")


def add_machine_options(command: argparse.ArgumentParser) -> None:
    """Add the options that say what it runs on."""
    machine = command.add_argument_group("machine")
    add = machine.add_argument
    add(
        "--batch_size",
        metavar="N",
        type=int,
        default=64,
        help="at most; fewer where memory is short (default: %(default)s)",
    )
    add(
        "--dtype",
        choices=SAMPLING_DTYPES,
        default="auto",
        help="of the network (default: float32; bfloat16 on CPUs with AMX, if images stay within a grey level)",
    )
    add("--device", default="auto", help="cpu, cuda, … (default: the GPU, if there is one)")
    add("--offload", action="store_true", help="keep only the network that is at work on the GPU")


def check_outputs(args: argparse.Namespace) -> None:
    """Choose the output if none is given, and check it and the animation before anything slow is imported.

    Raises:
        ValueError: if a file exists and is not to be replaced, or has an ending that no picture has.
    """
    if args.out is None:
        args.out = Path(OUT).stem if args.separate else OUT
        if not args.overwrite:
            args.out = numbered(args.out)
    elif args.separate and Path(args.out).exists() and not Path(args.out).is_dir():
        raise ValueError(f"out={args.out!r} is no folder; choose another name")
    if not args.separate:
        check_picture("out", args.out, args.overwrite)
    if args.animate is not None:
        if Path(args.animate).suffix.lower() not in (".gif", ".webp"):
            raise ValueError(f"animate={args.animate!r} must end in .gif or .webp")
        if os.path.realpath(args.animate) == os.path.realpath(args.out):
            raise ValueError(f"animate={args.animate!r} is also the file of --out; name two files")
        if not args.overwrite:
            check_new_file("animate", args.animate, REPLACE)


def check_picture(field: str, file: str, overwrite: bool) -> None:
    """Raise ValueError if a picture cannot be written to a file, or one is there that is not to be replaced."""
    from PIL import Image

    if not overwrite:
        check_new_file(field, file, REPLACE)
    elif Path(file).is_dir():
        raise ValueError(f"{field}={file!r} is a folder; choose another name")
    if Image.registered_extensions().get(Path(file).suffix.lower()) not in Image.SAVE:
        raise ValueError(f"{field}={file!r}: images cannot be written in this format; use .png")


def numbered(name: str) -> str:
    """The name, or the first of NAME-2, NAME-3 … that does not exist."""
    path, number = Path(name), 1
    while path.exists():
        number += 1
        path = Path(f"{Path(name).stem}-{number}{Path(name).suffix}")
    return str(path)


def run(args: argparse.Namespace) -> None:
    """Draw images from a pipeline folder into one picture, one class per row, or into a file for each.

    Raises:
        ValueError: naming what cannot be used.
    """
    check_outputs(args)
    check_pipeline_name(args.folder)
    check_device("device", args.device)
    check_count("images_per_class", args.images_per_class)
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    options = sampling_options(args, seed)
    for name in ("height", "width"):
        if (pixels := getattr(args, name)) is not None:
            check_count(name, pixels)
    pipeline = load(args)
    from ..evaluation.sampling_dtype import cast_pipeline, resolve_dtype
    from ..utils.class_labels import distinct_names, labels_from_words
    from ..utils.fonts import hidden_names
    from .drawing import draw, fit_to_memory

    first = range(min(FIRST_CLASSES, pipeline.transformer.config.num_classes))
    rows = pipeline.get_label_ids(labels_from_words(args.classes, pipeline.labels) or first)
    options = options.resolve(pipeline)
    pipeline = options.configure(pipeline)
    labels = [label for label in rows for _ in range(args.images_per_class)]
    names = distinct_names(pipeline.config.id2label, rows)
    shown = names if pipeline.transformer.config.num_classes > 1 else []
    files = separate_files(args, shown, rows, seed) if args.separate else []
    options = fit_to_memory(pipeline, options, args.height, args.width)
    options = resolve_dtype([pipeline], options)  # with tiles where memory is short: the trial draws in float32 as well
    cast_pipeline(pipeline, options.dtype)
    drawn = draw(pipeline, labels, options, args.height, args.width, keep_frames=args.animate is not None)
    which = {
        "classes": dict(zip(names, rows, strict=False)),
        "images_per_class": args.images_per_class,
        "seed": seed,
        "height": args.height,
        "width": args.width,
    }
    write(args, drawn, shown, files, describe(args, pipeline, options, which))
    classes = f" of {', '.join(shown)}" if shown else ""
    print(printable(f"{counted(len(labels), 'image')}{classes}, seed {seed}, in {args.out}"))
    if not args.separate and (hidden := hidden_names(shown)):
        text = f"no font here has the characters of {', '.join(hidden)}: their rows are numbered, from the top; for "
        print(printable(f"{text}their names, install a font such as Noto Sans CJK"))
    if args.animate is not None:
        print(printable(f"the way from noise to them in {args.animate}"))


def sampling_options(args: argparse.Namespace, seed: int) -> "SamplingOptions":
    """The options of `add_sampling_options` and the batch size, checked as far as no pipeline is needed."""
    from ..evaluation.sampling_options import SamplingOptions

    options = SamplingOptions(
        seed=seed,
        batch_size=args.batch_size,
        guidance_scale=args.guidance_scale,
        guidance_interval=tuple(args.guidance_interval),
        num_inference_steps=args.num_inference_steps,
        sampler=args.sampler,
        solver=args.solver,
        dtype=args.dtype,
    )
    options.check()
    return options


def load(args: argparse.Namespace) -> "SiTPipeline":
    """Load the pipeline onto the device, in float32 unless another dtype is named.

    Raises:
        ValueError: if the device or the folder cannot be used.
    """
    import diffusers
    import torch

    from ..pipelines.pipeline_sit import SiTPipeline
    from ..sharing.folder import reading_folder, weights_variant
    from ..utils.environment import pick_device

    device = pick_device(args.device)
    if args.offload and device.type == "cpu":
        raise ValueError("offload: the device is the CPU already; leave --offload out, or name a GPU with --device")
    with reading_folder(args.folder):
        # diffusers has renamed this option: it warns of the old name, and of a cast after loading.
        name = "dtype" if hasattr(diffusers.utils, "_resolve_dtype") else "torch_dtype"
        options = {
            "variant": weights_variant(args.folder),
            name: torch.float32 if args.dtype == "auto" else getattr(torch, args.dtype),
        }
        pipeline = SiTPipeline.from_pretrained(args.folder, **options)
    if args.offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def describe(
    args: argparse.Namespace, pipeline: "SiTPipeline", options: "SamplingOptions", drawn: dict[str, Any]
) -> dict[str, Any]:
    """How the images were made, for the picture's text; `drawn` says which images."""
    from ..utils.environment import package_versions

    scheduler = pipeline.scheduler
    return {
        "pipeline": args.folder,
        **drawn,
        "scheduler": type(scheduler).__name__,
        "solver": scheduler.config.get("solver"),
        "num_inference_steps": options.num_inference_steps,
        "guidance_scale": options.guidance_scale,
        "guidance_interval": list(options.guidance_interval),
        "dtype": options.dtype,
        "command": shlex.join(["sit-atconv", *sys.argv[1:]]),
        "versions": package_versions(),
    }


def write(
    args: argparse.Namespace, drawn: "Drawn", names: list[str], files: list[Path], settings: dict[str, Any]
) -> None:
    """Write the picture, or the images one by one to `files`, and the animation."""
    from ..utils.image_grid import animate, grid_picture, save_grid

    columns = args.images_per_class
    if args.separate:
        write_files(drawn.images, files, settings)
    else:
        save_grid(drawn.images, args.out, columns, MIN_TILE, names, settings)
    if args.animate is not None:
        animate([grid_picture(frame, columns, MIN_TILE, names) for frame in drawn.frames], args.animate)


def separate_files(args: argparse.Namespace, names: list[str], rows: list[int], seed: int) -> list[Path]:
    """The file of each image: CLASS-seedN-I.png, of which I counts the images of the class.

    If two classes are alike in the characters of file names, all names contain the ids of the classes.

    Raises:
        ValueError: if one exists and is not to be replaced, which is known before anything is drawn.
    """
    from ..utils.text import file_name_part

    labels = dict(zip(names, rows, strict=True)) if names else {}
    parts = {name: file_name_part(name) for name in names} or {"": "image"}
    if len({part.lower() for part in parts.values()}) < len(parts):  # some file systems do not tell A from a
        parts = {name: f"{part}-{labels[name]}" for name, part in parts.items()}
    places: Counter[str] = Counter()
    files, digits = [], len(str(args.images_per_class * max(Counter(names).values(), default=1)))
    for name in names or [""]:
        for i in range(places[name], places[name] + args.images_per_class):
            files.append(Path(args.out) / f"{parts[name]}-seed{seed}-{i:0{digits}d}.png")
        places[name] += args.images_per_class
    if not args.overwrite:
        for file in files:
            check_new_file("out", file, REPLACE)
    return files


def write_files(images: "torch.Tensor", files: list[Path], settings: dict[str, Any]) -> None:
    """Write each image to its file, with its position among the settings."""
    from diffusers.image_processor import VaeImageProcessor

    from ..utils.image_grid import save_picture

    pictures = VaeImageProcessor.numpy_to_pil(images.permute(0, 2, 3, 1).float().numpy())
    for number, (picture, file) in enumerate(zip(pictures, files, strict=True)):
        save_picture(picture, file, {**settings, "number": number})
