"""Files that are complete at any moment, durable ones on the disk before they are seen; and the lock of a folder."""

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from sit_atconv.utils.files import (
    LOCK,
    STAGING,
    append_line,
    check_new_file,
    check_new_folder,
    check_no_links,
    folder_lock,
    open_to_append,
    remove,
    remove_staged,
    staged,
    sync,
    write_atomically,
    write_json,
    write_report,
)


@pytest.fixture
def disk_events(monkeypatch) -> list[tuple]:
    """What is synced, with the size that it has then, and what is renamed, in order."""
    fsync, replace, events = os.fsync, os.replace, []

    def syncing(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        events.append(("sync", status.st_ino, None if stat.S_ISDIR(status.st_mode) else status.st_size))

    def replacing(source, target):
        replace(source, target)
        events.append(("replace", Path(target).name))

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    return events


def write_staged(file: Path) -> None:
    with staged(file) as part:
        part.write_bytes(b"new!")


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("write", [write_staged, lambda file: write_atomically(file, b"new!")])
def test_a_file_is_on_the_disk_before_it_is_seen(write, before, tmp_path, disk_events):
    file = tmp_path / "file"
    if before is not None:
        file.write_bytes(before)
    write(file)
    assert file.read_bytes() == b"new!"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    # the whole content, then the name, then the folder that holds the name
    assert disk_events == [
        ("sync", file.stat().st_ino, 4),
        ("replace", "file"),
        ("sync", tmp_path.stat().st_ino, None),
    ]


def test_a_file_that_need_not_survive_a_power_cut_is_not_waited_for(tmp_path, disk_events):
    with staged(tmp_path / "file", durable=False) as part:
        part.write_bytes(b"new!")
    assert disk_events == [("replace", "file")]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file(error, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(type(error)), staged(file) as part:
        assert part.parent == tmp_path and part.name.startswith(STAGING)
        part.write_bytes(b"half")
        assert file.read_bytes() == b"old"
        raise error
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failing_sync_publishes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        write_atomically(tmp_path / "file", "text")
    assert not list(tmp_path.iterdir())


def test_two_processes_stage_under_two_names(tmp_path, monkeypatch):
    with staged(tmp_path / "file", durable=False) as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with staged(tmp_path / "file", durable=False) as other:
            assert other != mine
            other.write_text("other")
        assert (tmp_path / "file").read_text() == "other"
    assert (tmp_path / "file").read_text() == "mine"


def test_text_and_json_are_utf8(tmp_path):
    write_atomically(tmp_path / "text", "σ ≤ 1\n")
    assert (tmp_path / "text").read_bytes() == "σ ≤ 1\n".encode()
    write_json(tmp_path / "new" / "deep" / "file.json", {"name": "σ", "values": [1, None]})
    text = (tmp_path / "new" / "deep" / "file.json").read_bytes().decode()
    assert json.loads(text) == {"name": "σ", "values": [1, None]}
    assert "σ" in text and text.endswith("}\n")


def test_sync_closes_what_it_opens(tmp_path, monkeypatch):
    opened, closed = [], []
    original_open, original_close = os.open, os.close
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(original_open(*arguments)) or opened[-1])
    monkeypatch.setattr(os, "close", lambda descriptor: closed.append(descriptor) or original_close(descriptor))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("I/O error")))
    with pytest.raises(OSError, match="I/O error"):
        sync(tmp_path)
    assert len(opened) == 1 and opened == closed


