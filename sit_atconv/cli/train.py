"""`sit-atconv train`: a model of a folder of images, with one size to choose."""

import sys
from typing import TYPE_CHECKING

from ..utils.commands import values_of

if TYPE_CHECKING:
    from ..training.config import TrainConfig
    from ..utils.option_parser import OptionParser

PROG = "sit-atconv train"
DEFAULT_SIZE = "small"
CHOSEN = ("batch_size", "max_steps", "sample_every", "checkpoint_every")  # for the number of images, unless given


def build_parser() -> "OptionParser":
    """The parser of all options."""
    from ..training import command_line  # jsonargparse, which most commands do not need
    from ..training.sizes import SIZES

    parser = command_line.build_parser()
    parser.prog, parser.usage = PROG, "%(prog)s FOLDER [--size small|medium|large] [--OPTION VALUE ...]"
    parser.description = "Train on the images in a folder, with a sub-folder for each class or without classes."
    sizes = "small (64 px, hours on a CPU), medium (64 px, hours on a GPU), large (256 px through a VAE)"
    parser.add_argument("--size", type=str, choices=tuple(SIZES), help=f"{sizes}; sets the options below")
    return parser


def parse(arguments: list[str]) -> "TrainConfig":
    """Parse a command line; the folder may stand first, as --data.

    A size is chosen unless one is given, or a configuration file, a preset or a model to fine-tune.

    Raises:
        ValueError: for values that no run can use.
    """
    from ..training.command_line import build_config
    from ..training.config import TrainConfig
    from ..training.sizes import SIZES, fit_to_images

    if arguments and not arguments[0].startswith("-"):
        arguments = ["--data", *arguments]
    parser = build_parser()
    named = values_of("size", arguments)
    data = values_of("data", arguments)
    others = any(values_of(option, arguments) for option in ("config", "preset", "init_from"))
    size = named[-1] if named else None if others or data[-1:] in ([], ["digits"]) else DEFAULT_SIZE
    parser.set_defaults({"resume": "auto", **SIZES.get(size or "", {})})
    options = parser.parse_options(arguments, ["dry_run", "horizontal_flip", "compile", "gradient_checkpointing"])
    if not data and not values_of("config", arguments):
        raise ValueError(f"name the folder of images, as in {PROG} photos; {PROG} digits trains on the built-in digits")
    for name in ("config", "size"):
        options.pop(name)
    if options["dry_run"] and not parser.is_given("resume"):
        options["resume"] = None
    config = build_config(parser, TrainConfig, options)
    if size is None:
        return config
    from ..data import open_dataset  # only now, since this takes seconds to import

    images = len(open_dataset(config.data, config.image_size))
    return fit_to_images(config, size, images, {name for name in CHOSEN if parser.is_given(name)})


def main(arguments: list[str]) -> None:
    """Train; a mistake ends with a one-line message and exit code 2, a requested stop with 143."""
    from ..training.command_line import run_training

    if code := run_training(lambda: parse(arguments), PROG):
        sys.exit(code)
