"""Image data sets: from one string to images, and the order and randomness in which training sees them."""

from ..utils.source_names import source_name
from .base import EncodedDataset, ImageDataset
from .broken import BROKEN_IMAGES_FILE, BrokenImages, too_many_broken
from .decode import IMAGE_EXTENSIONS, BrokenImageError, open_image, read_image
from .digit_scenes import DigitScene, digit_scene
from .digits import DigitsDataset
from .folder import FolderDataset
from .latents import LatentsDataset
from .lmdb_images import LMDBDataset
from .order import TrainingOrder
from .parquet import HuggingFaceDataset
from .scan import scan_folder
from .shards import ShardDataset
from .sources import is_image_folder, open_dataset
from .streams import Stream, draw, sample_generator
from .subset import Subset, hold_out
from .training_view import TrainingView, View

__all__ = [
    "BROKEN_IMAGES_FILE",
    "IMAGE_EXTENSIONS",
    "BrokenImageError",
    "BrokenImages",
    "DigitScene",
    "DigitsDataset",
    "EncodedDataset",
    "FolderDataset",
    "HuggingFaceDataset",
    "ImageDataset",
    "LMDBDataset",
    "LatentsDataset",
    "ShardDataset",
    "Stream",
    "Subset",
    "TrainingOrder",
    "TrainingView",
    "View",
    "digit_scene",
    "draw",
    "hold_out",
    "is_image_folder",
    "open_dataset",
    "open_image",
    "read_image",
    "sample_generator",
    "scan_folder",
    "source_name",
    "too_many_broken",
]
