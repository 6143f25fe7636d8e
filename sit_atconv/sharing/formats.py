"""The format of pipeline folders: its version, and the names of the files of code in them.

Nothing heavy is imported, so that a folder can be described without loading PyTorch.
"""

import hashlib
import re
from pathlib import Path

from ..utils.bounded_text import read_bounded

PACKAGE = "sit_atconv"
# Version of the folder's layout, raised when older code could not read what is written. 0: the index has no version,
# and file names have no hash.
FORMAT_VERSION = 1
FILE_HASH = re.compile(r"_([0-9a-f]{8})$")


def source_hash(source: str) -> str:
    """Return the hash that ends the name of a file with this source."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def check_format(index: dict) -> None:
    """Raise ValueError if newer code wrote the folder with this index."""
    version = index.get("_format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"this folder uses format {version}, but this version reads formats up to {FORMAT_VERSION}; update "
            "sit-atconv, or load it with DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)"
        )


def edited_sources(folder: str | Path) -> list[str]:
    """List the code files of a portable folder that were edited after they were saved."""
    edited = []
    for file in sorted(Path(folder).glob("**/*.py")):
        try:
            is_edited = (saved := FILE_HASH.search(file.stem)) and saved[1] != source_hash(read_bounded(file))
        except (OSError, ValueError):  # a pipe, a link to nowhere, bytes that are no text: nothing that was saved
            is_edited = True
        if is_edited:
            edited.append(str(file.relative_to(folder)))
    return edited
