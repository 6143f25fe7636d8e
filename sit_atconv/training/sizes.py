"""The sizes of `sit-atconv train`: a model, an image size and a length for a folder of pictures."""

import dataclasses
from typing import Any

from .config import TrainConfig

COMMON = dict(
    horizontal_flip=True,
    learning_rate=1e-3,
    lr_warmup_steps=100,
    early_samples=True,
    sample_steps=10,
    num_workers=1,
)
# Options of train/train_sit.py. small: hours on a CPU; medium: hours on a GPU; large: a day or more on a large GPU.
SIZES: dict[str, dict[str, Any]] = {
    "small": {**COMMON, "preset": "SiT-ATConv-Nano/4", "image_size": 64, "batch_size": 32, "ema_decay": 0.998},
    "medium": {
        **COMMON,
        **dict(preset="SiT-ATConv-S/4", image_size=64, batch_size=64, learning_rate=3e-4, ema_decay=0.9995),
        **dict(num_workers=4, mixed_precision="bf16"),
    },
    "large": {
        **COMMON,
        **dict(preset="SiT-ATConv-B/2", image_size=256, batch_size=64, learning_rate=1e-4, ema_decay=0.9999),
        **dict(num_workers=8, mixed_precision="bf16", vae="stabilityai/sd-vae-ft-ema"),
    },
}
EPOCHS = 200
STEPS = {"small": (2000, 20_000), "medium": (5000, 100_000), "large": (20_000, 400_000)}  # fewest, most


def chosen_steps(size: str, num_images: int, batch_size: int) -> int:
    """The number of steps for so many images: 200 epochs, within bounds of the size, in hundreds."""
    fewest, most = STEPS[size]
    return 100 * round(min(max(EPOCHS * num_images / batch_size, fewest), most) / 100)


def fit_to_images(config: TrainConfig, size: str, num_images: int, given: set[str]) -> TrainConfig:
    """Choose the length of a run, and what follows from it, for so many images.

    Args:
        config: the configuration, with the options of the size.
        size: the size.
        num_images: number of training images.
        given: names of options that the user has set, which stay as they are.
    """
    batch_size = config.batch_size if "batch_size" in given else min(config.batch_size, num_images)
    steps = config.max_steps if "max_steps" in given else chosen_steps(size, num_images, batch_size)
    every = max(1, steps // 10)
    chosen: dict[str, Any] = dict(batch_size=batch_size, max_steps=steps, sample_every=every, checkpoint_every=every)
    return dataclasses.replace(config, **{name: value for name, value in chosen.items() if name not in given})
