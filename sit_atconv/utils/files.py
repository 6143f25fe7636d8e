"""Files that are complete at any moment: staged writes, checks of new files, and the lock of a folder."""

import errno
import json
import os
import re
import shutil
import stat
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO, TextIO

STAGING = ".staging-"  # starts the names under which files and folders are written before they get their own
LOCK = ".lock"  # the file in a folder that `folder_lock` locks
OF_EARLIER_VERSIONS = re.compile(r"\.([0-9]+\.png|samples\.json|labels\.csv|costs\.jsonl|duel\.yaml)\.part")  # staged
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
WITHOUT_LINKS = {
    errno.EPERM,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
}  # errors on file systems without hard links


def check_new_file(field: str, file: str | Path | None, remedy: str = "choose another name or remove it") -> None:
    """Raise ValueError unless `file` is None or can be written without replacing anything."""
    if file is None:
        return
    file = Path(file)
    if os.path.lexists(file):  # a broken link counts as existing
        raise ValueError(f"{field}={str(file)!r} already exists; {remedy}")
    check_writable(field, file)


def check_new_folder(field: str, folder: str | Path) -> None:
    """Raise ValueError unless `folder` can be filled without mixing its files with others.

    It may exist if it is empty, or holds only what an earlier, interrupted start of this package has left: staged
    files and a lock.
    """
    folder = Path(folder)
    check_writable_folder(field, folder)
    if os.path.isdir(folder) and (others := sorted(e.name for e in folder.iterdir() if not is_leftover(e.name))):
        raise ValueError(f"{field}={str(folder)!r} holds other files ({others[0]!r}); name a new folder")


class OutputError(OSError):
    """A file that cannot be written, in contrast to one that cannot be read."""


def check_writable_folder(field: str, folder: str | Path) -> None:
    """Raise ValueError unless `folder` is a folder that can be written to, or can be made."""
    is_folder = os.path.isdir(folder)  # unlike Path.is_dir, also for names that are too long
    if os.path.lexists(folder) and not is_folder:
        raise ValueError(f"{field}={str(folder)!r} is not a folder; name another")
    if is_folder and not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{field}={str(folder)!r} is not a folder that you may write to; name another")
    check_writable(field, folder)


def is_leftover(name: str) -> bool:
    """Whether a file of this name is a staged file or a lock of this package, which may be deleted."""
    return name.startswith(STAGING) or name == LOCK or OF_EARLIER_VERSIONS.fullmatch(name) is not None


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with everything in it; nothing happens if it is missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_staged(folder: Path) -> None:
    """Remove the staged files that killed processes have left in a folder, whose lock the caller holds."""
    for entry in folder.iterdir():
        if is_leftover(entry.name) and entry.name != LOCK and not entry.is_dir():
            entry.unlink()


def check_writable(field: str, path: str | Path) -> None:
    """Raise ValueError unless a file or folder can be made at `path`, or beside it, in the nearest existing folder."""
    path = Path(path)
    if "\0" in str(path):
        raise ValueError(f"{field}={str(path)!r} cannot be written: no name holds a zero byte; name another")
    folder = next((parent for parent in path.absolute().parents if os.path.lexists(parent)), path.absolute())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"{field}={str(path)!r} cannot be written: {folder} is not a folder that you may write to; name another"
        )
    longest = os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    longest -= len(f"{STAGING}{os.getpid()}-")
    if too_long := [part for part in path.absolute().parts if len(os.fsencode(part)) > longest]:
        raise ValueError(f"{field}={str(path)!r} cannot be written: {too_long[0]!r} is too long a name; name another")


