"""Training from all kinds of data: without classes, with broken images, with any number of workers."""

import io
import json

import numpy as np
import pytest
import torch
import train_sit
from PIL import Image
from safetensors.torch import load_file

from sit_atconv import SiTPipeline, cli
from sit_atconv.data import BrokenImageError

TINY = ["--model.num_layers", "2", "--batch_size", "8", "--log_every", "1", "--sample_steps", "2"]


def run(folder, *arguments, steps: int = 3):
    options = ["--output_dir", folder, "--max_steps", steps, *TINY, *arguments]
    return train_sit.train(train_sit.parse_arguments([str(option) for option in options]))


def weights(pipeline) -> dict[str, torch.Tensor]:
    return load_file(pipeline / "transformer" / "diffusion_pytorch_model.safetensors")


def png(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def flat(tmp_path):
    """Sixteen images without classes."""
    (tmp_path / "faces").mkdir()
    rng = np.random.default_rng(0)
    for i in range(16):
        (tmp_path / "faces" / f"{i:02d}.png").write_bytes(png(rng))
    return tmp_path / "faces"


def test_training_without_classes_through_sampling(tmp_path, flat, capsys):
    folder = run(tmp_path / "run", "--data", flat, "--image_size", 8)
    pipeline = SiTPipeline.from_pretrained(folder)
    assert (pipeline.transformer.config.num_classes, pipeline.transformer.config.class_dropout_prob) == (1, 0)
    assert pipeline.labels == {}
    assert [image.size for image in pipeline(batch_size=2, num_inference_steps=2).images] == [(8, 8)] * 2
    with pytest.raises(ValueError, match="cannot be guided"):
        pipeline(guidance_scale=2.0)
    cli.main(["sample", str(folder), "--out", str(tmp_path / "faces.png"), "--num_inference_steps", "2"])
    assert (tmp_path / "faces.png").is_file()
    assert "16 images without classes" in capsys.readouterr().out


@pytest.mark.parametrize("accumulation", [1, 2])
def test_workers_change_nothing(tmp_path, accumulation):
    options = ("--horizontal_flip", "true", "--gradient_accumulation_steps", accumulation)
    alone, shared = (weights(run(tmp_path / str(n), "--num_workers", n, *options)) for n in (0, 2))
    for name, value in alone.items():
        assert torch.equal(value, shared[name]), name


def test_broken_images_are_skipped_listed_and_counted(tmp_path, flat):
    for name in ("03.png", "11.png"):
        (flat / name).write_bytes(b"no image")
    options = ("--data", flat, "--image_size", 8)
    alone = weights(run(tmp_path / "0", *options))
    shared = weights(run(tmp_path / "2", *options, "--num_workers", 2))
    for name, value in alone.items():
        assert torch.equal(value, shared[name]), name
    run(tmp_path / "resumed", *options, steps=2)
    run(tmp_path / "resumed", *options, "--resume", "latest")
    lines = (tmp_path / "0" / "broken_images.txt").read_text().splitlines()
    assert sorted(line.partition("\t")[0] for line in lines) == ["11", "3"]
    assert all("cannot be read as an image" in line for line in lines)
    assert len((tmp_path / "resumed" / "broken_images.txt").read_text().splitlines()) == 2
    losses = [json.loads(line)["loss"] for line in (tmp_path / "0" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()
    with pytest.raises(BrokenImageError, match=r"max_broken_images=1: 2 images") as stopped:
        run(tmp_path / "stopped", *options, "--max_broken_images", 1)
    assert "03.png" in str(stopped.value)
    assert "11.png" in str(stopped.value)


def test_training_from_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    columns = {"image": [png(rng) for _ in range(16)], "label": ["cat", "dog"] * 8}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "pets.parquet")
    folder = run(tmp_path / "run", "--data", tmp_path / "pets.parquet", "--image_size", 8, "--num_workers", 2)
    assert SiTPipeline.from_pretrained(folder).labels == {"cat": 0, "dog": 1}
