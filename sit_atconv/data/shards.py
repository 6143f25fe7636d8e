"""WebDataset shards: tar files in which the files of one sample have one name and follow one another.

    n01440764_36.jpg  n01440764_36.cls  n01440764_39.jpg  n01440764_39.cls …

Each shard is read through once to find its members; this index is kept in the user's cache. From then on, a sample is
read with one request for a range of bytes, so that the order of training does not depend on the number of workers or
processes, and a run can resume anywhere. Shards on a mounted file system are read directly, others (https://, s3://,
gs://, …) through fsspec.
"""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
from tqdm.auto import tqdm

from ..utils.bounded_text import load_json
from ..utils.text import counted, one_line
from .base import EncodedDataset, cached_index, check_image_size, class_names, hash_of, parse_number, whole_number
from .decode import IMAGE_EXTENSIONS, BrokenImageError
from .scan import WITHOUT_ENDING

MAX_LABEL_BYTES = 65536
THREADS = 16  # that index shards at the same time
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardDataset(EncodedDataset):
    """Images in tar shards, in the layout of WebDataset.

    Args:
        source: a tar file, a folder of tar files, or a pattern such as shards/train-*.tar or
            https://host/train-{000..145}.tar.
        image_size: side S of the images in pixels.
        image: extension of the images, such as "jpg". Only needed if samples have several images.
        label: extension of the files with the class (a number or a name), or "json:KEY" for an entry of a JSON file, or
            "none" to train without classes. If None, the extension is "cls", and samples without it have no classes.
        mix: how many shards are shuffled together. If None, all of them, which is best for training. With fewer, all
            processes read from the same few shards for a while, which suits slow disks and caches.

    Raises:
        ValueError: if no shard is found, if a shard cannot be read, or if only some samples have a label.
    """

    def __init__(
        self,
        source: str,
        image_size: int | None,
        image: str | None = None,
        label: str | None = None,
        mix: str | None = None,
    ):
        self.source = source
        self.image_size = check_image_size(f"data={source!r}", image_size)
        self.shards = expand_shards(source)
        self.name = re.sub(r"[^\w.]*(\{[^}]*\}|\*|\?|\d+)*\.tar$", "", PurePosixPath(source).name) or "shards"
        self.mix = len(self.shards) if mix is None else max(1, parse_number(f"data={source!r}: mix", mix))
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(lambda shard: read_index(source, shard, image, label), self.shards)
            indices = list(tqdm(found, "reading shards", len(self.shards), leave=False, disable=None))
        sizes = [len(index["names"]) for index in indices]
        self._left_out = [f".{extension}" for index in indices for extension in index["left_out"]]
        if not sum(sizes):
            raise ValueError(
                f"data={source!r}: the shards hold no images ({', '.join(IMAGE_EXTENSIONS)}); for another extension, "
                f"add '?image=EXTENSION' ({len(self._left_out)} samples without: {count_endings(self._left_out)})"
            )
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self._names = [name for index in indices for name in index["names"]]
        self._places = np.array([place for index in indices for place in index["places"]])  # (len, 2): offset, bytes
        self._bytes = [index["stamp"][0] for index in indices]
        self.classes, self.labels = self._read_classes([value for index in indices for value in index["labels"]], label)

    def _read_classes(self, values: list, label: str | None) -> tuple[list[str], np.ndarray]:
        """Return class names and ids from the labels of all samples, or none if no sample has a label."""
        field = f"data={self.source!r}"
        if all(value is None for value in values):
            if label not in (None, "none"):
                raise ValueError(f"{field}: no sample has a label {label!r}; name another one, or add '?label=none'")
            return [], np.zeros(len(values), np.int64)
        if None in values:
            unlabelled = self.origin(values.index(None))
            raise ValueError(f"{field}: {unlabelled} has no label, but others have one; add it, or add '?label=none'")
        return class_names(field, values)

    @property
    def notes(self) -> list[str]:
        if not self._left_out:
            return super().notes
        count = len(self._left_out)
        what = f"{counted(count, 'sample')} without an image left out: {count_endings(self._left_out)}"
        return [what, *super().notes]

    def encoded(self, index: int) -> bytes:
        offset, size = map(int, self._places[index])
        filesystem, path = fsspec.core.url_to_fs(self.shards[self._shard_of[index]])
        try:
            return filesystem.cat_file(path, start=offset, end=offset + size)
        except OSError as error:
            raise BrokenImageError(f"{self.origin(index)} cannot be read: {error}") from error

    def origin(self, index: int) -> str:
        return f"{self._names[index]} in {self.shards[self._shard_of[index]]}"

    def fingerprint(self) -> str:
        sizes = [[PurePosixPath(shard).name, size] for shard, size in zip(self.shards, self._bytes, strict=True)]
        return hash_of(super().fingerprint(), sizes, self._names, self._places)

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        if self.mix >= len(self.shards):
            return generator.permutation(len(self))
        starts = np.searchsorted(self._shard_of, np.arange(len(self.shards) + 1))
        shards = generator.permutation(len(self.shards))
        groups = [shards[i : i + self.mix] for i in range(0, len(shards), self.mix)]
        parts = [np.concatenate([np.arange(starts[i], starts[i + 1]) for i in group]) for group in groups]
        return np.concatenate([generator.permutation(part) for part in parts])


def count_endings(names: list[str]) -> str:
    """Count the last endings of names, such as "18 .heic, 2 without ending"."""
    counts = Counter(f".{name.rpartition('.')[2]}" if name.strip(".") else WITHOUT_ENDING for name in names)
    return one_line(", ".join(f"{count} {ending}" for ending, count in counts.most_common(8)))