def test_a_report_replaces_nothing(tmp_path):
    file = tmp_path / "new" / "report.json"
    write_report(file, {"fid": 1.5})
    assert json.loads(file.read_text()) == {"fid": 1.5}
    with pytest.raises(FileExistsError):
        write_report(file, {"fid": 2.5})
    assert json.loads(file.read_text()) == {"fid": 1.5}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_report_that_is_cut_short_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(self, text, **options):
        self.touch()
        raise error

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(type(error)):
        write_report(tmp_path / "report.json", {"fid": 1.5})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_is_published_without_replacing_one(has_links, tmp_path, monkeypatch):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no hard links here")))
    file = tmp_path / "file"
    for content in (b"first", b"second"):
        try:
            with staged(file, replace=False) as part:
                part.write_bytes(content)
        except FileExistsError:
            assert content == b"second"
    assert file.read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_new_folders(tmp_path):
    check_new_folder("output", tmp_path / "not" / "there")
    check_new_folder("output", tmp_path)
    for leftover in (f"{STAGING}1-samples.json", ".lock", ".samples.json.part", ".000012.png.part"):
        (tmp_path / leftover).touch()
    check_new_folder("output", tmp_path)
    (tmp_path / ".movie.part").touch()  # not ours
    with pytest.raises(ValueError, match=r"holds other files \('.movie.part'\)"):
        check_new_folder("output", tmp_path)
    remove_staged(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".movie.part"}
    (tmp_path / ".movie.part").unlink()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"^output='.*' holds other files \('notes.txt'\); name a new folder$"):
        check_new_folder("output", tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt' is not a folder; name another"):
        check_new_folder("output", tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"cannot be written: .*notes.txt is not a folder"):
        check_new_folder("output", tmp_path / "notes.txt" / "inner")


def test_new_files(tmp_path):
    check_new_file("output", None)
    check_new_file("output", tmp_path / "not" / "there" / "yet.json")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^output='.*file' already exists; choose another name or remove it$"):
        check_new_file("output", tmp_path / "file")
    with pytest.raises(ValueError, match=r"^output='.*inner' already exists"):
        (tmp_path / "folder" / "inner").mkdir(parents=True)
        check_new_file("output", str(tmp_path / "folder" / "inner"))
    with pytest.raises(ValueError, match=r"cannot be written: .*file is not a folder that you may write to"):
        check_new_file("output", tmp_path / "file" / "inside.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250, "ä" * 126, f"{'x' * 300}/report.json"])
def test_names_that_are_too_long_even_when_staged(tmp_path, name):
    for check in (check_new_file, check_new_folder):
        with pytest.raises(ValueError, match=r"^output='.*' cannot be written: '.*' is too long a name; name another$"):
            check("output", tmp_path / name)
    check_new_file("output", tmp_path / ("x" * 200))
    write_report(tmp_path / ("x" * 200), {})


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)
    with pytest.raises(ValueError, match="is not a folder that you may write to"):
        check_new_folder("output", tmp_path)
    with pytest.raises(ValueError, match="is not a folder that you may write to"):
        check_new_file("output", tmp_path / "inner" / "file.json")


def take_lock(folder: Path, answers) -> None:
    try:
        with folder_lock(folder):
            answers.put("held")
    except ValueError as error:
        answers.put(str(error))


def test_one_process_at_a_time_holds_the_lock(tmp_path):
    pytest.importorskip("fcntl")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def ask() -> str:
        process = context.Process(target=take_lock, args=(tmp_path, answers))
        process.start()
        answer = answers.get(timeout=60)
        process.join(timeout=60)
        return answer

    with folder_lock(tmp_path):
        assert (
            ask()
            == f"output_dir={str(tmp_path)!r}: another process is writing to it; wait for it, or name another folder"
        )
    assert ask() == "held"
    with folder_lock(tmp_path):  # free again, since that process has ended
        pass


def test_file_system_without_locks_is_warned_about(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks available")))
    with pytest.warns(UserWarning, match=r"without locks \(no locks available\)"), folder_lock(tmp_path):
        pass


def test_a_process_cannot_hold_a_lock_twice(tmp_path):
    pytest.importorskip("fcntl")
    with folder_lock(tmp_path):
        with pytest.raises(ValueError, match="this process is writing to it; wait for it, or name another folder"):
            folder_lock(tmp_path).__enter__()
        with pytest.raises(ValueError, match="this process is writing to it"):  # which did not free it
            folder_lock(tmp_path).__enter__()
    with folder_lock(tmp_path):
        pass


def test_reading_the_lock_file_does_not_free_the_lock(tmp_path):
    pytest.importorskip("fcntl")
    with folder_lock(tmp_path):
        (tmp_path / LOCK).read_bytes()
        with (tmp_path / LOCK).open("r+"):
            pass
        answers = multiprocessing.get_context("fork").Queue()
        process = multiprocessing.get_context("fork").Process(target=take_lock, args=(tmp_path, answers))
        process.start()
        assert "another process is writing to it" in answers.get(timeout=60)
        process.join(timeout=60)


def hold_lock_and_fork(folder: Path, pipe) -> None:
    with folder_lock(folder):
        worker = multiprocessing.get_context("fork").Process(target=pipe.recv)
        worker.start()
        pipe.send(worker.pid)
        os._exit(1)  # as after a kill: the worker lives on


def test_a_worker_that_outlives_its_process_does_not_hold_the_lock(tmp_path):
    pytest.importorskip("fcntl")
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_lock_and_fork, args=(tmp_path, theirs))
    process.start()
    worker = ours.recv()
    process.join()  # without a timeout, which would wait for the worker, too
    os.kill(worker, 0)  # it is there
    with folder_lock(tmp_path):
        pass
    ours.send("end")


# links: a folder from somebody else may contain some


@pytest.fixture
def victim(tmp_path):
    """A file of the user, outside the folder that is written."""
    file = tmp_path / "victim"
    file.write_text("precious\n")
    yield file
    assert file.read_text() == "precious\n"


@pytest.fixture
def foreign(tmp_path) -> Path:
    (tmp_path / "foreign").mkdir()
    return tmp_path / "foreign"


def test_a_lock_that_is_a_link_is_refused(foreign, victim):
    pytest.importorskip("fcntl")
    (foreign / LOCK).symlink_to(victim)
    with pytest.raises(ValueError, match=r"\.lock is a link, and nothing is written through links; remove it"):
        folder_lock(foreign).__enter__()
    (foreign / LOCK).unlink()
    (foreign / LOCK).symlink_to(foreign / "nowhere")
    with pytest.raises(ValueError, match="is a link"):
        folder_lock(foreign).__enter__()
    assert not (foreign / "nowhere").exists()
    (foreign / LOCK).unlink()
    with folder_lock(foreign):  # the remedy works
        pass


def test_taking_a_lock_empties_nothing(foreign):
    pytest.importorskip("fcntl")
    (foreign / LOCK).write_text("something")
    with folder_lock(foreign):
        assert (foreign / LOCK).read_text() == "something"


@pytest.mark.parametrize("write", [append_line, lambda file, line: open_to_append(file).write(line)])
def test_nothing_is_appended_through_a_link(write, foreign, victim):
    (foreign / "log.jsonl").symlink_to(victim)
    with pytest.raises(ValueError, match=r"log\.jsonl is a link, and nothing is written through links; remove it"):
        write(foreign / "log.jsonl", "line")


def test_a_pipe_is_not_waited_for(foreign):
    os.mkfifo(foreign / "log.jsonl")
    with pytest.raises(ValueError, match="is not a regular file"):
        append_line(foreign / "log.jsonl", "line")


def test_a_link_is_replaced_and_not_followed(foreign, victim):
    (foreign / "file").symlink_to(victim)
    (foreign / f"{STAGING}{os.getpid()}-file").symlink_to(victim)  # where the file is written first
    write_atomically(foreign / "file", "new")
    assert not (foreign / "file").is_symlink()
    assert [path.name for path in foreign.iterdir()] == ["file"]
    assert (foreign / "file").read_text() == "new"


def test_links_in_the_place_of_folders_are_named(foreign, victim):
    (foreign / "samples").symlink_to(victim.parent)
    (foreign / "own").symlink_to(victim)
    check_no_links(foreign, ["checkpoints", "pipeline"])
    with pytest.raises(ValueError, match=r"foreign/samples is a link, and nothing is written .* make the whole folder"):
        check_no_links(foreign, ["checkpoints", "samples"])
    (victim.parent / "link").symlink_to(foreign)
    check_no_links(victim.parent / "link", ["checkpoints"])  # the user's own link to the whole folder


def test_removing_a_link_leaves_what_it_points_to(foreign, victim):
    (foreign / "inner").mkdir()
    (foreign / "inner" / "link").symlink_to(victim.parent)
    (foreign / "link").symlink_to(victim.parent)
    for name in ("inner", "link", "missing"):
        remove(foreign / name)
    assert not list(foreign.iterdir())


def test_a_line_does_not_continue_one_that_was_cut_short(tmp_path):
    (tmp_path / "log").write_text("one\ntw")
    append_line(tmp_path / "log", "three")
    append_line(tmp_path / "log", "four")
    assert (tmp_path / "log").read_text() == "one\ntw\nthree\nfour\n"
