"""Train AttNet, or another model of timm, to classify images.

    python train/train_attnet.py                             # one process: handwritten digits, 3 minutes on 2 cores
    python train/train_attnet.py --config train/configs/attnet_cifar10.yaml --data CIFAR10/train.parquet
    accelerate launch --num_processes 8 train/train_attnet.py --config train/configs/attnet_t2.yaml --data TRAIN …
    … --model timm:convnext_atto                             # another model of timm
    … --dry_run                                              # does everything fit?
    … --resume auto                                          # continue where it was stopped

The loop is `train` in sit_atconv/training/loop.py, as for SiT. docs/attnet.md describes what a run leaves.
"""

import sys

from sit_atconv.classification.config import GROUPS, ClassifierConfig
from sit_atconv.training.command_line import parse_config, run_training


def parse_arguments(arguments: list[str] | None = None) -> ClassifierConfig:
    """Parse the command line; see `parse_config`."""
    return parse_config(ClassifierConfig, GROUPS, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake ends with a one-line message and exit code 2, a requested stop with 143."""
    if code := run_training(lambda: parse_arguments(arguments), "train_attnet.py"):
        sys.exit(code)


if __name__ == "__main__":
    main()
