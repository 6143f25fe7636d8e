"""Encode images with a VAE once, so that training does not have to do it in every epoch.

    accelerate launch train/encode_latents.py --data PHOTOS --image_size 256 --vae stabilityai/sd-vae-ft-ema \
        --output_dir PHOTOS-latents --flip true
    accelerate launch train/train_sit.py --config train/configs/folder_latents.yaml --data PHOTOS-latents

The mean and standard deviation of the posterior are stored, so that each epoch draws new samples from it, and with
--targets also the features of an encoder, for training with --repa. Processes
divide the shards among themselves. If they are interrupted, the same command encodes the shards that are missing.
"""

import sys

from sit_atconv.utils.commands import INTERRUPTED, is_spokesman
from sit_atconv.utils.option_parser import OptionParser
from sit_atconv.utils.text import printable


def build_parser() -> OptionParser:
    """The options are the arguments of `encode_latents`, with their defaults and descriptions."""
    parser = OptionParser(
        prog="encode_latents.py",
        description=__doc__.splitlines()[0],
        usage="%(prog)s --data DATA --vae VAE --output_dir FOLDER [--OPTION VALUE ...]",
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_function_options("sit_atconv.training.encode", "encode_latents")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. An error ends it with one line and exit code 2."""
    try:
        options = build_parser().parse_options(sys.argv[1:] if arguments is None else arguments)
        options.pop("config")
        from sit_atconv.training.encode import encode_latents  # only now, since this takes seconds to import

        encode_latents(**options)
    except (ValueError, OSError) as error:
        # Every process finds the same mistake, and one reports it. A broken image or a full disk may concern only one.
        if is_spokesman() or isinstance(error, OSError) or getattr(error, "concerns_one_process", False):
            print(f"encode_latents.py: error: {printable(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if is_spokesman():
            print("encode_latents.py: interrupted; the same command encodes what is missing", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
