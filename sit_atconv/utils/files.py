"""Files that are complete at any moment: staged writes, checks of new files, and the lock of a folder."""

import errno
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGING = ".staging-"  # starts the names under which files and folders are written before they get their own
LOCK = ".lock"  # the file in a folder that `folder_lock` locks
WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # of some file systems


def check_new_file(field: str, file: str | Path | None) -> None:
    """Raise ValueError unless `file` is None or can be written without replacing anything."""
    if file is None:
        return
    file = Path(file)
    if os.path.lexists(file):  # a link to nowhere is something, too
        raise ValueError(f"{field}={str(file)!r} exists; name another, or remove that one first")
    check_writable(field, file)


def check_new_folder(field: str, folder: str | Path) -> None:
    """Raise ValueError unless `folder` can be filled without mixing its files with others.

    It may exist if it is empty, or holds only what an earlier, interrupted start of this package has left: staged
    files and a lock.
    """
    folder = Path(folder)
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(f"{field}={str(folder)!r} is no folder; name another")
    if folder.is_dir() and (others := sorted(each.name for each in folder.iterdir() if not is_leftover(each.name))):
        raise ValueError(f"{field}={str(folder)!r} holds other files ({others[0]!r}); name a new folder")
    check_writable(field, folder / LOCK)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a staged file or a lock of this package, which nobody misses."""
    of_earlier_versions = name.startswith(".") and name.endswith(".part")
    return name.startswith(STAGING) or name == LOCK or of_earlier_versions


def remove_staged(folder: Path) -> None:
    """Remove the staged files that killed processes have left in a folder, whose lock the caller holds."""
    for entry in folder.iterdir():
        if is_leftover(entry.name) and entry.name != LOCK and not entry.is_dir():
            entry.unlink()


def check_writable(field: str, file: Path) -> None:
    """Raise ValueError unless the nearest existing folder above `file` is one that can be written to."""
    folder = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"{field}={str(file)!r} cannot be written: {folder} is not a folder that you may write to; name another"
        )


@contextmanager
def staged(file: Path, durable: bool = True, replace: bool = True) -> Iterator[Path]:
    """Yield a staging path beside `file`; on success it becomes `file`, on an error it is removed.

    Whoever reads `file`, even after a kill at any moment, finds the old content or the new one, complete.

    Args:
        file: the file to write or replace; its folder must exist.
        durable: wait until the content, and then the name in its folder, is on the disk, so that this also holds after
            a power cut.
        replace: whether `file` may exist already, and is then replaced.

    Raises:
        FileExistsError: if `file` exists by now and must not be replaced.
    """
    staging = file.with_name(f"{STAGING}{os.getpid()}-{file.name}")
    try:
        yield staging
        if durable:
            sync(staging)
        if replace:
            staging.replace(file)
        else:
            publish_new(staging, file)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    if durable:
        sync(file.parent)


def publish_new(staging: Path, file: Path) -> None:
    """Give a staged file its name.

    Raises:
        FileExistsError: if the name is taken.
    """
    try:
        os.link(staging, file)  # unlike a renaming, it never replaces a file
        staging.unlink()
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL))  # takes the name
        staging.replace(file)


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write or replace a file so that it is complete at any moment and on the disk afterwards; text becomes UTF-8."""
    with staged(file) as staging:
        staging.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(file: str | Path, value: dict) -> None:
    """Write or replace a JSON file so that it is complete at any moment; create missing folders."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_report(file: str | Path, report: dict) -> None:
    """Write a report as JSON to a new file, which is complete as soon as it exists; create missing folders.

    Raises:
        FileExistsError: if the file exists by now.
        OSError: if it cannot be written; nothing is left of it.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with staged(file, replace=False) as staging:
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        staging.write_text(text, encoding="utf-8", errors="backslashreplace")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path, field: str = "output_dir") -> Iterator[None]:
    """Hold the lock of a folder; the operating system releases it when the process ends, however that happens.

    Args:
        folder: the folder, which must exist.
        field: name of the option that names the folder, for the message.

    Raises:
        ValueError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / LOCK).open("w") as lock:
        try:
            # Unlike flock's, this lock belongs to one process: data workers that outlive a killed run do not hold it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(
                f"{field}={str(folder)!r}: another process is writing to it; wait for it, or name another folder"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{folder} is on a file system without locks ({error}): make sure that nothing else writes to it",
                stacklevel=3,  # through contextlib, to the caller
            )
        yield
