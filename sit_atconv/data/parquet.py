"""Images of Hugging Face data sets, by name or as local parquet files, read through the `datasets` library."""

from pathlib import Path

import numpy as np

from .base import EncodedDataset, check_image_size, class_names, hash_of
from .decode import BrokenImageError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")


class HuggingFaceDataset(EncodedDataset):
    """A data set with a column of images and, maybe, one of labels.

    Args:
        source: for messages and reports.
        name: of a data set on the Hub or a local folder that `datasets.load_dataset` understands; None for `files`.
        image_size: side S.
        files: local parquet files, in place of a name.
        config, split, revision: as in `datasets.load_dataset`; the split is "train" where none is given.
        image, label: column names; found by their type or usual names where None. "none" takes no label.

    Raises:
        ValueError: where the data set cannot be loaded, or its columns not be told.
    """

    def __init__(
        self,
        source: str,
        name: str | None,
        image_size: int | None,
        files: list[Path] | None = None,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        image: str | None = None,
        label: str | None = None,
    ):
        try:
            import datasets
        except ImportError as error:
            raise ValueError(
                f"data={source!r} needs the datasets library: pip install 'sit-atconv[datasets]'"
            ) from error
        check_image_size(f"data={source!r}", image_size)
        bars = datasets.utils.logging.is_progress_bar_enabled()
        try:
            datasets.disable_progress_bars()
            if files is not None:
                paths = [str(file) for file in files]
                data = datasets.load_dataset("parquet", data_files=paths, split="train")
            else:
                data = datasets.load_dataset(name, config, split=split, revision=revision)
        except Exception as error:  # of many libraries underneath
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"data={source!r} cannot be loaded: {reason}") from error
        finally:
            if bars:
                datasets.enable_progress_bars()
        if not len(data):
            raise ValueError(f"data={source!r} holds no rows")
        self.source = source
        self.name = Path(name or (files[0].parent if len(files) > 1 else files[0].stem)).name
        self.image_size = image_size
        self._column = self._find_image_column(data, datasets, image)
        label = self._find_label_column(data, datasets, label)
        if isinstance(data.features[self._column], datasets.Image):
            data = data.cast_column(self._column, datasets.Image(decode=False))
        self._data = data.select_columns([self._column])
        if label is None:
            self.classes, self.labels = [], np.zeros(len(data), np.int64)
        else:
            names = getattr(data.features[label], "names", None)
            self.classes, self.labels = class_names(f"data={source!r}: column {label!r}", data[label][:], names)

    def _find_image_column(self, data, datasets, wanted: str | None) -> str:
        typed = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
        named = [name for name in IMAGE_COLUMNS if name in data.features]
        return self._choose("image", wanted, data, typed or named)

    def _find_label_column(self, data, datasets, wanted: str | None) -> str | None:
        typed = [name for name, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
        named = [name for name in LABEL_COLUMNS if name in data.features]
        found = typed or named
        if wanted == "none" or (wanted is None and not found):
            return None
        return self._choose("label", wanted, data, found)

    def _choose(self, what: str, wanted: str | None, data, found: list[str]) -> str:
        columns = ", ".join(data.features)
        if wanted is not None:
            if wanted not in data.features:
                raise ValueError(f"data={self.source!r}: there is no column {wanted!r}; there are: {columns}")
            return wanted
        if len(found) != 1:
            raise ValueError(
                f"data={self.source!r}: which column is the {what}? Add '?{what}=COLUMN'; there are: {columns}"
            )
        return found[0]

    def encoded(self, index: int) -> bytes:
        value = self._data[int(index)][self._column]
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            value = Path(path).read_bytes() if data is None and path and Path(path).is_file() else data
        if not isinstance(value, bytes):
            raise BrokenImageError(f"{self.origin(index)} holds no encoded image")
        return value

    def origin(self, index: int) -> str:
        return f"row {index} of {self.source}"

    def fingerprint(self) -> str:
        table = self._data.data
        return hash_of(super().fingerprint(), len(self), table.nbytes)
