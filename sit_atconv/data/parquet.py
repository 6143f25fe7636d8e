"""Images of Hugging Face data sets, by name or in local parquet files, read with the `datasets` library."""

from pathlib import Path
from typing import Any

import numpy as np

from .base import EncodedDataset, check_image_size, class_names, hash_of
from .decode import BrokenImageError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls", "target")


class HuggingFaceDataset(EncodedDataset):
    """A Hugging Face data set with a column of images and, optionally, a column of labels.

    Give either `name` or `files`.

    Args:
        source: the string that `open_dataset` was given, for messages and reports.
        name: name of a data set on the Hub, or a local folder that `datasets.load_dataset` understands.
        image_size: side S of the images in pixels.
        files: local parquet files.
        config: as in `datasets.load_dataset`.
        split: as in `datasets.load_dataset`.
        revision: as in `datasets.load_dataset`.
        image: name of the column with the images. If None, it is found by its type, otherwise by its name.
        label: name of the column with the labels, found in the same way if None; "none" to train without classes.

    Raises:
        ValueError: if the data set cannot be loaded, or if a column is missing or ambiguous.
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
        self.source = source
        self.image_size = check_image_size(f"data={source!r}", image_size)
        self._folder = Path(name) if name is not None and Path(name).is_dir() else None
        if name is not None:
            self.name = Path(name).name
            data = load_quietly(source, name, config, split=split, revision=revision)
        else:
            assert files
            self.name = files[0].parent.name if len(files) > 1 else files[0].stem
            data = load_quietly(source, "parquet", data_files=[str(file) for file in files], split="train")
        if not len(data):
            raise ValueError(f"data={source!r} holds no rows; give another split or other files")
        self._column = self._choose_column("image", image, data, datasets.Image, IMAGE_COLUMNS)
        if isinstance(data.features[self._column], datasets.Image):
            data = data.cast_column(self._column, datasets.Image(decode=False))
        self._data = data.select_columns([self._column])
        self.classes, self.labels = self._read_labels(data, label)

    def _read_labels(self, data: Any, label: str | None) -> tuple[list[str], np.ndarray]:
        """Return class names and the class id of each row."""
        import datasets

        found = find_columns(data, datasets.ClassLabel, LABEL_COLUMNS)
        if label == "none" or (label is None and not found):
            return [], np.zeros(len(data), np.int64)
        column = self._choose_column("label", label, data, datasets.ClassLabel, LABEL_COLUMNS)
        names = getattr(data.features[column], "names", None)
        return class_names(f"data={self.source!r}: column {column!r}", data[column][:], names)

    def _choose_column(self, what: str, wanted: str | None, data: Any, kind: type, usual: tuple[str, ...]) -> str:
        """Return the column `wanted` by the user or, if None, the only one that `find_columns` finds."""
        columns = ", ".join(data.features)
        if wanted is not None:
            if wanted not in data.features:
                raise ValueError(f"data={self.source!r}: there is no column {wanted!r}; there are: {columns}")
            return wanted
        found = find_columns(data, kind, usual)
        if len(found) != 1:
            raise ValueError(
                f"data={self.source!r}: which column is the {what}? Add '?{what}=COLUMN'; there are: {columns}"
            )
        return found[0]

    def encoded(self, index: int) -> bytes:
        value = self._data[int(index)][self._column]
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            value = data
            if data is None and isinstance(path, str) and Path(path).is_file():
                value = Path(path).read_bytes()
        if not isinstance(value, bytes):
            raise BrokenImageError(f"{self.origin(index)} holds no encoded image")
        return value

    def origin(self, index: int) -> str:
        return f"row {index} of {self.source}"

    def check_output(self, field: str, folder: Path) -> None:
        if self._folder is not None and folder.resolve().is_relative_to(self._folder.resolve()):
            raise ValueError(
                f"{field}={str(folder)!r} lies inside data={self.source!r}, whose files are found at any depth; name a "
                "folder outside"
            )

    def fingerprint(self) -> str:
        table = self._data.data
        return hash_of(super().fingerprint(), len(self), table.nbytes)


def find_columns(data: Any, kind: type, usual: tuple[str, ...]) -> list[str]:
    """Return the columns of this type or, if there are none, those with usual names."""
    typed = [name for name, feature in data.features.items() if isinstance(feature, kind)]
    return typed or [name for name in usual if name in data.features]


def load_quietly(source: str, *arguments, **options) -> Any:
    """Call `datasets.load_dataset` without progress bars; raise ValueError with the first line of its error."""
    import datasets

    bars = datasets.utils.logging.is_progress_bar_enabled()
    try:
        datasets.disable_progress_bars()
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:  # the libraries underneath raise all kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"data={source!r} cannot be loaded: {reason}") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
