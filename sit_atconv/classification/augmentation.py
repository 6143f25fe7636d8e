"""Random augmentation as a function of (seed, sample): timm's transforms, and its mixup, with their own numbers.

They draw from the global generators of Python, NumPy and PyTorch, which are therefore seeded for each call, and put
back afterwards.

B images, C channels, S side; K classes.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from timm.data import Mixup, create_transform
from timm.data.mixup import mixup_target
from torchvision.transforms import Compose

from ..data import Stream, sample_generator
from .config import ClassifierConfig

Mean = tuple[float, ...]


@contextmanager
def seeded(seed: int, stream: Stream, position: int, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Seed all global random numbers with (seed, stream, position) inside this context.

    Args:
        seed: seed of the run.
        stream: what the random numbers are used for.
        position: position of the sample in the run.
        devices: GPUs whose generators are seeded besides that of the CPU.
    """
    words = sample_generator(seed, stream, position).integers(2**32, size=3).tolist()
    python, numpy = random.getstate(), np.random.get_state()
    generators = [torch.default_generator, *(torch.cuda.default_generators[device.index or 0] for device in devices)]
    states = [generator.get_state() for generator in generators]
    try:
        random.seed(words[0])
        np.random.seed(words[1])
        for generator in generators:  # torch.manual_seed takes milliseconds where CUDA is not started yet
            generator.manual_seed(words[2])
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def training_transform(config: ClassifierConfig, mean: Mean, std: Mean) -> Compose:
    """timm's random transform from RGB pictures to normalized float32 (3, S, S).

    Raises:
        ValueError: if timm does not know the policy of `auto_augment`.
    """
    try:
        return create_transform(
            config.image_size,
            is_training=True,
            scale=tuple(config.crop_scale),
            ratio=tuple(config.crop_ratio),
            hflip=config.horizontal_flip,
            color_jitter=config.color_jitter or None,
            auto_augment=config.auto_augment,
            interpolation=config.interpolation,
            mean=mean,
            std=std,
            re_prob=config.random_erase,
            re_mode="pixel",
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"auto_augment={config.auto_augment!r} is no policy that timm knows: {error}") from error


def evaluation_transform(size: int, crop_pct: float, mean: Mean, std: Mean, interpolation: str = "bicubic") -> Compose:
    """timm's transform from RGB pictures to normalized float32 (3, S, S), without anything random."""
    return create_transform(size, crop_pct=crop_pct, interpolation=interpolation, mean=mean, std=std)


class Mixing:
    """Mixup and cutmix of a batch, and the smoothing of its labels.

    Args:
        config: the configuration of the run.
        num_classes: K.

    Attributes:
        mixes: whether images are mixed.
    """

    def __init__(self, config: ClassifierConfig, num_classes: int):
        self.seed, self.smoothing, self.num_classes = config.seed, config.label_smoothing, num_classes
        self.mixes = (config.mixup > 0 or config.cutmix > 0) and config.mixup_prob > 0
        options = dict(prob=config.mixup_prob, switch_prob=config.mixup_switch_prob, num_classes=num_classes)
        self._mixup = (
            Mixup(config.mixup, config.cutmix, label_smoothing=self.smoothing, **options) if self.mixes else None
        )

    def __call__(self, x: torch.Tensor, labels: torch.Tensor, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix images (B, C, S, S) of the labels (B,), and return them with their targets (B, K).

        Args:
            x: the images, of an even number if they are mixed; they are overwritten.
            labels: their class ids.
            position: position of the first one in the run, on which the random numbers depend.
        """
        if self._mixup is None:
            return x, mixup_target(labels, self.num_classes, smoothing=self.smoothing)
        with seeded(self.seed, Stream.MIXUP, position):
            return self._mixup(x, labels)
