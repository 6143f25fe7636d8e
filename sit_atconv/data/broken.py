"""Broken images: the list of those that training could not read, and the message when there are too many."""

import sys
from pathlib import Path

from ..utils.files import append_line
from ..utils.text import counted, one_line

BROKEN_IMAGES_FILE = "broken_images.txt"  # in the folder of a run


class BrokenImages:
    """The list of images that training could not read.

    The list is a file in the run folder with one line per image. All processes append to it, so the count is that of
    the whole run and continues when the run is resumed.

    Args:
        file: the list. If None, it is kept in memory, separately in each process.
        limit: how many broken images are tolerated.

    Attributes:
        reasons: why an image cannot be read, by index, as far as this process knows.
    """

    def __init__(self, file: Path | None, limit: int):
        self.file = file
        self.limit = limit
        self.reasons: dict[int, str] = {}
        self._read()

    @property
    def too_many(self) -> bool:
        """Whether there are more broken images than tolerated."""
        return len(self.reasons) > self.limit

    def add(self, broken: list[tuple[int, str]]) -> None:
        """Record the (index, reason) of images that `TrainingView` could not read; each image is listed once."""
        for index, reason in broken:
            if index in self.reasons:
                continue
            self._read()  # what other processes have added since
            if index in self.reasons:
                continue
            self.reasons[index] = reason = one_line(" ".join(reason.split()))
            print(f"skipped: {reason}", file=sys.stderr)
            if self.file is not None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                append_line(self.file, f"{index}\t{reason}")

    def _read(self) -> None:
        if self.file is not None and self.file.exists():
            # A line that a kill has cut short is skipped; its image is listed again when training meets it.
            lines = (line.partition("\t") for line in self.file.read_text("utf-8", errors="replace").split("\n"))
            self.reasons |= {int(index): reason for index, tab, reason in lines if tab and index.isdecimal()}


def too_many_broken(reasons: list[str], limit: int) -> str:
    """Return the error message of a run that met more broken images than `limit`; it shows the first 20 reasons."""
    shown = "\n  ".join(reasons[:20]) + (f"\n  … and {len(reasons) - 20} more" if len(reasons) > 20 else "")
    return (
        f"max_broken_images={limit}: {counted(len(reasons), 'image')} cannot be read. To continue without them, raise "
        f"--max_broken_images; if you repair or remove them, start again in another --output_dir:\n  {shown}"
    )
