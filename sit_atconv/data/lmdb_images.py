"""An LMDB of encoded images. There are several layouts, which are recognised by their keys and values:

    0, 1, … or 00000000, 00000001, …     -> image file, or a pickled (image file, class id)
    256-00000, 256-00001, …              -> image file; one prefix per size
    image-000000001 and label-000000001  -> image file; class as text
    n01440764/n01440764_36.JPEG, …       -> image file; the folder is the class
    anything else                        -> image file, without classes

Pickles are read by an unpickler that builds numbers, text, bytes and their containers, and refuses everything else, so
that they cannot run code.
"""

import io
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.pickles import check_pickle
from .base import EncodedDataset, cached_index, check_image_size, class_names, hash_of, parse_number, whole_number
from .decode import BrokenImageError
from .lmdb_file import check_whole

META_KEYS = {b"length", b"__len__", b"__keys__", b"__classes__", b"num-samples", b"num_samples"}
NUMBERED = re.compile(rb"(.*?)(\d+)", re.DOTALL)
IMAGE_FIELDS = ("image", "img", "jpg", "jpeg", "png", "data", b"image", b"img", b"data")
LABEL_FIELDS = ("label", "target", "cls", "class", b"label", b"target")


class LMDBDataset(EncodedDataset):
    """Images in an LMDB: a folder with data.mdb, or one file.

    Args:
        file: the LMDB.
        image_size: side S of the images in pixels.
        size: size of the stored images, for keys such as 256-00000. If None, the smallest one that is at least
            `image_size`, or else the largest one.
        label: "none" to train without classes.

    Raises:
        ValueError: if the LMDB cannot be opened, holds no images, or has keys or labels of an unknown kind.
    """

    def __init__(self, file: str | Path, image_size: int | None, size: str | None = None, label: str | None = None):
        field = f"data={str(file)!r}"
        try:
            import lmdb
        except ImportError as error:
            raise ValueError(f"{field} needs the lmdb library: pip install 'sit-atconv[lmdb]'") from error
        if label not in (None, "none"):
            raise ValueError(f"{field}: label={label!r} can only be 'none' for an LMDB")
        file = Path(file)
        self.source = str(file)
        self.name = file.resolve().stem
        self.image_size = check_image_size(field, image_size)
        self._file = file
        stored = file / "data.mdb" if file.is_dir() else file
        try:
            self._stored_bytes = stored.stat().st_size
            stamp = [self._stored_bytes, stored.stat().st_mtime_ns]
            key = json.dumps(["walked", str(file.resolve()), stamp, image_size, size, label])

            def build() -> dict[str, list | None]:
                check_whole(stored, field)  # before LMDB sees the file, once for each state of it
                return self._index(size, label)

            index = cached_index(key, build)
        except (OSError, lmdb.Error) as error:
            raise ValueError(f"{field} cannot be opened as an LMDB: {error}") from error
        self._keys = [key.encode("latin-1") for key in index["keys"]]
        if index["labels"] is None:
            self.classes, self.labels = [], np.zeros(len(self._keys), np.int64)
        else:
            self.classes, self.labels = class_names(field, index["labels"])

    def _index(self, size: str | None, label: str | None) -> dict[str, list | None]:
        """Return the keys of the images in order, as latin-1 text, and their labels if there are any."""
        transaction = open_transaction(self._file)
        keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        keys = [key for key in keys if key not in META_KEYS]
        if not keys:
            raise ValueError(f"data={self.source!r} holds no images")
        numbered = {key: match for key in keys if (match := NUMBERED.fullmatch(key))}
        label_keys: list[bytes] = []
        if len(numbered) == len(keys):
            groups: dict[bytes, list[bytes]] = {}
            for key, match in numbered.items():
                groups.setdefault(match[1], []).append(key)
            prefix = self._choose_prefix(groups, size)
            keys = sorted(groups[prefix], key=lambda key: int(numbered[key][2]))
            label_keys = self._find_label_keys(prefix, groups, keys) if label is None else []
        labels = self._read_labels(transaction, keys, label_keys, label)
        return {"keys": [key.decode("latin-1") for key in keys], "labels": labels}

    def _choose_prefix(self, groups: dict[bytes, list[bytes]], size: str | None) -> bytes:
        """Return the prefix of the keys that hold the images: those of one size, or those called image.

        Args:
            groups: keys that end with a number, by what stands before the number.
            size: the size that the user asked for.
        """
        sizes = {int(prefix[:-1]): prefix for prefix in groups if re.fullmatch(rb"\d+-", prefix)}
        if sizes:
            large_enough = [stored for stored in sizes if stored >= self.image_size]
            smallest = min(large_enough, default=max(sizes))
            wanted = smallest if size is None else parse_number(f"data={self.source!r}: size", size)
            if wanted not in sizes:
                raise ValueError(f"data={self.source!r}: size={size} is not stored; there are: {sorted(sizes)}")
            return sizes[wanted]
        if size is not None:
            raise ValueError(f"data={self.source!r}: its keys name no sizes; leave size={size} out")
        images = [prefix for prefix in groups if prefix.lower().startswith(b"image")] or [
            prefix for prefix in groups if not prefix.lower().startswith(b"label")
        ]
        if len(images) != 1:
            shown = ", ".join(prefix.decode("latin-1") for prefix in list(groups)[:5])
            raise ValueError(
                f"data={self.source!r}: keys have several kinds of names: {shown}; name those of the images image-0, …"
            )
        return images[0]

    def _find_label_keys(self, prefix: bytes, groups: dict[bytes, list[bytes]], keys: list[bytes]) -> list[bytes]:
        """Return the key of each image's label, such as label-0 for image-0; nothing if there are no such keys.

        Raises:
            ValueError: if only some images have a label.
        """
        stored = groups.get(prefix.replace(b"image", b"label"), [])
        if not prefix.startswith(b"image") or not stored:
            return []
        label_keys = [key.replace(b"image", b"label") for key in keys]
        if missing := set(label_keys) - set(stored):
            raise ValueError(
                f"data={self.source!r}: there is no {min(missing).decode('latin-1')}; add it, or add '?label=none'"
            )
        return label_keys

    def _read_labels(
        self, transaction: Any, keys: list[bytes], label_keys: list[bytes], label: str | None
    ) -> list | None:
        """Return the labels of the images at `keys`, from keys of their own, from pickled pairs, or from folders."""
        if label_keys:
            return [bytes(transaction.get(key)).decode("utf-8", "backslashreplace") for key in label_keys]
        _, first = self._unpack(transaction.get(keys[0]), keys[0])  # with an error for pickles that hold no images
        if label == "none":
            return None
        if first is not None:
            return [plain_label(self._unpack(transaction.get(key), key)[1]) for key in keys]
        if all(b"/" in key for key in keys):
            return [key.rpartition(b"/")[0].decode("latin-1") for key in keys]
        return None

    def _unpack(self, value: Any, key: bytes) -> tuple[bytes, Any]:
        """Return the image file and the label, or None, of a value."""
        if value is None or len(value) > self._stored_bytes:
            raise BrokenImageError(f"{self.source}, key {key.decode('latin-1')}: the LMDB is damaged; copy it again")
        if value[:1] != b"\x80":  # a pickle's first byte; no image file starts with it
            return bytes(value), None
        try:
            check_pickle(bytes(value), "the value")
            content = PlainUnpickler(io.BytesIO(value)).load()
        except Exception as error:
            raise BrokenImageError(f"{self.source}, key {key.decode('latin-1')}: {error}") from error
        if isinstance(content, dict):
            image = next((content[field] for field in IMAGE_FIELDS if field in content), None)
            label = next((content[field] for field in LABEL_FIELDS if field in content), None)
        elif isinstance(content, (tuple, list)) and 1 <= len(content) <= 2:
            image, label = content[0], content[1] if len(content) == 2 else None
        else:
            image, label = content, None
        if not isinstance(image, (bytes, bytearray)):
            raise BrokenImageError(
                f"{self.source}, key {key.decode('latin-1')}: the pickle holds no encoded image and label"
            )
        return bytes(image), label

    def encoded(self, index: int) -> bytes:
        key = self._keys[index]
        return self._unpack(open_transaction(self._file).get(key), key)[0]

    def origin(self, index: int) -> str:
        return f"key {self._keys[index].decode('latin-1')} of {self.source}"

    def fingerprint(self) -> str:
        keys = b"\n".join(self._keys).decode("latin-1")
        return hash_of(super().fingerprint(), keys, self._stored_bytes)


