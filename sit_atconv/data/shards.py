"""WebDataset shards: tar files in which the files of one sample follow one another under one name.

    n01440764_36.jpg  n01440764_36.cls  n01440764_39.jpg  n01440764_39.cls …

Each shard is read through once, for the places of its members; the index is kept in the user's cache. From then on any
sample is one read of one range of bytes, so that training sees a pure function of (seed, position), whatever the
number of workers or processes, and can stop and resume anywhere. Shards on a mounted file system are read directly,
others (https://, s3://, gs://…) by ranges through fsspec.
"""

import functools
import json
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import fsspec
import numpy as np
from tqdm.auto import tqdm

from .base import EncodedDataset, cached_index, check_image_size, class_names, hash_of
from .decode import IMAGE_EXTENSIONS, BrokenImageError

MAX_LABEL_BYTES = 65536
THREADS = 16  # that index shards at the same time
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardDataset(EncodedDataset):
    """Images in tar shards, in the layout of WebDataset.

    Args:
        source: a tar file, a folder of them, a pattern such as shards/train-*.tar or https://host/train-{000..145}.tar.
        image_size: side S.
        image: the extension of the image, such as "jpg", where a sample has several.
        label: the extension of the file with the class (a number or a name), or "json:KEY" for an entry of a JSON file,
            or "none". Found where None: "cls"; without it, the data is unconditional.
        mix: shards that are shuffled together. All where None, which is best for training; fewer keep the reads of
            processes within the same few shards for a while, which suits disks and caches that are far away.

    Raises:
        ValueError: where no shard is found, one cannot be read, or samples are not complete.
    """

    def __init__(
        self,
        source: str,
        image_size: int | None,
        image: str | None = None,
        label: str | None = None,
        mix: int | None = None,
    ):
        check_image_size(f"data={source!r}", image_size)
        self.source = source
        self.shards = expand_shards(source)
        self.name = re.sub(r"[^\w.]*(\{[^}]*\}|\*|\?|\d+)*\.tar$", "", PurePosixPath(source).name) or "shards"
        self.image_size = image_size
        self.mix = len(self.shards) if mix is None else max(1, int(mix))
        with ThreadPoolExecutor(THREADS) as pool:
            read = functools.partial(self._index, source, image, label)
            found = list(
                tqdm(pool.map(read, self.shards), "reading shards", len(self.shards), leave=False, disable=None)
            )
        sizes = [len(index["names"]) for index in found]
        if not sum(sizes):
            raise ValueError(f"data={source!r}: the shards hold no images ({', '.join(IMAGE_EXTENSIONS)})")
        self._shard_of = np.repeat(np.arange(len(sizes)), sizes)
        self._names = [name for index in found for name in index["names"]]
        self._places = np.array([place for index in found for place in index["places"]])  # (len, 2): offset, bytes
        self._stamps = [index["stamp"] for index in found]
        values = [value for index in found for value in index["labels"]]
        if all(value is None for value in values):
            if label not in (None, "none"):
                raise ValueError(f"data={source!r}: no sample has a label {label!r}")
            self.classes, self.labels = [], np.zeros(len(values), np.int64)
        elif None in values:
            raise ValueError(f"data={source!r}: {self.origin(values.index(None))} has no label; others have one")
        else:
            self.classes, self.labels = class_names(f"data={source!r}", values)

    @staticmethod
    def _index(source: str, image: str | None, label: str | None, shard: str) -> dict:
        try:
            filesystem, path = fsspec.core.url_to_fs(shard)
            info = filesystem.info(path)
            stamp = [info["size"], str(info.get("mtime") or info.get("ETag") or info.get("LastModified") or "")]
            key = json.dumps([filesystem.unstrip_protocol(path), stamp, image, label])
            index = cached_index(key, lambda: index_shard(filesystem, path, image, label))
        except (OSError, ImportError, tarfile.TarError, ValueError) as error:
            raise ValueError(f"data={source!r}: shard {shard} cannot be read: {error}") from error
        return index | {"stamp": stamp}

    def encoded(self, index: int) -> bytes:
        offset, size = map(int, self._places[index])
        filesystem, path = fsspec.core.url_to_fs(self.shards[self._shard_of[index]])
        try:
            data = filesystem.cat_file(path, start=offset, end=offset + size)
        except OSError as error:
            raise BrokenImageError(f"{self.origin(index)} cannot be read: {error}") from error
        return data

    def origin(self, index: int) -> str:
        return f"{self._names[index]} in {self.shards[self._shard_of[index]]}"

    def fingerprint(self) -> str:
        sizes = [[PurePosixPath(shard).name, size] for shard, (size, _) in zip(self.shards, self._stamps, strict=True)]
        return hash_of(super().fingerprint(), sizes, self._names, self._places)

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        if self.mix >= len(self.shards):
            return generator.permutation(len(self))
        starts = np.searchsorted(self._shard_of, np.arange(len(self.shards) + 1))
        shards = generator.permutation(len(self.shards))
        groups = [shards[i : i + self.mix] for i in range(0, len(shards), self.mix)]
        parts = [np.concatenate([np.arange(starts[i], starts[i + 1]) for i in group]) for group in groups]
        return np.concatenate([generator.permutation(part) for part in parts])


