"""The command that encodes images, and training from the latents that it writes."""

import errno
import json
import os
import shutil
import time

import encode_latents
import numpy as np
import pytest
import timm
import torch
import train_sit
from accelerate.state import AcceleratorState
from command_runs import refused
from diffusers import AutoencoderKL
from latents_stand_in import contents, options
from PIL import Image
from safetensors.torch import load_file, save_file

from sit_atconv import SiTPipeline
from sit_atconv.data import open_dataset
from sit_atconv.training import build, encode, repa
from sit_atconv.training.loop import train
from sit_atconv.utils.hashing import file_sha256


def test_full_disk_ends_with_one_line(photos, vae, tmp_path, capsys, monkeypatch):
    def write_shard(*_) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(encode, "write_shard", write_shard)
    arguments = ["--data", photos, "--vae", vae, "--output_dir", tmp_path / "cache", "--image_size", 16]
    assert "error: [Errno 28] No space left on device" in refusal(capsys, encode_latents.main, *arguments)


@pytest.mark.parametrize("module", [encode, build])
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
            if module is build:
                train(train_sit.parse_arguments(["--output_dir", str(tmp_path / "run")]))
            else:
                encode.encode_latents(**options(photos, vae, tmp_path / "cache"))

    monkeypatch.setattr(module, "open_dataset", open_dataset)
    assert processes(2, member) == [0, 0]
    assert (tmp_path / "log").read_text().split("\n") == ["begin 0", "end 0", "begin 1", "end 1", ""]


def refusal(capsys, main, *arguments) -> str:
    return refused(capsys, main, *arguments)


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


@pytest.mark.slow
def test_training_from_latents(latents, photos, vae, tmp_path):
    def trained(folder, data, *others):
        arguments = [*TINY, "--output_dir", str(tmp_path / folder), "--vae", str(vae), "--data", str(data), *others]
        return train(train_sit.parse_arguments([*arguments, "--horizontal_flip", "true"]))

    pipelines = [trained("cached", latents), trained("images", photos, "--image_size", "16")]
    one, other = (load_file(path / "transformer" / "diffusion_pytorch_model.safetensors") for path in pipelines)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=2e-5)
    pipeline = SiTPipeline.from_pretrained(pipelines[0])
    assert pipeline.labels == {"cat": 0, "dog": 1}
    assert pipeline("dog", num_inference_steps=2).images[0].size == (16, 16)


@pytest.mark.slow
def test_training_from_latents_and_targets_is_that_which_computes_both(photos, vae, tmp_path, monkeypatch):
    """Without the encoder, whose features are rounded to half precision."""
    vit, cache = tmp_path / "vit.safetensors", tmp_path / "cache"
    torch.manual_seed(5)
    save_file(timm.create_model("test_vit.r160_in1k", num_classes=0).state_dict(), vit)
    targets = dict(targets="timm:test_vit.r160_in1k", targets_weights=str(vit))
    encode.encode_latents(**options(photos, vae, cache, **targets))

    def trained(folder, data, *others):
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = [*TINY, "--output_dir", str(tmp_path / folder), "--vae", str(vae), "--data", str(data), *others]
        arguments += ["--repa", "test_vit.r160_in1k", "--repa_weights", str(vit), "--repa_depth", "1"]
        arguments += ["--repa_projector", "conv", "--repa_spatial_norm", "0.6", "--repa_steps", "3"]
        train(train_sit.parse_arguments([*arguments, "--horizontal_flip", "true"]))
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        checkpoint = tmp_path / folder / "checkpoints" / "step-00000004"
        return lines, {name: load_file(checkpoint / f"{name}.safetensors") for name in ("model", "projector")}

    whole_lines, whole = trained("images", photos, "--image_size", "16")

    def no_encoder(*_):
        raise AssertionError("the encoder is not needed")

    monkeypatch.setattr(repa.TargetEncoder, "__init__", no_encoder)
    monkeypatch.setattr(AutoencoderKL, "encode", no_encoder)
    lines, cached = trained("cached", cache)
    for one, other in zip(lines, whole_lines, strict=True):
        assert one["alignment_loss"] == pytest.approx(other["alignment_loss"], abs=1e-4)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for name, tensors in whole.items():
        for key, value in tensors.items():
            torch.testing.assert_close(cached[name][key], value, rtol=1e-3, atol=1e-4)
    assert lines[0]["alignment_loss"] != 0


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


@pytest.mark.slow
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
