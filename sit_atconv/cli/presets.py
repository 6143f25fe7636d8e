"""`sit-atconv presets`: what the published sizes cost."""

import argparse

from ..models.costs import closed_form_macs, count_parameters, preset_config, sampling_bytes, training_bytes
from ..models.presets import PRESETS

BATCH_SIZE = 32
DRAWN = 64  # images that `sit-atconv sample` draws at a time, by default
SIZES = (256, 512)  # pixels
PIXELS_PER_LATENT = 8
NOTE = (
    "Images of 256 and 512 px as latents of 32² and 64² with 4 channels, 1,000 classes; GMACs of one forward pass.\n"
    "Memory in GB, float32, at 256 px, without that of Python and its libraries: the peak of `sit-atconv sample`\n"
    f"with Stable Diffusion's VAE, for one image and for {DRAWN} at a time; to train with a batch of {BATCH_SIZE},\n"
    "without the VAE (bf16 takes about two thirds of the activations)."
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("parts", metavar="PART", nargs="*", help="only names with these parts, such as S/2 Hybrid")


def run(args: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ValueError: if no preset has these parts in its name.
    """
    names = [name for name in PRESETS if all(part.lower() in name.lower() for part in args.parts)]
    if not names:
        raise ValueError(f"no preset has {' and '.join(args.parts)} in its name, such as SiT-ATConv-S/2")
    width = max(map(len, names))
    print(f"{'preset':{width}}  parameters  GMACs 256  GMACs 512  GB to draw 1  GB to draw {DRAWN}  GB to train")
    for name in names:
        config = preset_config(name)
        latent = SIZES[0] // PIXELS_PER_LATENT
        macs = [closed_form_macs(config, size // PIXELS_PER_LATENT, size // PIXELS_PER_LATENT) for size in SIZES]
        gigabytes = [
            number / 1e9
            for number in (
                sampling_bytes(config, latent, 1),
                sampling_bytes(config, latent, DRAWN),
                training_bytes(config, latent, BATCH_SIZE),
            )
        ]
        print(
            f"{name:{width}}  {count_parameters(config) / 1e6:8.2f} M  {macs[0] / 1e9:9.3g}  {macs[1] / 1e9:9.4g}  "
            f"{gigabytes[0]:12.2g}  {gigabytes[1]:13.2g}  {gigabytes[2]:11.2g}"
        )
    print(f"\n{NOTE}")
