"""`sit-atconv train`: from a folder of images to a run, by one command."""

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from start_up import run

from sit_atconv.cli.train import main, parse
from sit_atconv.training.sizes import SIZES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve images of two classes, one of whose names has a space."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        file = tmp_path / "photos" / ("cat" if i % 2 else "big dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    return "photos"


def test_a_folder_is_all_that_is_needed(folder):
    config = parse([folder])
    assert (config.data, config.preset, config.image_size) == ("photos", SIZES["small"]["preset"], 64)
    assert (config.batch_size, config.max_steps, config.resume, config.early_samples) == (12, 2000, "auto", True)
    config = parse([folder, "--size", "medium", "--learning_rate", "1e-5", "--max_steps", "70"])
    assert (config.preset, config.learning_rate, config.max_steps) == (SIZES["medium"]["preset"], 1e-5, 70)


def test_no_size_is_chosen_where_the_model_is(folder, tmp_path):
    (tmp_path / "options.yaml").write_text("batch_size: 4\nimage_size: 8\n")
    config = parse([folder, "--config", "options.yaml"])
    assert (config.batch_size, config.image_size, config.preset) == (4, 8, "SiT-ATConv-Nano/2")
    assert parse(["digits"]).max_steps == 1600
    (tmp_path / "options.yaml").write_text("data: photos\n")
    assert parse(["--config", "options.yaml"]).data == "photos"


def test_mistakes_are_answered_before_pytorch_is_imported():
    code = "from sit_atconv.cli import main; main(sys.argv[1:])"
    result = run(code, "train", "photos", "--size", "smal")
    message = "size='smal' must be one of small, medium, large; did you mean small?\n"
    assert result == (2, "", f"sit-atconv train: error: {message}")
    for arguments in ([], ["--size", "small"], ["--max_steps", "5"]):
        status, _, said = run(code, "train", *arguments)
        assert status == 2 and said.startswith("sit-atconv train: error: name the folder of images")
    assert run(code, "train", "photos", "--max_steps", "0")[2].startswith(
        "sit-atconv train: error: max_steps=0 must be"
    )


@pytest.mark.slow
def test_a_run_says_what_it_does_and_what_comes_next(folder, tmp_path, capsys):
    options = ["--image_size", "8", "--max_steps", "20", "--sample_every", "10", "--log_with", "none"]
    options += ["--num_workers", "0", "--sample_steps", "1", "--model.num_layers", "1"]
    main([folder, *options])
    said = capsys.readouterr().out
    grids = [f"runs/photos-atconv/samples/step-{step:08d}.png" for step in (0, 2, 10, 20)]
    assert [line.removeprefix("grid: ") for line in said.splitlines() if line.startswith("grid: ")] == grids
    assert all((tmp_path / grid).is_file() for grid in grids)
    assert "time        about " in said and " a step" in said
    assert "sit-atconv sample runs/photos-atconv/pipeline --classes 'big dog' --out samples.png" in said
    assert "sit-atconv evaluate runs/photos-atconv/pipeline --reference photos --image_size 8" in said
    with Image.open(tmp_path / grids[-1]) as grid:
        assert grid.width > 8 * 72 + 8  # names beside the rows
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    AcceleratorState._reset_state(reset_partial_state=True)
    main([folder, *options, "--learning_rate", "0.5", "--dry_run"])  # although the folder holds another run
    assert "nothing was written" in capsys.readouterr().out
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
