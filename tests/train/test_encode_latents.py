"""Latents computed once: what they hold, that nothing interrupts them for good, and that training refuses others."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from pathlib import Path

import encode_latents
import numpy as np
import pytest
import torch
import train_sit
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

from sit_atconv import SiTPipeline
from sit_atconv.data import LatentsDataset, TrainingView, open_dataset
from sit_atconv.models.vae import encode as vae_encode
from sit_atconv.models.vae import load_vae
from sit_atconv.training import encode
from sit_atconv.utils.files import folder_lock
from sit_atconv.utils.hashing import file_sha256, tensors_sha256

IMAGES = 22


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            shift_factor=0.1,
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        file = folder / ("cat", "dog")[i % 2] / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


def options(photos, vae, folder, **others) -> dict:
    return (
        dict(
            data=str(photos),
            vae=str(vae),
            output_dir=str(folder),
            image_size=16,
            flip=True,
            shard_size=4,
            batch_size=3,
            num_workers=0,
        )
        | others
    )


@pytest.fixture(scope="module")
def latents(photos, vae, tmp_path_factory):
    """The folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("latents") / "cache"
    encode.encode_latents(**options(photos, vae, folder))
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != ".lock"}


def test_folder_holds_the_posterior_of_every_image(latents, photos, vae):
    assert list(contents(latents)) == [
        "manifest.json",
        *(f"shard-{i:05d}.safetensors" for i in range(6)),
    ]
    shards = [load_file(file) for file in sorted(latents.glob("*.safetensors"))]
    assert [len(shard["label"]) for shard in shards] == [4, 4, 4, 4, 4, 2]
    merged = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    images, model = open_dataset(photos, 16), load_vae(str(vae))
    assert merged["index"].tolist() == list(range(IMAGES))
    assert merged["label"].tolist() == images.labels.tolist()
    for suffix, flip in (("", False), ("_flipped", True)):
        posterior = model.encode(torch.stack([images.tensor(i, flip) for i in range(IMAGES)])).latent_dist
        torch.testing.assert_close(merged[f"mean{suffix}"], posterior.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merged[f"std{suffix}"], posterior.std, rtol=1e-4, atol=1e-5)

    manifest = json.loads((latents / "manifest.json").read_text())
    assert manifest["vae"] == {
        "name": str(vae),
        "class": "AutoencoderKL",
        "sha256": tensors_sha256(model.state_dict()),
        "scaling_factor": 0.18215,
        "shift_factor": 0.1,
    }
    assert manifest["latents"] == {"shape": [4, 8, 8], "dtype": "float32", "std": True, "flip": True}
    assert (manifest["num_images"], manifest["image_size"], manifest["classes"]) == (IMAGES, 16, ["cat", "dog"])
    assert (manifest["source"], manifest["source_fingerprint"]) == (str(photos), images.fingerprint())
    for shard in manifest["shards"]:
        file = latents / shard["file"]
        data = file.read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_training_sees_what_it_would_see_from_images(latents, photos, vae):
    cached, images, model = open_dataset(latents), open_dataset(photos, 16), load_vae(str(vae))
    assert isinstance(cached, LatentsDataset)
    assert (cached.name, cached.classes, cached.image_size, cached.channels) == ("photos", ["cat", "dog"], 16, 3)
    views = [TrainingView(data, 0, True, (4, 8, 8), posterior=True) for data in (cached, images)]
    flipped = 0
    for index in range(IMAGES):
        for position in (index, index + 1000):
            seen, expected = (view[index, position] for view in views)
            x = vae_encode(model, expected["x"][None], expected["posterior"][None])[0]
            torch.testing.assert_close(seen["x"], x, rtol=1e-4, atol=1e-5)
            for name in ("noise", "time", "dropout", "label"):
                assert torch.equal(torch.as_tensor(seen[name]), torch.as_tensor(expected[name]))
            flipped += not torch.equal(expected["x"], images.tensor(index))
    assert 10 < flipped < 34
    first, second = (views[0][3, position]["x"] for position in (3, 4))
    assert not torch.isclose(first, second).all()  # each epoch draws anew


