"""The options of validation losses, which are read before PyTorch is imported; validation_loss.py obeys them."""

from dataclasses import dataclass

from ..utils.checks import check_count, check_seed


@dataclass(frozen=True)
class ValidationOptions:
    """The samples at which the velocities of models are compared with the true ones.

    Args:
        data: held-out images, as for train/train_sit.py: a folder, a parquet file, hf:NAME…
        num_images: number of images, drawn without replacement; all of them if there are fewer.
        num_times: number of times at which an image is met, each with noise of its own.
        seed: seed of images, noise and times.
        batch_size: samples per forward pass.

    Raises:
        ValueError: if a number is out of range.
    """

    data: str
    num_images: int = 1000
    num_times: int = 4
    seed: int = 0
    batch_size: int = 100

    def __post_init__(self) -> None:
        for field in ("num_images", "num_times", "batch_size"):
            check_count(field, getattr(self, field))
        check_seed("seed", self.seed)
