"""Finds the images in a folder, with the same rules for training, encoding, samples and references.

docs/data.md states the rules. What is left out is remembered, so that it can be counted and named.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.files import is_leftover
from ..utils.text import counted, one_line
from .decode import IMAGE_EXTENSIONS

# Written by file managers and editors, beside files whose names start with a dot. Their thumbnails are no data.
OF_PROGRAMS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "lost+found"}
HIDDEN_OF_PROGRAMS = {".ds_store", ".ipynb_checkpoints", ".directory", ".localized"}
MAX_KINDS, MAX_NAMES = 8, 3  # that are shown of what is left out

# Why something is left out, besides an ending of its name.
WITHOUT_ENDING = "without ending"
HIDDEN = "hidden"
TO_NOWHERE = "linked to nowhere"
ENTERED = "linked to a folder that is entered elsewhere"
UNREADABLE = "without permission"
NOT_REGULAR = "not a regular file"


@dataclass
class ImageFolder:
    """What `scan_folder` found.

    Attributes:
        folder: the folder that was searched.
        files: the images, sorted by path.
        folders: all folders that were entered, without the one that was searched.
        left_out: each file that is not an image here, and each folder that was not entered; and why.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    def summary(self, expected: Collection[str] = ()) -> str | None:
        """Count and name what was left out, such as "20 files left out: 18 .HEIC (not read here), 2 without ending".

        Args:
            expected: names of files that are not counted.

        Returns:
            The sentence, or None if nothing was left out.
        """
        kinds: dict[str, list[Path]] = {}
        shown: dict[str, str] = {}  # .heic and .HEIC are one kind
        for path, reason in self.left_out:
            if path.name not in expected:
                kinds.setdefault(shown.setdefault(reason.lower(), reason), []).append(path)
        if not kinds:
            return None
        parts = [
            f"{len(paths)} {reason}{_describe(reason, paths)}"
            for reason, paths in sorted(kinds.items(), key=lambda kind: -len(kind[1]))
        ]
        if len(parts) > MAX_KINDS:
            parts[MAX_KINDS:] = [f"and {counted(len(parts) - MAX_KINDS, 'other kind')}"]
        count = sum(map(len, kinds.values()))
        return one_line(f"{counted(count, 'file')} left out: {', '.join(parts)}")

    def contains(self, path: Path) -> bool:
        """Whether a path lies, or would lie, in one of the folders that were entered, links followed."""
        path = path.resolve()
        linked = (folder.resolve() for folder in self.folders if folder.is_symlink())
        return any(path.is_relative_to(real) for real in (self.folder.resolve(), *linked))


def _describe(reason: str, paths: list[Path]) -> str:
    """What a summary says about a kind besides its count: names, unless the kind is an ending of names."""
    if reason.startswith("."):
        return " (not read here)"
    if reason == WITHOUT_ENDING:
        return ""
    names = ", ".join(path.name for path in paths[:MAX_NAMES])
    return f" ({names}{', …' if len(paths) > MAX_NAMES else ''})"


def scan_folder(folder: str | Path) -> ImageFolder:
    """Find all images in a folder, at any depth.

    Links are followed, but each real folder is entered once: under its own name if it lies in the folder, otherwise
    under the first link to it. Folders above the searched one are never entered.

    Raises:
        OSError: if the folder cannot be read.
    """
    folder = Path(folder)
    found = ImageFolder(folder)
    os.listdir(folder)  # an error here is not one of a sub-folder
    resolved = folder.resolve()
    entered = {_identity(above) for above in resolved.parents}
    waiting = [folder]  # links to folders wait until all real folders have been entered
    while waiting:
        links: list[Path] = []
        for start in waiting:
            if (identity := _identity(start)) in entered:
                found.left_out.append((start, ENTERED))
                continue
            entered.add(identity)
            if start != folder:
                found.folders.append(start)
            links += _scan_tree(start, found, entered)
        waiting = sorted(links)
    found.files.sort()
    found.folders.sort()
    found.left_out.sort()
    return found


def _scan_tree(start: Path, found: ImageFolder, entered: set[tuple[int, int]]) -> list[Path]:
    """Search a folder and the real folders below it; return the links to folders in it."""
    links, inner = [], [start]
    while inner:
        parent = inner.pop()
        try:
            entries = sorted(os.scandir(parent), key=lambda entry: entry.name)
        except OSError:
            found.left_out.append((parent, UNREADABLE))
            continue
        for entry in entries:
            path = parent / entry.name
            if _is_hidden(entry.name):
                if entry.name[0] == "." and not _is_of_programs(entry.name):
                    found.left_out.append((path, HIDDEN))
            elif entry.is_dir(follow_symlinks=False):
                if (identity := _identity(path)) not in entered:  # or a link led here
                    entered.add(identity)
                    found.folders.append(path)
                    inner.append(path)
            elif entry.is_symlink() and os.path.isdir(path):
                links.append(path)
            elif reason := _why_left_out(entry):
                found.left_out.append((path, reason))
            else:
                found.files.append(path)
    return links


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in OF_PROGRAMS


def _is_of_programs(name: str) -> bool:
    """Whether a hidden file or folder is one that programs write, which nobody takes for data."""
    return name.lower() in HIDDEN_OF_PROGRAMS or name.startswith("._") or is_leftover(name)


def _why_left_out(entry: os.DirEntry) -> str | None:
    """Why a file is not an image that can be read; None if it is one."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return TO_NOWHERE
    if not entry.is_file():
        return NOT_REGULAR
    if entry.name.lower().endswith(IMAGE_EXTENSIONS):
        return None
    return os.path.splitext(entry.name)[1] or WITHOUT_ENDING
