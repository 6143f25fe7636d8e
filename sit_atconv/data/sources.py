"""`open_dataset`: from one string to a data set."""

import inspect
from collections.abc import Callable
from pathlib import Path

from ..utils.bounded_text import read_json_object
from ..utils.source_names import SOURCES, split_options
from .base import ImageDataset
from .digits import DigitsDataset
from .folder import FolderDataset
from .latent_shards import MANIFEST
from .latents import LatentsDataset
from .lmdb_images import LMDBDataset
from .parquet import HuggingFaceDataset
from .shards import ShardDataset


def open_dataset(source: str | Path, image_size: int | None = None) -> ImageDataset:
    """Open a data set.

    Args:
        source: "digits"; a folder with one folder of images per class, or of images alone (no classes);
            "hf:NAME", a data set on the Hub; a parquet file, or a folder or pattern of them; a tar shard, or a folder
            or pattern of them (WebDataset); an LMDB; or a folder that train/encode_latents.py wrote (or
            "latents:FOLDER"). Options follow a question mark: "hf:uoft-cs/cifar10?split=test&image=img&label=none".
        image_size: side of the images in pixels. Required, except for the digits and precomputed latents.

    Raises:
        ValueError: if the source or one of its options cannot be used.
    """
    text = str(source)
    place, options = split_options(text)
    kind, arguments = find_reader(text, place)
    known = set(inspect.signature(kind).parameters) - arguments.keys() - {"image_size", "files"}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"data={text!r}: unknown options: {', '.join(unknown)}; there are: {', '.join(sorted(known)) or 'none'}"
        )
    dataset = kind(**arguments, **options, image_size=image_size)
    if kind is not LatentsDataset:  # whose source is its folder, with or without "latents:"
        dataset.source = text
    return dataset


def find_reader(text: str, place: str) -> tuple[Callable[..., ImageDataset], dict]:
    """Return the class that reads a source, and the arguments that say where it is.

    Args:
        text: the whole source.
        place: the source without options.

    Raises:
        ValueError: if no class reads this source.
    """
    path = Path(place)
    if place == "digits":
        return DigitsDataset, {}
    if place.startswith("hf:"):
        return HuggingFaceDataset, {"source": text, "name": place[3:]}
    if place.startswith("latents:") or is_latents_folder(path):
        return LatentsDataset, {"folder": place.removeprefix("latents:")}
    if parquet := parquet_files(path):
        if path.is_dir():  # by name: load_dataset knows that test.parquet beside train.parquet is another split
            return HuggingFaceDataset, {"source": text, "name": str(path.resolve())}
        return HuggingFaceDataset, {"source": text, "name": None, "files": parquet}
    if is_tar(place):
        return ShardDataset, {"source": place}
    if path.suffix in (".lmdb", ".mdb") or (path / "data.mdb").is_file():
        if not path.exists():
            raise ValueError(f"data={text!r} does not exist; correct the path of the LMDB")
        return LMDBDataset, {"file": path.parent if path.name == "data.mdb" else path}
    if path.is_dir():
        return FolderDataset, {"folder": path}
    raise ValueError(f"data={text!r} does not exist, or is not a known kind of source; use one of: {SOURCES}")


def parquet_files(path: Path) -> list[Path]:
    """Return the parquet files of a file name, a pattern or a folder; an empty list for anything else.

    Raises:
        ValueError: if a name or pattern ends with .parquet but no such file exists.
    """
    if path.suffix != ".parquet":
        return sorted(path.glob("*.parquet")) if path.is_dir() else []
    files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"data={str(path)!r} does not exist; correct the path or the pattern")
    return files


def is_tar(place: str) -> bool:
    """Return whether the place is a tar shard, or a pattern or folder of them."""
    if place.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        return True
    return Path(place).is_dir() and next(Path(place).glob("*.tar"), None) is not None


def is_latents_folder(path: Path) -> bool:
    """Return whether the path is a complete folder of precomputed latents."""
    try:
        return "latents" in read_json_object(path / MANIFEST)
    except (OSError, ValueError):
        return False


def is_image_folder(source: str | Path) -> bool:
    """Return whether the source is a plain folder of image files, not one of the other kinds."""
    try:
        return find_reader(str(source), str(source))[0] is FolderDataset
    except ValueError:
        return False