def open_regular(file: str | Path) -> BinaryIO:
    """Open a file for reading, if it is one: a pipe, socket or device would block, or never end.

    Raises:
        ValueError: if it is not a regular file.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{str(file)!r} is not a regular file, but a folder, pipe, socket or device; name a file")
    return os.fdopen(descriptor, "rb")


def check_regular(file: str | Path) -> None:
    """Raise ValueError unless a file is a regular one, for libraries, which would wait for a pipe."""
    open_regular(file).close()


@contextmanager
def staged(file: Path, durable: bool = True, replace: bool = True) -> Iterator[Path]:
    """Yield a staging path beside `file`; on success it becomes `file`, on an error it is removed.

    Whoever reads `file`, even after a kill at any moment, finds the old content or the new one, complete. If `file` is
    a link, the link is replaced; what it points to is left alone.

    Args:
        file: the file to write or replace; its folder must exist. The staging path is an empty file at first.
        durable: wait until the content, and then the name in its folder, is on the disk, so that this also holds after
            a power cut.
        replace: whether `file` may exist already, and is then replaced.

    Raises:
        FileExistsError: if `file` exists by now and must not be replaced.
    """
    staging = file.with_name(f"{STAGING}{os.getpid()}-{file.name}")
    staging.unlink(missing_ok=True)  # of a killed process that had the same number, or a link put there by somebody
    os.close(os.open(staging, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666))
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
    """Write or replace a file so that it is complete at any moment and on the disk afterwards.

    Text becomes UTF-8. Bytes of file names that are no text are written as escapes, which JSON and YAML read back.
    """
    with staged(file) as staging:
        staging.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


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


def open_in_place(file: Path, flags: int) -> int:
    """Open a file to write into it, and return its descriptor. It is created if it is missing, and never emptied.

    A folder from somebody else may contain a link in the place of a file, and writing would change what it points to.

    Args:
        file: the file.
        flags: further flags of `os.open`, such as `os.O_APPEND`.

    Raises:
        ValueError: if it is a link, or no regular file.
        OSError: if it cannot be opened.
    """
    try:
        # O_NONBLOCK: opening a pipe would wait for its reader.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0) | flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        raise ValueError(f"{file} is a link, and nothing is written through links; remove it") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{file} is not a regular file, but a pipe, a device or the like; remove it")
    return descriptor


def open_to_append(file: Path) -> TextIO:
    """Open a text file at its end, on a line of its own, and flush each line. See `open_in_place` for what is refused.

    A kill may have cut the last line short; the next one does not continue it.
    """
    descriptor = open_in_place(file, os.O_APPEND)
    if (size := os.fstat(descriptor).st_size) and os.pread(descriptor, 1, size - 1) != b"\n":
        os.write(descriptor, b"\n")
    return os.fdopen(descriptor, "a", buffering=1, encoding="utf-8")


def append_line(file: Path, line: str) -> None:
    """Append a line to a text file, which is created if it is missing."""
    with open_to_append(file) as opened:
        opened.write(line + "\n")


def check_no_links(folder: Path, names: Iterable[str]) -> None:
    """Raise ValueError if an entry of a folder is a link, a pipe or a device, although it is read, written or filled.

    Args:
        folder: the folder. It may be a link itself.
        names: the entries that are written.
    """
    for name in names:
        if os.path.exists(folder / name) and not ((folder / name).is_file() or (folder / name).is_dir()):
            raise ValueError(f"{folder / name} is a pipe, a socket or a device; remove it")
        if (folder / name).is_symlink():
            raise ValueError(
                f"{folder / name} is a link, and nothing is written through links inside this folder; replace it by "
                "what it points to (to keep everything on another disk, make the whole folder a link)"
            )


_locked: set[TextIO] = set()  # the lock files that this process holds


@cache
def _leave_locks_to_this_process() -> None:
    """Let forked processes, such as data workers, close the lock files; otherwise, they would also hold the locks."""

    def close_inherited() -> None:
        while _locked:
            _locked.pop().close()

    os.register_at_fork(after_in_child=close_inherited)


@contextmanager
def folder_lock(folder: Path, field: str = "output_dir") -> Iterator[None]:
    """Hold the lock of a folder; the operating system releases it when the process ends, however that happens.

    Nobody else gets it, not even this process once more, whatever is done with the lock file meanwhile.

    Args:
        folder: the folder, which must exist.
        field: name of the option that names the folder, for the message.

    Raises:
        ValueError: if it is held already, or if the lock file is a link.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    _leave_locks_to_this_process()
    # flock belongs to what was opened here. A lock of lockf would be lost as soon as this process closes the file
    # anywhere else, and would not stop this process from taking it twice.
    with os.fdopen(open_in_place(folder / LOCK, 0), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            mine = any(os.path.sameopenfile(lock.fileno(), each.fileno()) for each in _locked)
            writer = "this process" if mine else "another process"
            raise ValueError(
                f"{field}={str(folder)!r}: {writer} is writing to it; wait for it, or name another folder"
            ) from error
        except OSError as error:
            warnings.warn(
                f"{folder} is on a file system without locks ({error}): make sure that nothing else writes to it",
                stacklevel=3,  # through contextlib, to the caller
            )
        _locked.add(lock)
        try:
            yield
        finally:
            _locked.discard(lock)