def expand_shards(source: str) -> list[str]:
    """The shards of a folder, a pattern with * or {000..145}, or one file, in order.

    Raises:
        ValueError: where there are none, or one is compressed and cannot be read from the middle.
    """
    match = BRACES.search(source)
    if match:
        first, last = match.groups()
        width = len(first)
        numbers = [f"{i:0{width}}" for i in range(int(first), int(last) + 1)]
        return [shard for n in numbers for shard in expand_shards(source[: match.start()] + n + source[match.end() :])]
    if source.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise ValueError(f"data={source!r}: compressed shards cannot be read at any place; unpack them to .tar")
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
        raise ValueError(f"data={source!r}: there are no shards")
    return [filesystem.unstrip_protocol(file) if "://" in source else file for file in found]


def index_shard(filesystem, path: str, image: str | None, label: str | None) -> dict[str, list]:
    """Names, places (offset, bytes) and labels of the samples in one shard, from the headers of its members.

    Raises:
        ValueError: for a sample with several images, or a label that cannot be read.
    """
    label, _, key = (label or "").partition(":")
    wanted = [label] if label and label != "none" else ["cls"]
    samples: dict[str, dict] = {}
    with filesystem.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as members:
        for member in members:
            if not member.isreg():
                continue
            folder, _, file = member.name.rpartition("/")
            stem, _, extension = file.partition(".")  # the first dot divides, as in WebDataset
            if not stem:  # a hidden file
                continue
            name = f"{folder}/{stem}" if folder else stem
            extension = extension.lower()
            sample = samples.setdefault(name, {"place": None, "label": None})
            if extension == image or (image is None and f".{extension}" in IMAGE_EXTENSIONS):
                if sample["place"] is not None:
                    raise ValueError(f"sample {name} has several images; name the extension: '?image=jpg'")
                sample["place"] = [member.offset_data, member.size]
            elif label != "none" and extension in wanted:
                if member.size > MAX_LABEL_BYTES:
                    raise ValueError(f"the label {member.name} has {member.size} bytes")
                sample["label"] = parse_label(members.extractfile(member).read(), member.name, key)
        # tarfile takes a header that is cut off for the end; a whole archive ends with empty blocks.
        opened.seek(members.offset)
        if opened.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("it is cut off")
    complete = {name: sample for name, sample in samples.items() if sample["place"] is not None}
    return {
        "names": list(complete),
        "places": [sample["place"] for sample in complete.values()],
        "labels": [sample["label"] for sample in complete.values()],
    }


def parse_label(data: bytes, name: str, key: str = "") -> int | str:
    """A class from the bytes of a label file: a number, a name, or the entry `key` of a JSON object.

    Raises:
        ValueError: naming the file.
    """
    try:
        value = data.decode().strip()
        if key:
            value = json.loads(value)[key]
        return int(value) if re.fullmatch(r"-?\d+", str(value)) else str(value)
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the label {name} cannot be read: {error!r}") from error
