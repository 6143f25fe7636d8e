"""Encoding survives kills, is done by any number of processes, and leaves broken images out."""

import multiprocessing
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from latents_stand_in import IMAGES, contents, options

from sit_atconv.data import LatentsDataset, open_dataset
from sit_atconv.models.vae import encode as vae_encode
from sit_atconv.models.vae import load_vae
from sit_atconv.training import encode
from sit_atconv.utils.files import folder_lock


@pytest.fixture(autouse=True)
def fresh_process_state():
    """Each encoding starts as in a new process."""
    AcceleratorState._reset_state(reset_partial_state=True)


def in_child(function) -> int:
    """Run in a forked process; its exit code, −9 where it was killed."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


def encode_until(operation: int, arguments: dict) -> None:
    """Encode, and die by SIGKILL at the n-th fsync or renaming: half of the times before it, half after it."""
    count = 0

    def counted(original):
        def call(*positional):
            nonlocal count
            count += 1
            if count == operation and operation % 4 < 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*positional)
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    os.fsync, Path.replace = counted(os.fsync), counted(Path.replace)
    encode.encode_latents(**arguments)


@pytest.mark.slow
def test_killed_at_any_write_it_continues_and_shows_no_part(photos, vae, latents, tmp_path):
    expected = contents(latents)
    arguments = options(photos, vae, tmp_path / "cache")
    killed = 0
    for operation in (1, 2, 3, 4, 6, 7, 8, 9, 5, 6):
        killed += in_child(lambda operation=operation: encode_until(operation, arguments)) == -signal.SIGKILL
        for name, data in contents(tmp_path / "cache").items() if (tmp_path / "cache").exists() else ():
            if name.startswith("shard") and name.endswith("safetensors"):
                assert data == expected[name], f"{name} after {operation}"
        if not (tmp_path / "cache" / "manifest.json").exists():
            with pytest.raises(ValueError, match="manifest"):
                LatentsDataset(tmp_path / "cache")
    assert killed >= 8
    assert in_child(lambda: encode.encode_latents(**arguments)) == 0
    assert contents(tmp_path / "cache") == expected
    # once more: nothing is left to do
    stamps = [file.stat().st_mtime_ns for file in sorted((tmp_path / "cache").iterdir())]
    assert encode.encode_latents(**arguments) is None
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "cache").iterdir())] == stamps


def test_two_processes_write_the_same_folder(photos, vae, latents, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def encode_as(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        encode.encode_latents(**options(photos, vae, tmp_path / "cache"))
        assert AcceleratorState().num_processes == 2

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=encode_as, args=(rank,)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert contents(tmp_path / "cache") == contents(latents)


def test_two_commands_cannot_write_to_one_folder(photos, vae, tmp_path):
    def second() -> None:
        with pytest.raises(ValueError, match="another process is writing to it"):
            encode.encode_latents(**options(photos, vae, tmp_path / "cache"))

    (tmp_path / "cache").mkdir()
    with folder_lock(tmp_path / "cache"):
        assert in_child(second) == 0
    assert contents(tmp_path / "cache") == {}


def test_broken_images_are_left_out_up_to_a_limit(photos, vae, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("cat/02.png", "dog/05.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    arguments = options(tmp_path / "photos", vae, tmp_path / "cache", max_broken_images=1)
    with pytest.raises(ValueError, match="max_broken_images=1: 2 images") as stopped:
        encode.encode_latents(**arguments)
    assert "02.png" in str(stopped.value)
    assert "05.png" in str(stopped.value)
    assert not (tmp_path / "cache" / "shard-00005.safetensors").exists()  # it has stopped at the second broken image
    manifest = encode.encode_latents(**arguments | {"max_broken_images": 2})
    assert manifest["num_images"] == IMAGES - 2
    assert "02.png" in manifest["broken"][0]
    cached = open_dataset(tmp_path / "cache")
    assert len(cached) == IMAGES - 2
    images = open_dataset(photos, 16)
    readable = [i for i in range(IMAGES) if images.files[i].name not in ("02.png", "05.png")]
    np.testing.assert_array_equal(cached.labels, images.labels[readable])
    mean = cached.latents(1, False, torch.zeros(4, 8, 8))
    model = load_vae(str(vae))
    torch.testing.assert_close(mean, vae_encode(model, images.tensor(readable[1])[None])[0], rtol=1e-4, atol=1e-5)


def test_latents_inside_their_images_are_refused(photos, vae):
    with pytest.raises(ValueError, match=r"output_dir=.*lies inside data=.*name a folder outside"):
        encode.encode_latents(**options(photos, vae, photos / "cat" / "latents"))
    assert not (photos / "cat" / "latents").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_dead_data_worker_is_named_and_the_same_command_goes_on(number, photos, vae, latents, tmp_path, monkeypatch):
    original, calls = encode.encode_batch, []

    def killing(*arguments):
        calls.append(None)
        if len(calls) == 2:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, number)
        return original(*arguments)

    monkeypatch.setattr(encode, "encode_batch", killing)
    arguments = options(photos, vae, tmp_path / "cache", num_workers=2, batch_size=1)
    message = (
        f"a data worker died: it was killed by {number.name}.*num_workers=2: .* the same command encodes the others"
    )
    with pytest.raises(ChildProcessError, match=message):
        encode.encode_latents(**arguments)
    AcceleratorState._reset_state(reset_partial_state=True)
    encode.encode_latents(**arguments)
    assert contents(tmp_path / "cache").keys() == contents(latents).keys()
