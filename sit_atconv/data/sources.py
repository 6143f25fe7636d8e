"""`open_dataset`: one string says where the images are."""

import inspect
import json
import re
from pathlib import Path
from urllib.parse import parse_qsl

from .base import ImageDataset
from .digits import DigitsDataset
from .folder import FolderDataset
from .latents import MANIFEST, LatentsDataset
from .lmdb_images import LMDBDataset
from .parquet import HuggingFaceDataset
from .shards import ShardDataset

SOURCES = "digits, images, hf:NAME of a Hugging Face data set, .parquet files, .tar shards, an LMDB, or latents"


def open_dataset(source: str | Path, image_size: int | None = None) -> ImageDataset:
    """Open a source of images.

    Args:
        source: "digits"; a folder with one folder of images per class, or of images alone (no classes);
            "hf:NAME", a data set on the Hub; a parquet file, or a folder or pattern of them; a tar shard, or a folder
            or pattern of them (WebDataset); an LMDB; or a folder that train/encode_latents.py wrote (or
            "latents:FOLDER"). Options follow a question mark: "hf:uoft-cs/cifar10?split=test&image=img&label=none".
        image_size: side in pixels; needed for all but the digits and latents.

    Raises:
        ValueError: naming what is wrong with the source.
    """
    text = str(source)
    place, options = split_options(text)
    path = Path(place)
    if place == "digits":
        return _open(DigitsDataset, text, {}, options, image_size=image_size)
    if place.startswith("hf:"):
        return _open(HuggingFaceDataset, text, {"source": text, "name": place[3:]}, options, image_size=image_size)
    if place.startswith("latents:") or is_latents_folder(path):
        folder = place.removeprefix("latents:")
        return _open(LatentsDataset, text, {"folder": folder}, options, image_size=image_size)
    if parquet := parquet_files(path):
        arguments = {"source": text, "name": None, "files": parquet}
        if path.is_dir():  # test.parquet beside train.parquet is another split, as the library knows
            arguments = {"source": text, "name": str(path.resolve())}
        opened = _open(HuggingFaceDataset, text, arguments, options, image_size=image_size)
    elif is_tar(place):
        opened = _open(ShardDataset, text, {"source": place}, options, image_size=image_size)
    elif path.suffix in (".lmdb", ".mdb") or (path / "data.mdb").is_file():
        if not path.exists():
            raise ValueError(f"data={text!r} does not exist")
        file = path.parent if path.name == "data.mdb" else path
        opened = _open(LMDBDataset, text, {"file": file}, options, image_size=image_size)
    elif path.is_dir():
        opened = _open(FolderDataset, text, {"folder": path}, options, image_size=image_size)
    else:
        raise ValueError(f"data={text!r} is no folder, and none of the other sources: {SOURCES}")
    opened.source = text
    return opened


def _open(dataset: type[ImageDataset], source: str, arguments: dict, options: dict[str, str], **others) -> ImageDataset:
    """Call the class with the user's options, of which it must know each."""
    known = set(inspect.signature(dataset).parameters) - arguments.keys() - others.keys() - {"files"}
    if unknown := sorted(options.keys() - known):
        raise ValueError(
            f"data={source!r}: unknown options: {', '.join(unknown)}; there are: {', '.join(sorted(known)) or 'none'}"
        )
    return dataset(**arguments, **options, **others)


def split_options(source: str) -> tuple[str, dict[str, str]]:
    """Divide "PLACE?name=value&name=value"; a question mark that belongs to an existing path stays there."""
    place, mark, query = source.rpartition("?")
    if not mark or Path(source).exists() or "=" not in query:
        return source, {}
    try:
        return place, dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True))
    except ValueError as error:
        raise ValueError(f"data={source!r}: options are written '?name=value&name=value'") from error


def source_name(source: str) -> str:
    """A short name for a run folder: "cifar10" for "hf:uoft-cs/cifar10?split=test"."""
    place = split_options(source)[0].removeprefix("hf:").removeprefix("latents:").rstrip("/")
    name = re.sub(r"(\{[^}]*\}|\*|\?)", "", Path(place).name)
    return re.sub(r"\.(parquet|tar|lmdb|mdb)$", "", name).strip("-_.") or "data"


def parquet_files(path: Path) -> list[Path]:
    """The parquet files of a file name, a pattern or a folder.

    Raises:
        ValueError: for a name or pattern of files that do not exist.
    """
    if path.suffix != ".parquet":
        return sorted(path.glob("*.parquet")) if path.is_dir() else []
    files = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    if not files or not files[0].is_file():
        raise ValueError(f"data={str(path)!r} does not exist")
    return files


def is_tar(place: str) -> bool:
    """Whether the place means tar shards."""
    if place.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        return True
    return Path(place).is_dir() and next(Path(place).glob("*.tar"), None) is not None


def is_latents_folder(path: Path) -> bool:
    """Whether the folder holds a finished cache of latents."""
    try:
        return "latents" in json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return False


def is_image_folder(source: str | Path) -> bool:
    """Whether the source is a plain folder of image files, not one of the other kinds."""
    path = Path(source)
    return (
        path.is_dir()
        and not (path / "data.mdb").is_file()
        and not (path / MANIFEST).is_file()
        and not parquet_files(path)
        and not is_tar(str(path))
    )