def test_half_precision_and_tiny_autoencoders(photos, vae, latents, tmp_path):
    encode.encode_latents(**options(photos, vae, tmp_path / "half", dtype="float16", flip=False))
    half, full = open_dataset(tmp_path / "half"), open_dataset(latents)
    noise = torch.zeros(4, 8, 8)
    assert half.latents(5, False, noise).dtype == torch.float32
    torch.testing.assert_close(half.latents(5, False, noise), full.latents(5, False, noise), rtol=2e-3, atol=2e-3)
    assert (tmp_path / "half" / "shard-00000.safetensors").stat().st_size < 0.3 * (
        latents / "shard-00000.safetensors"
    ).stat().st_size

    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "tiny")
    encode.encode_latents(**options(photos, tmp_path / "tiny", tmp_path / "tinys"))
    tiny, model = open_dataset(tmp_path / "tinys"), load_vae(str(tmp_path / "tiny"))
    expected = vae_encode(model, open_dataset(photos, 16).tensor(5, flip=True)[None])[0]
    torch.testing.assert_close(tiny.latents(5, True, noise), expected, rtol=1e-4, atol=1e-5)


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


def test_full_disk_ends_with_one_line(photos, vae, tmp_path, capsys, monkeypatch):
    def write_shard(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(encode, "write_shard", write_shard)
    arguments = ["--data", photos, "--vae", vae, "--output_dir", tmp_path / "cache", "--image_size", 16]
    assert "error: [Errno 28] No space left on device" in refusal(capsys, encode_latents.main, *arguments)


@pytest.mark.parametrize("module", [encode, train_sit])
def test_one_process_opens_the_data_before_the_others(module, photos, vae, tmp_path, monkeypatch, processes):
    """So that what it downloads or indexes is there for them, and a mistake is found by all of them."""

    def open_dataset(*_) -> None:
        with (tmp_path / "log").open("a") as log:
            print("begin", os.environ["RANK"], file=log, flush=True)
            time.sleep(0.3)
            print("end", os.environ["RANK"], file=log, flush=True)
        raise ValueError("no data")

    def member(rank: int) -> None:
        with pytest.raises(ValueError, match="no data"):
            if module is train_sit:
                train_sit.train(train_sit.parse_arguments(["--output_dir", str(tmp_path / "run")]))
            else:
                encode.encode_latents(**options(photos, vae, tmp_path / "cache"))

    monkeypatch.setattr(module, "open_dataset", open_dataset)
    assert processes(2, member) == [0, 0]
    assert (tmp_path / "log").read_text().split("\n") == ["begin 0", "end 0", "begin 1", "end 1", ""]


def test_broken_images_are_left_out_up_to_a_limit(photos, vae, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("cat/02.png", "dog/05.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    arguments = options(tmp_path / "photos", vae, tmp_path / "cache", max_broken_images=1)
    with pytest.raises(ValueError, match="max_broken_images=1: 2 images") as stopped:
        encode.encode_latents(**arguments)
    assert "02.png" in str(stopped.value)
    assert "05.png" in str(stopped.value)
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


def refusal(capsys, main, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_folders_that_hold_something_else(photos, vae, latents, tmp_path, capsys):
    def message(folder, *others):
        arguments = ["--data", photos, "--vae", vae, "--output_dir", folder, "--image_size", 16, "--flip", "true"]
        return refusal(capsys, encode_latents.main, *arguments, "--shard_size", 4, "--batch_size", 3, *others)

    before = contents(latents)
    assert "latents.dtype: 'float32' -> 'float16'" in message(latents, "--dtype", "float16")
    assert "latents.flip: True -> False" in message(latents, "--flip", "false")
    assert "image_size: 16 -> 8" in message(latents, "--image_size", 8)
    assert contents(latents) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "is not empty" in message(tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert "dtype='int8' is not one of" in message(tmp_path / "new", "--dtype", "int8")
    assert "must be divisible by 2" in message(tmp_path / "new", "--image_size", 15)
    assert "takes 3 channels" in message(tmp_path / "new", "--data", "digits", "--image_size", 8)
    assert "holds precomputed latents" in message(tmp_path / "new", "--data", latents)
    assert not (tmp_path / "new").exists()


TINY = ["--model.num_layers", "2", "--batch_size", "8", "--log_every", "2", "--sample_steps", "2", "--max_steps", "4"]


def test_training_from_latents(latents, photos, vae, tmp_path):
    def train(folder, data, *others):
        arguments = [*TINY, "--output_dir", str(tmp_path / folder), "--vae", str(vae), "--data", str(data), *others]
        return train_sit.train(train_sit.parse_arguments([*arguments, "--horizontal_flip", "true"]))

    pipelines = [train("cached", latents), train("images", photos, "--image_size", "16")]
    one, other = (load_file(path / "transformer" / "diffusion_pytorch_model.safetensors") for path in pipelines)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=2e-5)
    pipeline = SiTPipeline.from_pretrained(pipelines[0])
    assert pipeline.labels == {"cat": 0, "dog": 1}
    assert pipeline("dog", num_inference_steps=2).images[0].size == (16, 16)


def test_training_refuses_latents_that_do_not_match(latents, photos, vae, tmp_path, capsys):
    def message(*arguments):
        text = refusal(capsys, train_sit.main, *TINY, "--output_dir", tmp_path / "run", *arguments)
        assert not (tmp_path / "run").exists()
        return text

    assert f"--vae {vae}" in message("--data", latents)
    other = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        other.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    assert "sha256: " in message("--data", latents, "--vae", tmp_path / "other")
    other = AutoencoderKL.from_pretrained(vae, scaling_factor=0.5)
    other.save_pretrained(tmp_path / "scaled")
    assert "scaling_factor: 0.18215 -> 0.5" in message("--data", latents, "--vae", tmp_path / "scaled")
    assert "image_size=32" in message("--data", latents, "--vae", vae, "--image_size", 32)

    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["latents"]["flip"] = False
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "--flip true" in message("--data", copy, "--vae", vae, "--horizontal_flip", "true")
    with (copy / "shard-00002.safetensors").open("ab") as opened:
        opened.write(b"x")
    assert "shard-00002.safetensors" in message("--data", f"latents:{copy}", "--vae", vae)
    (copy / "manifest.json").unlink()
    assert "no readable manifest.json" in message("--data", f"latents:{copy}", "--vae", vae)
    (copy / "encoding.json").write_text("{}")
    assert "encode_latents.py again" in message("--data", f"latents:{copy}", "--vae", vae)


def test_cifar10_through_an_autoencoder_from_parquet_to_picture(vae, tmp_path, capsys):
    """A parquet file as CIFAR-10 has it: encoded once, trained on, sampled by class."""
    datasets = pytest.importorskip("datasets")
    classes = ["airplane", "automobile", "bird"]
    rng = np.random.default_rng(0)
    colours = ((220, 40, 40), (40, 220, 40), (40, 40, 220))
    pictures = [np.clip(rng.normal(colours[i % 3], 20, (32, 32, 3)), 0, 255).astype(np.uint8) for i in range(48)]
    columns = {"img": [Image.fromarray(pixels) for pixels in pictures], "label": [i % 3 for i in range(48)]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "train.parquet")

    cache, run = tmp_path / "cifar10-latents", tmp_path / "run"
    common = ["--vae", str(vae), "--output_dir"]
    data = ["--data", str(tmp_path / "train.parquet"), "--image_size", "32", "--flip", "true", "--num_workers", "0"]
    encode_latents.main([*data, *common, str(cache)])
    assert "48 images" in capsys.readouterr().out
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["--data", str(cache), *common, str(run), "--horizontal_flip", "true", *TINY, "--learning_rate", "5e-3"]
    train_sit.main([*options, "--model.num_layers", "1", "--max_steps", "40", "--log_every", "10"])
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.8 * losses[0]
    pipeline = SiTPipeline.from_pretrained(run / "pipeline")
    assert pipeline.labels == {name: i for i, name in enumerate(classes)}
    assert pipeline(["bird"], num_inference_steps=2).images[0].size == (32, 32)


def test_shards_that_changed_are_found_before_training(latents, vae, tmp_path, capsys, monkeypatch):
    hashed = []
    monkeypatch.setattr(
        "sit_atconv.data.latents.file_sha256", lambda file: hashed.append(file.name) or file_sha256(file)
    )
    copy = tmp_path / "copy"
    shutil.copytree(latents, copy)
    open_dataset(copy).verify()
    assert sorted(hashed) == [f"shard-{i:05d}.safetensors" for i in range(6)]
    shard = copy / "shard-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-7] ^= 1
    shard.write_bytes(data)
    text = refusal(capsys, train_sit.main, *TINY, "--data", copy, "--vae", vae, "--output_dir", tmp_path / "run")
    assert "shard-00002.safetensors (1 of 6 shards) are not as they were written" in text
    assert hashed[6:] == [shard.name]  # the others are known to be whole
    assert not (tmp_path / "run").exists()


def test_evaluation_names_the_images_of_latents(latents, photos):
    dataset = open_dataset(latents)
    assert dataset.reference == str(photos)
    with pytest.raises(ValueError, match="no images; give the images that they were made of"):
        dataset.image(0)
