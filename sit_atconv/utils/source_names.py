"""The strings that name data sources. Nothing is imported to read them, so that options are checked at once."""

import re
from pathlib import Path
from urllib.parse import parse_qsl


def split_options(source: str) -> tuple[str, dict[str, str]]:
    """Split "PLACE?name=value&name=value" into place and options. A question mark in an existing path stays there."""
    place, mark, query = source.rpartition("?")
    if not mark or Path(source).exists() or "=" not in query:
        return source, {}
    try:
        return place, dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True))
    except ValueError as error:
        raise ValueError(f"data={source!r}: options are written '?name=value&name=value'") from error


def source_name(source: str) -> str:
    """Return a short name for a run folder, such as "cifar10" for "hf:uoft-cs/cifar10?split=test"."""
    place = split_options(source)[0].removeprefix("hf:").removeprefix("latents:").rstrip("/")
    name = re.sub(r"(\{[^}]*\}|\*|\?)", "", Path(place).name)
    name = re.sub("[\udc80-\udcff]+", "_", name)  # bytes that are no text, which safetensors cannot write to
    return re.sub(r"\.(parquet|tar|lmdb|mdb)$", "", name).strip("-_.") or "data"
