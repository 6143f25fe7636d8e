"""An LMDB of encoded images. The layouts in use differ; they are told apart by their keys and values:

    0, 1, … or 00000000, 00000001, …    -> image file, or a pickled (image file, class id)
    256-00000, 256-00001, …             -> image file, one prefix for each size
    image-000000001 with label-000000001 -> image file; class as text
    n01440764/n01440764_36.JPEG, …      -> image file; the folder is the class
    anything else                       -> image file, without classes

Pickles are read by an unpickler that knows numbers, text, bytes and their containers, and refuses everything else, so
that none can run code.
"""

import io
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np

from .base import EncodedDataset, cached_index, check_image_size, class_names, hash_of
from .decode import BrokenImageError

META_KEYS = {b"length", b"__len__", b"__keys__", b"__classes__", b"num-samples", b"num_samples"}
NUMBERED = re.compile(rb"(.*?)(\d+)", re.DOTALL)
IMAGE_FIELDS = ("image", "img", "jpg", "jpeg", "png", "data", b"image", b"img", b"data")
LABEL_FIELDS = ("label", "target", "cls", "class", b"label", b"target")


class LMDBDataset(EncodedDataset):
    """Images in an LMDB, a folder with data.mdb or one file.

    Args:
        file: the LMDB.
        image_size: side S.
        size: of the stored images, for keys such as 256-00000; the smallest that reaches image_size where None.
        label: "none" takes no classes.

    Raises:
        ValueError: where it cannot be opened, holds no images, or its labels cannot be told.
    """

    def __init__(self, file: str | Path, image_size: int | None, size: str | None = None, label: str | None = None):
        try:
            import lmdb
        except ImportError as error:
            raise ValueError(f"data={str(file)!r} needs the lmdb library: pip install 'sit-atconv[lmdb]'") from error
        if label not in (None, "none"):
            raise ValueError(f"data={str(file)!r}: label={label!r} can only be 'none' for an LMDB")
        check_image_size(f"data={str(file)!r}", image_size)
        file = Path(file)
        self.source = str(file)
        self.name = file.resolve().stem
        self.image_size = image_size
        self._file = file
        stored = file / "data.mdb" if file.is_dir() else file
        try:
            stamp = [stored.stat().st_size, stored.stat().st_mtime_ns]
            index = cached_index(
                json.dumps([str(file.resolve()), stamp, image_size, size, label]), lambda: self._index(size, label)
            )
        except (OSError, lmdb.Error) as error:
            raise ValueError(f"data={str(file)!r} cannot be opened as an LMDB: {error}") from error
        self._stored_bytes = stamp[0]
        self._keys = [key.encode("latin-1") for key in index["keys"]]
        if index["labels"] is None:
            self.classes, self.labels = [], np.zeros(len(self._keys), np.int64)
        else:
            self.classes, self.labels = class_names(f"data={str(file)!r}", index["labels"])

    def _index(self, size: str | None, label: str | None) -> dict[str, list | None]:
        """Keys of the images in order, as latin-1 text, and their labels."""
        transaction = open_transaction(self._file)
        keys = [bytes(key) for key in transaction.cursor().iternext(values=False)]
        keys = [key for key in keys if key not in META_KEYS]
        if not keys:
            raise ValueError(f"data={self.source!r} holds no images")
        numbered = {key: match for key in keys if (match := NUMBERED.fullmatch(key))}
        label_keys = []
        if len(numbered) == len(keys):
            groups: dict[bytes, list[bytes]] = {}
            for key, match in numbered.items():
                groups.setdefault(match[1], []).append(key)
            prefix = self._choose_prefix(groups, size)
            keys = sorted(groups[prefix], key=lambda key: int(numbered[key][2]))
            twin = groups.get(prefix.replace(b"image", b"label"), [])
            if prefix.startswith(b"image"):
                label_keys = [key.replace(b"image", b"label") for key in keys]
                if not twin:
                    label_keys = []
                elif missing := set(label_keys) - set(twin):
                    raise ValueError(f"data={self.source!r}: there is no {min(missing).decode('latin-1')}")
        labels = None
        if label is None:
            if label_keys:
                labels = [bytes(transaction.get(key)).decode() for key in label_keys]
            elif self._unpack(transaction.get(keys[0]), keys[0])[1] is not None:
                labels = [self._unpack(transaction.get(key), key)[1] for key in keys]
            elif all(b"/" in key for key in keys):
                labels = [key.rpartition(b"/")[0].decode("latin-1") for key in keys]
        else:
            self._unpack(transaction.get(keys[0]), keys[0])
        return {"keys": [key.decode("latin-1") for key in keys], "labels": labels}

    def _choose_prefix(self, groups: dict[bytes, list[bytes]], size: str | None) -> bytes:
        """The keys that hold the images: those of one size, or those called image."""
        sizes = {int(prefix[:-1]): prefix for prefix in groups if re.fullmatch(rb"\d+-", prefix)}
        if sizes:
            wanted = (
                int(size)
                if size is not None
                else min((stored for stored in sizes if stored >= self.image_size), default=max(sizes))
            )
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
            raise ValueError(f"data={self.source!r}: keys have several kinds of names: {shown}")
        return images[0]

    def _unpack(self, value, key: bytes) -> tuple[bytes, int | str | None]:
        """(image file, label or None) of a value."""
        if value[:1] != b"\x80":  # a pickle's first byte; no image file starts with it
            return bytes(value), None
        try:
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


_OPEN: dict[Path, tuple] = {}  # file -> (process, environment, transaction); a process may open a file only once


def open_transaction(file: Path):
    """A read transaction of this process, kept open."""
    import lmdb

    file = file.resolve()
    process, environment, transaction = _OPEN.get(file, (None, None, None))
    if process != os.getpid():
        if environment is not None:  # from before the fork, after which it must not be used
            environment.close()
        environment = lmdb.open(
            str(file), subdir=file.is_dir(), readonly=True, lock=False, readahead=False, max_readers=1
        )
        transaction = environment.begin(buffers=True)
        _OPEN[file] = os.getpid(), environment, transaction
    return transaction


class PlainUnpickler(pickle.Unpickler):
    """Builds numbers, text, bytes, tuples, lists and dictionaries; a pickle that names any code is refused."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}; write plain (image bytes, class id) pairs")

    def persistent_load(self, identifier):
        raise pickle.UnpicklingError("the pickle refers to objects outside of it")
