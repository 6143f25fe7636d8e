"""Training from all kinds of data: without classes, with broken images, with any number of workers."""

import io
import json

import numpy as np
import pytest
import torch
import train_sit
from command_runs import weights
from PIL import Image

from sit_atconv import SiTPipeline, cli
from sit_atconv.training.loop import train

TINY = ["--model.num_layers", "2", "--batch_size", "8", "--log_every", "1", "--sample_steps", "2"]


def run(folder, *arguments, steps: int = 3):
    options = ["--output_dir", folder, "--max_steps", steps, *TINY, *arguments]
    return train(train_sit.parse_arguments([str(option) for option in options]))


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


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_workers_change_nothing(tmp_path, accumulation):
    options = ("--horizontal_flip", "true", "--gradient_accumulation_steps", accumulation)
    alone, shared = (weights(run(tmp_path / str(n), "--num_workers", n, *options)) for n in (0, 2))
    for name, value in alone.items():
        assert torch.equal(value, shared[name]), name


@pytest.mark.slow
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


def test_too_many_broken_images_stop_the_run_with_a_checkpoint(tmp_path, flat, capsys):
    for name in ("03.png", "11.png"):
        (flat / name).write_bytes(b"no image")
    options = ("--data", flat, "--image_size", 8)
    whole = weights(run(tmp_path / "whole", *options))
    for _ in range(2):  # the second time before anything is done
        options = (*options, "--max_broken_images", 1)
        with pytest.raises(ValueError, match=r"max_broken_images=1: 2 images .*raise --max_broken_images") as stopped:
            run(tmp_path / "stopped", *options, "--resume", "auto")
        assert "03.png" in str(stopped.value)
        assert "11.png" in str(stopped.value)
        [checkpoint] = (tmp_path / "stopped" / "checkpoints").iterdir()
        assert checkpoint.name < "step-00000003"
    resumed = weights(run(tmp_path / "stopped", *options, "--max_broken_images", 2, "--resume", "latest"))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_too_many_broken_images_of_one_process_stop_all(tmp_path, flat, processes):
    """Four pictures a process in the first batch, of which one is broken: one process meets it, both are told."""
    (flat / "03.png").write_bytes(b"no image")

    def member(rank: int) -> None:
        with pytest.raises(ValueError, match=r"1 image cannot (.|\n)*03.png"):
            run(tmp_path / "run", "--data", flat, "--image_size", 8, "--max_broken_images", 0)

    assert processes(2, member) == [0, 0]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1


def test_dry_run_with_a_broken_image_writes_nothing(tmp_path, flat, capsys):
    for file in list(flat.iterdir())[1:]:
        file.write_bytes(b"no image")
    options = ("--data", flat, "--image_size", 8, "--max_broken_images", 15)
    run(tmp_path / "run", *options, "--dry_run")
    assert "skipped: " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="max_broken_images=0"):
        run(tmp_path / "run", *options, "--dry_run", "--max_broken_images", 0)


def test_training_from_parquet(tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(0)
    columns = {"image": [png(rng) for _ in range(16)], "label": ["cat", "dog"] * 8}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "pets.parquet")
    folder = run(tmp_path / "run", "--data", tmp_path / "pets.parquet", "--image_size", 8, "--num_workers", 2)
    assert SiTPipeline.from_pretrained(folder).labels == {"cat": 0, "dog": 1}


def test_a_run_folder_inside_its_data_is_refused(tmp_path, flat):
    """Its pictures would be data when the run is resumed."""
    for folder in (flat / "run", flat / "deeper" / "run"):
        with pytest.raises(ValueError, match=r"output_dir=.*lies inside data=.*name a folder outside"):
            run(folder, "--data", flat, "--image_size", 8)
    assert len(list(flat.iterdir())) == 16


def test_the_plan_names_what_is_left_out(tmp_path, flat, capsys):
    (flat / "IMG_1.HEIC").write_bytes(b"not read")
    run(tmp_path / "run", "--data", flat, "--image_size", 8, "--dry_run")
    assert "1 file left out: 1 .HEIC (not read here)" in capsys.readouterr().out
