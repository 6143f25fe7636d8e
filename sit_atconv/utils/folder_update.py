"""Files that take their place in a folder all together, or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .files import STAGING, sync


@contextmanager
def updating_folder(
    folder: str | Path,
    superseded: Callable[[Path], list[Path]] = lambda staging: [],
    rank: Callable[[Path], int] = lambda file: 0,
) -> Iterator[Path]:
    """Yield an empty folder to write to; at the end, its files take their places in `folder`.

    Until then `folder` is not changed, so that an error, such as a full disk, leaves what was there as it was. Then
    every file is renamed into place, which needs no space; if even that fails half-way, it is undone. Files of other
    names stay.

    Args:
        folder: the folder, which is created if it does not exist.
        superseded: a function of the folder that was written, which returns the files in `folder` to remove.
        rank: a function of a file in the folder that was written; files of lower ranks are put into place first.

    Raises:
        ValueError: if there is something else than a folder under that name, or under one that a file must have.
    """
    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is not a folder; name another")
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    succeeded = False
    try:
        staging, backup = temporary / folder.absolute().name, temporary / ".replaced"
        staging.mkdir()
        backup.mkdir()
        yield staging
        files = [each for each in sorted(staging.rglob("*")) if not each.is_dir()]
        _put_into_place(sorted(files, key=rank), staging, folder, superseded(staging), backup)
        succeeded = True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for each in [] if succeeded else created:
            with contextlib.suppress(OSError):  # somebody else has put something into it
                each.rmdir()


def _put_into_place(files: list[Path], staging: Path, folder: Path, superseded: list[Path], backup: Path) -> None:
    """Rename files from `staging` into `folder`, and superseded ones into `backup`; undo all of it after an error."""
    places = {file: folder / file.relative_to(staging) for file in files}
    for file, place in places.items():
        _check_place(place, folder)
        if place.exists():
            sync(file)  # the old content is only given up for one that outlives a power cut
    undo: list[tuple[Path, Path | None]] = []  # the places that changed, each with its former content
    try:
        for number, (file, place) in enumerate(places.items()):
            place.parent.mkdir(parents=True, exist_ok=True)
            former = _keep(place, backup / str(number)) if os.path.lexists(place) else None
            undo.append((place, former))
            file.replace(place)
        for number, place in enumerate(superseded, len(places)):
            undo.append((place, backup / str(number)))
            place.replace(backup / str(number))
    except BaseException:
        for place, former in reversed(undo):
            if former is None:
                place.unlink(missing_ok=True)
            elif os.path.lexists(former):
                former.replace(place)
        raise


def _check_place(place: Path, folder: Path) -> None:
    """Raise ValueError if a file cannot have this place in `folder`."""
    if place.is_dir():
        raise ValueError(f"{str(place)!r} is a folder, where a file must be written; move it away")
    for parent in place.parents:
        if parent == folder:
            return
        if os.path.lexists(parent) and not parent.is_dir():
            raise ValueError(f"{str(parent)!r} is a file, where a folder must be written; move it away")


def _keep(file: Path, copy: Path) -> Path:
    """Keep the content of a file under a second name, and also its first one if the file system has links."""
    try:
        os.link(file, copy, follow_symlinks=False)
    except OSError:
        file.replace(copy)
    return copy
