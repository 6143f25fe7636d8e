"""Files that are complete at any moment: staged writes, checks of new files, and the lock of a folder."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STAGING = ".staging-"  # starts the names under which files and folders are written before they get their own


def check_new_file(field: str, file: str | Path | None) -> None:
    """Raise ValueError unless `file` is None or can be written without replacing anything."""
    if file is None:
        return
    file = Path(file)
    if file.exists():
        raise ValueError(f"{field}={str(file)!r} exists; name another, or remove that one first")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{field}={str(file)!r} cannot be written: {folder} is not a folder that you may write to")


@contextmanager
def staged(file: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a staging path beside `file`; on success it replaces `file`, on an error it is removed.

    Whoever reads `file`, even after a kill at any moment, finds the old content or the new one, complete.

    Args:
        file: the file to write or replace; its folder must exist.
        durable: wait until the content, and then the name in its folder, is on the disk, so that this also holds after
            a power cut.
    """
    staging = file.with_name(f"{STAGING}{os.getpid()}-{file.name}")
    try:
        yield staging
        if durable:
            sync(staging)
        staging.replace(file)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    if durable:
        sync(file.parent)


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
    """Write a report as JSON to a new file.

    Raises:
        FileExistsError: if the file exists.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as opened:
        json.dump(report, opened, indent=2, ensure_ascii=False)
        opened.write("\n")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the operating system releases it when the process ends, however that happens.

    Raises:
        ValueError: if another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (folder / ".lock").open("w") as lock:
        try:
            # Unlike flock's, this lock belongs to one process: data workers that outlive a killed run do not hold it.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ValueError(f"output_dir={str(folder)!r}: another process is writing to it") from error
        except OSError as error:
            warnings.warn(
                f"{folder} is on a file system without locks ({error}): make sure that nothing else writes to it",
                stacklevel=3,  # through contextlib, to the caller
            )
        yield
