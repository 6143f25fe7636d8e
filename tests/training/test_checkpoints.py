import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import stat
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_atconv.training import checkpoints
from sit_atconv.training.checkpoints import (
    checkpoint_steps,
    read_checkpoint,
    read_state,
    recover_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from sit_atconv.utils.hashing import file_sha256

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def tensors(step: int, size: int = 64) -> dict[str, dict[str, torch.Tensor]]:
    """Told apart by the step."""
    return {
        "model": {"a": torch.full((size, 8), float(step)), "b": torch.tensor(step)},
        "optimizer": {"a|exp_avg": torch.arange(size) + step},
    }


def save(folder: Path, step: int, **options) -> Path:
    return save_checkpoint(folder, step, tensors(step), {"step": step}, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip(tmp_path):
    path = save(tmp_path, 7)
    loaded, state = read_checkpoint(path)
    assert state == {"step": 7}
    assert loaded.keys() == {"model", "optimizer"}
    for part, values in tensors(7).items():
        assert loaded[part].keys() == values.keys()
        assert all(torch.equal(loaded[part][name], value) for name, value in values.items())


def test_files_are_hashed_at_the_same_time(tmp_path, monkeypatch):
    """In a model of gigabytes it is this that a stop waits for."""
    together, hashed = threading.Barrier(3), checkpoints.file_sha256

    def hashing(file):
        together.wait(10)  # for the two files of tensors and the state
        return hashed(file)

    monkeypatch.setattr(checkpoints, "file_sha256", hashing)
    verify_checkpoint(save(tmp_path, 1))


def test_rotation_keeps_the_newest_and_the_milestones(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step, keep=2, keep_every=3)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (3, 5, 6, 7)]


def test_old_checkpoints_are_hidden_before_they_are_removed(tmp_path, monkeypatch):
    """Removing takes a while, in which a kill must not leave half of one in sight."""
    removed, rmtree = [], shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, **options: removed.append(Path(path).name) or rmtree(path))
    for step in (1, 2, 3):
        save(tmp_path, step, keep=1)
    save(tmp_path, 3, keep=1)  # again, as after a fall-back to an older one
    assert len(removed) == 3
    assert all(name.startswith(".staging-") for name in removed)
    assert names(tmp_path) == ["step-00000003"]


def test_rotation_comes_after_publication(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        save(tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-00000001"]


def test_saves_that_were_killed_are_swept(tmp_path):
    (tmp_path / ".staging-step-00000003").mkdir()
    (tmp_path / ".staging-step-00000003" / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 4)
    assert names(tmp_path) == ["step-00000004"]


def test_all_is_on_the_disk_before_it_is_seen(tmp_path, monkeypatch):
    """The files, whole, and their folder before the rename; the folder with the new name in it after it."""
    fsync, rename, events = os.fsync, os.rename, []

    def syncing(descriptor):
        fsync(descriptor)
        status = os.fstat(descriptor)
        events.append(("sync", status.st_ino, None if stat.S_ISDIR(status.st_mode) else status.st_size))

    def renaming(source, target):
        rename(source, target)
        events.append(("rename", Path(target).name))

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    path = save(tmp_path, 7)
    published = events.index(("rename", path.name))
    assert names(path) == sorted(FILES)
    for name in FILES:
        status = (path / name).stat()
        assert ("sync", status.st_ino, status.st_size) in events[:published], name
    assert ("sync", path.stat().st_ino, None) in events[:published]
    assert events[published + 1 :] == [("sync", tmp_path.stat().st_ino, None)]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_and_the_previous_checkpoint_taken(tmp_path, name, damage):
    for step in (1, 2):
        save(tmp_path, step)
    file = tmp_path / "step-00000002" / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-5])
    else:
        place = content.index(b'"sha256": "') + 15 if name == "manifest.json" else len(content) - 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match="step-00000002"):
        verify_checkpoint(tmp_path / "step-00000002")
    expected = "step-00000002: .*falling back to .*step-00000001"
    with pytest.warns(UserWarning, match=expected) as warned:
        assert recover_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert name in str(warned[0].message) or name == "manifest.json"  # a changed hash names the file it is of
    # out of the way of rotation, but not lost
    assert names(tmp_path) == ["step-00000001", "step-00000002.corrupt"]
    assert recover_checkpoint(tmp_path) == tmp_path / "step-00000001"


