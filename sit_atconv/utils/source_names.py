"""The strings that name data sources. Nothing is imported to read them, so that options are checked at once."""

import re
from pathlib import Path
from urllib.parse import parse_qsl

SOURCES = "digits, a folder of images, hf:NAME, .parquet files, .tar shards, an LMDB, precomputed latents"
TEACHER = "teacher:"  # of a source of samples that a trained model draws, followed by their number


def split_options(source: str) -> tuple[str, dict[str, str]]:
    """Split "PLACE?name=value&name=value" into place and options. A question mark in an existing path stays there."""
    place, mark, query = source.rpartition("?")
    if not mark or Path(source).exists() or "=" not in query:
        return source, {}
    try:
        return place, dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True))
    except ValueError as error:
        raise ValueError(f"data={source!r}: options are written '?name=value&name=value'") from error


def check_source(field: str, source: str, kinds: str = SOURCES) -> None:
    """Raise ValueError if a source names a file or folder that does not exist.

    Sources that are elsewhere, and patterns of names, are left to what opens them.

    Args:
        field: name of the option.
        source: its value.
        kinds: what it may be, for the message.
    """
    place = split_options(source)[0]
    elsewhere = (
        place == "digits" or place.startswith(("hf:", TEACHER)) or "://" in place or re.search(r"[*?\[{]", place)
    )
    if not elsewhere and not Path(place.removeprefix("latents:")).exists():
        raise ValueError(f"{field}={source!r} does not exist, or is not a known kind of source; use one of: {kinds}")


def check_folder_or_name(field: str, value: str) -> None:
    """Raise ValueError unless a folder exists, or the value can be a name on the Hub: USER/NAME."""
    if not Path(value).exists() and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value):
        raise ValueError(f"{field}={value!r} is no folder here; correct the path, or give a name on the Hub, USER/NAME")


def source_name(source: str) -> str:
    """Return a short name for a run folder, such as "cifar10" for "hf:uoft-cs/cifar10?split=test"."""
    place = (
        split_options(source)[0].removeprefix("hf:").removeprefix("latents:").replace(TEACHER, "teacher-").rstrip("/")
    )
    name = re.sub(r"(\{[^}]*\}|\*|\?)", "", Path(place).name)
    name = re.sub("[\udc80-\udcff]+", "_", name)  # bytes that are no text, which safetensors cannot write to
    return re.sub(r"\.(parquet|tar|lmdb|mdb)$", "", name).strip("-_.") or "data"
