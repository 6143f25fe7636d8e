"""Image data sets, from digits to shards of a cluster, and the order and randomness in which training sees them."""

from .base import DigitsDataset, EncodedDataset, FolderDataset, ImageDataset
from .decode import IMAGE_EXTENSIONS, BrokenImageError, read_image
from .latents import LatentsDataset
from .lmdb_images import LMDBDataset
from .order import (
    CLASS_DROPOUT,
    FLIP,
    NOISE,
    ORDER,
    POSTERIOR,
    SUBSTITUTE,
    TIME,
    BrokenImages,
    TrainingOrder,
    TrainingView,
    draw,
    sample_generator,
)
from .parquet import HuggingFaceDataset
from .shards import ShardDataset
from .sources import is_image_folder, open_dataset, source_name

__all__ = [
    "CLASS_DROPOUT",
    "FLIP",
    "IMAGE_EXTENSIONS",
    "NOISE",
    "ORDER",
    "POSTERIOR",
    "SUBSTITUTE",
    "TIME",
    "BrokenImageError",
    "BrokenImages",
    "DigitsDataset",
    "EncodedDataset",
    "FolderDataset",
    "HuggingFaceDataset",
    "ImageDataset",
    "LMDBDataset",
    "LatentsDataset",
    "ShardDataset",
    "TrainingOrder",
    "TrainingView",
    "draw",
    "is_image_folder",
    "open_dataset",
    "read_image",
    "sample_generator",
    "source_name",
]