def test_no_good_checkpoint_is_an_error_that_names_the_files(tmp_path):
    assert recover_checkpoint(tmp_path) is None
    for step in (1, 2):
        (save(tmp_path, step) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step-00000002: model.safetensors is missing; .*step-00000001: model"):
        recover_checkpoint(tmp_path)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


class Payload:
    """Unpickled, it leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("name", FILES)
def test_no_file_can_run_code(tmp_path, name, protocol):
    """Even where whoever wrote the payload has put its hash into the manifest."""
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Payload(trace), protocol))
    assert trace.exists()  # the payload works
    trace.rmdir()
    path = save(tmp_path / "checkpoints", 1)
    payload = pickle.dumps(Payload(trace), protocol)
    (path / name).write_bytes(payload)
    if name != "manifest.json":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][name] = {"bytes": len(payload), "sha256": file_sha256(path / name)}
        (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=name):
        verify_checkpoint(path)
        read_checkpoint(path)
    torch.save(Payload(trace), path / name)  # PyTorch's own format, too
    with pytest.raises(ValueError, match=name):
        read_checkpoint(path)
    assert not trace.exists()


def test_manifest_cannot_point_outside(tmp_path):
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../../secret.json"] = {"bytes": 1, "sha256": ""}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_checkpoint(path)


def test_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    save(tmp_path, 1, keep=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100))
    with pytest.raises(OSError, match="the disk is full"):
        save(tmp_path, 2, keep=1)
    assert recover_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert names(tmp_path) == ["step-00000001"]


def _save_with_small_files(folder: Path, pipe) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        save_checkpoint(folder, 2, tensors(2, size=20_000), {"step": 2}, keep=1)
        pipe.send("saved")
    except OSError as error:
        pipe.send(str(error))


def test_failing_write_leaves_the_old_checkpoint(tmp_path):
    """The system refuses to go on in the middle of a file, as on a disk that others fill at the same time."""
    save(tmp_path, 1, keep=1)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_save_with_small_files, args=(tmp_path, theirs))
    child.start()
    child.join(30)
    assert "model.safetensors cannot be written" in ours.recv()
    assert names(tmp_path) == ["step-00000001"]
    verify_checkpoint(tmp_path / "step-00000001")


def _save_forever(folder: Path, step: int, ready) -> None:
    ready.set()
    while True:
        step += 1
        save_checkpoint(folder, step, tensors(step), {"step": step}, keep=2)


@pytest.mark.slow
def test_fifty_random_kills_never_cost_the_newest_checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    context = multiprocessing.get_context("fork")
    start = time.perf_counter()
    save(tmp_path, 1)
    one_save = time.perf_counter() - start
    step, leftovers = 1, 0
    for _ in range(50):
        ready = context.Event()
        child = context.Process(target=_save_forever, args=(tmp_path, step, ready))
        child.start()
        ready.wait()
        time.sleep(rng.uniform(0, min(4 * one_save, 0.1)))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        leftovers += any(path.name.startswith(".staging") for path in tmp_path.iterdir())
        newest, path = checkpoint_steps(tmp_path)[-1]
        assert newest >= step
        step = newest
        verify_checkpoint(path)
        loaded, state = read_checkpoint(path)
        assert state["step"] == step
        assert (loaded["model"]["a"] == step).all()
        assert (loaded["optimizer"]["a|exp_avg"] == torch.arange(64) + step).all()
    assert leftovers > 5  # the kills did fall into saves
    assert step > 3  # and between them
    save(tmp_path, step + 1, keep=2)
    assert names(tmp_path) == [f"step-{step:08d}", f"step-{step + 1:08d}"]


TRAINED = {"step": 1, "data": {}, "classes": ["a"], "window": {}, "transformer": {}, "scaler": None}


def crafted(folder: Path, file: str, content: bytes) -> Path:
    """A checkpoint with another file in it, and with hashes that fit."""
    path = save_checkpoint(folder, 1, tensors(1), TRAINED)
    (path / file).write_bytes(content)
    if file != "manifest.json":
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"][file] = {"bytes": len(content), "sha256": file_sha256(path / file)}
        (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize("file", ["state.json", "manifest.json"])
@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 1000 + b"1" + b"}" * 1000, b"[]", b"null", b"3", b"", b"{}", b"\xff\xfe", b"9" * 5000],
    ids=["deep-list", "deep-dict", "list", "null", "number", "empty", "nothing", "no-text", "long-number"],
)
def test_crafted_json_ends_with_the_name_of_its_file(tmp_path, file, content):
    path = crafted(tmp_path, file, content)
    with pytest.raises(ValueError, match=rf"^checkpoint {path}: {file} "):
        read_state(path)
    if (file, content) != ("state.json", b"{}"):
        with pytest.raises(ValueError, match=rf"^checkpoint {path}: {file} "):
            read_checkpoint(path)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("value", ["x", [[]], 1.5, ...])
def test_state_that_is_not_of_a_training_is_named(tmp_path, name, value):
    state = TRAINED | {name: value}
    if value is ...:
        del state[name]
    if name == "classes" and value == [[]]:
        return
    path = crafted(tmp_path, "state.json", json.dumps(state).encode())
    with pytest.raises(ValueError, match=rf"state\.json does not say {name} as a training does$"):
        read_state(path)