def plain_label(label: Any) -> Any:
    """Return a label of a pickle as a value that JSON can represent; what is no label becomes the name of its type."""
    if (number := whole_number(label)) is not None:
        return number
    if isinstance(label, bytes):
        return label.decode("utf-8", "backslashreplace")
    return label if label is None or isinstance(label, (str, float)) else [type(label).__name__]


_OPEN: dict[Path, tuple] = {}  # file -> (process, environment, transaction): a process may open a file only once


def open_transaction(file: Path) -> Any:
    """Return this process's read transaction on an LMDB, which stays open."""
    import lmdb

    file = file.resolve()
    process, environment, transaction = _OPEN.get(file, (None, None, None))
    if process != os.getpid():
        if environment is not None:  # opened before a fork, after which it must not be used
            environment.close()
        environment = lmdb.open(
            str(file), subdir=file.is_dir(), readonly=True, lock=False, readahead=False, max_readers=1
        )
        transaction = environment.begin(buffers=True)
        _OPEN[file] = os.getpid(), environment, transaction
    return transaction


class PlainUnpickler(pickle.Unpickler):
    """An unpickler for numbers, text, bytes, tuples, lists and dictionaries. It refuses pickles that name any code."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}; write plain (image bytes, class id) pairs")

    def persistent_load(self, identifier):
        raise pickle.UnpicklingError("the pickle refers to objects outside of it; write plain pairs")
