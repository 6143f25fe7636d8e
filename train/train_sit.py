"""Train SiT, with ATConv or self-attention, on images.

    python train/train_sit.py                                # one process: handwritten digits, 5 minutes on 2 cores
    python train/train_sit.py --mixer attention              # the baseline
    python train/train_sit.py --config train/configs/folder_pixels.yaml --data PHOTOS
    python train/train_sit.py --config train/configs/folder_latents.yaml --data PHOTOS-latents
    accelerate launch --num_processes 8 train/train_sit.py … # several GPUs
    … --dry_run                                              # does everything fit?
    … --resume auto                                          # continue where it was stopped

The loop is `train` in sit_atconv/training/loop.py. docs/training.md describes what a run writes and what it survives.
"""

import sys

from sit_atconv.training.command_line import parse_arguments, run_training


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake ends with a one-line message and exit code 2, a requested stop with 143."""
    if code := run_training(lambda: parse_arguments(arguments), "train_sit.py"):
        sys.exit(code)


if __name__ == "__main__":
    main()