def expand_shards(source: str) -> list[str]:
    """Return the shards of a file, a folder, or a pattern with * or {000..145}, in order.

    Raises:
        ValueError: if there are none, or if one is compressed, because then it cannot be read from the middle.
    """
    match = BRACES.search(source)
    if match:
        first, last = match.groups()
        numbers = [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
        return [shard for n in numbers for shard in expand_shards(source[: match.start()] + n + source[match.end() :])]
    if source.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise ValueError(f"data={source!r}: compressed shards cannot be read from the middle; unpack them to .tar")
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
        if "*" in source:
            found = sorted(filesystem.glob(path))
        elif "://" not in source and filesystem.isdir(path):
            found = sorted(filesystem.glob(f"{path}/*.tar"))
        else:
            return [source]
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"data={source!r} cannot be opened: {error}") from error
    if not found:
        raise ValueError(f"data={source!r}: there are no shards; correct the pattern or the folder")
    return [filesystem.unstrip_protocol(file) if "://" in source else file for file in found]


def read_index(source: str, shard: str, image: str | None, label: str | None) -> dict:
    """Return the index of a shard from the cache or from the shard, and its stamp: (bytes, time or version).

    Raises:
        ValueError: if the shard cannot be read.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(shard)
        info = filesystem.info(path)
        stamp = [info["size"], str(info.get("mtime") or info.get("ETag") or info.get("LastModified") or "")]
        if info.get("type", "file") != "file":
            raise ValueError("it is not a regular file, but a folder, pipe, socket or device; name a file")
        key = json.dumps(["first dot", filesystem.unstrip_protocol(path), stamp, image, label])
        index = cached_index(key, lambda: index_shard(filesystem, path, image, label))
    except (OSError, ImportError, tarfile.TarError, ValueError) as error:
        raise ValueError(f"data={source!r}: shard {shard} cannot be read: {error}") from error
    return index | {"stamp": stamp}


def index_shard(filesystem: fsspec.AbstractFileSystem, path: str, image: str | None, label: str | None) -> dict:
    """Return the names, places (offset, bytes) and labels of the samples in a shard, from the headers of its members.

    As in WebDataset, the first dot of a file name ends the name of the sample: scan.v2.png belongs to the sample
    "scan", which may also hold scan.v2.cls or scan.cls.

    Raises:
        ValueError: if a sample has several images, a label cannot be read, or the shard is truncated.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}  # name -> extension -> member
    with filesystem.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as members:
        for member in members:
            folder, _, file = member.name.rpartition("/")
            stem, _, extension = file.partition(".")
            if not member.isreg() or not stem:  # a folder or a link; a hidden file
                continue
            sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
            extension = extension.lower()
            if extension in sample and f".{extension}".endswith(IMAGE_EXTENSIONS):
                raise ValueError(f"it holds several images called {member.name}; rename them")
            sample[extension] = member
        # tarfile takes a truncated header for the end of the archive, but a complete archive ends with empty blocks.
        opened.seek(members.offset)
        if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("it is truncated")
        index: dict[str, list] = {"names": [], "places": [], "labels": [], "left_out": []}
        for name, files in samples.items():
            if (found := find_image(name, files, image)) is None:
                index["left_out"].append(max(files))
                continue
            index["names"].append(name)
            index["places"].append([files[found].offset_data, files[found].size])
            index["labels"].append(find_label(members, files, found, label))
    return index


def find_image(name: str, files: Collection[str], image: str | None) -> str | None:
    """Return the extension of a sample's image among those of its files; None if there is none.

    Args:
        name: name of the sample, for the message.
        files: the extensions, such as "png" and "v2.cls".
        image: the extension that the user asked for, or its end.

    Raises:
        ValueError: if the sample has several images.
    """
    if image in files:
        return image
    endings = IMAGE_EXTENSIONS if image is None else (f".{image}",)
    images = [extension for extension in files if f".{extension}".endswith(endings)]
    if len(images) > 1:
        raise ValueError(
            f"sample {name} has several images ({', '.join(images)}), since the first dot ends the name of a sample; "
            f"name one extension: '?image={images[0]}', or rename the files"
        )
    return images[0] if images else None


def find_label(members: tarfile.TarFile, files: Mapping[str, tarfile.TarInfo], image: str, label: str | None) -> Any:
    """Return the label of a sample: of v2.cls for the image v2.png, or else of cls. None if it has none.

    Args:
        members: the shard.
        files: the files of the sample, by extension.
        image: extension of the image.
        label: extension of the label, "json:KEY", "none", or None for "cls".
    """
    wanted, _, key = (label or "cls").partition(":")
    if wanted == "none":
        return None
    beside = f"{image.rpartition('.')[0]}.{wanted}".lstrip(".")
    others = [extension for extension in files if extension.endswith(f".{wanted}")]
    for extension in (beside, wanted, *(others if len(others) == 1 else [])):
        if extension in files:
            return read_label(members, files[extension], key)
    return None


def read_label(members: tarfile.TarFile, member: tarfile.TarInfo, key: str = "") -> int | str:
    """Read a class from a label file: a number, a name, or the entry `key` of a JSON object.

    Raises:
        ValueError: if the label cannot be read; the message names the file.
    """
    if member.size > MAX_LABEL_BYTES:
        raise ValueError(f"the label {member.name} has {member.size} bytes, more than {MAX_LABEL_BYTES}")
    opened = members.extractfile(member)
    assert opened is not None  # it is None only for what is not a regular file
    try:
        value = opened.read().decode().strip()
        if key:
            value = load_json(value, member.name)[key]
        number = whole_number(str(value))
        return str(value) if number is None else number
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the label {member.name} cannot be read: {error!r}") from error
