"""`sit-atconv morph`: its images, files and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from sit_atconv.cli import main, morph
from sit_atconv.utils.picture_text import read_settings

TILE = 64 + 8  # of an 8-pixel image, enlarged eightfold, with its padding


@pytest.fixture(scope="module")
def folder(tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("morph") / "pipeline"
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_strip_begins_and_ends_with_the_images_of_sample(folder, capsys):
    main(["morph", folder, "--classes", "cat", "0", "--seeds", "4", "9", "--frames", "3", "--steps", "2"])
    assert capsys.readouterr().out == "4 images in morph.png\n"
    strip = np.asarray(Image.open("morph.png"), dtype=int)
    assert strip.shape == (TILE + 8, 4 * TILE + 8, 3)
    tiles = [strip[8 : 8 + 64, 8 + i * TILE : 8 + i * TILE + 64] for i in range(4)]
    for place, name, seed in ((0, "cat", "4"), (3, "airplane", "9")):
        options = ["--classes", name, "--seed", seed, "--images_per_class", "1", "--steps", "2"]
        main(["sample", folder, *options, "--separate", "--out", f"images-{seed}"])
        (file,) = (image for image in (Image.open(path) for path in own_files(f"images-{seed}")))
        enlarged = np.asarray(file.resize((64, 64), Image.Resampling.NEAREST), dtype=int)
        assert abs(tiles[place] - enlarged).max() <= 1
    assert abs(tiles[1] - tiles[0]).max() > 1
    settings = read_settings("morph.png")
    assert settings["seeds"] == [4, 9] and settings["classes"] == [2, 0] and settings["frames"] == 3


def own_files(name: str) -> list:
    return sorted(morph.Path(name).glob("*.png"))


def test_one_class_or_one_seed_serves_all_images(folder):
    main(["morph", folder, "--seeds", "1", "2", "3", "--frames", "1", "--steps", "1", "--out", "a.gif"])
    with Image.open("a.gif") as animation:
        assert animation.n_frames == 3 and animation.size == (64, 64)
    main(["morph", folder, "--classes", "0", "1", "--seeds", "7", "--steps", "1", "--frames", "20"])
    assert Image.open("morph.png").size == (11 * TILE + 8, 2 * TILE + 8)  # 21 images, in two rows


def test_batches_do_not_change_images(folder, assert_close):
    for size in ("2", "64"):
        main(["morph", folder, "--steps", "1", "--frames", "4", "--batch_size", size, "--out", f"{size}.png"])
    pictures = [torch.from_numpy(np.array(Image.open(f"{size}.png"), dtype=float)) for size in ("2", "64")]
    assert_close(pictures[0], pictures[1], 1 / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "0", "1", "2", "--seeds", "1", "2"], "seeds: 2 for 3 images; give one for all, or one for each"),
        (["--seeds", "1"], "seeds=1 and classes=0: one image leads nowhere; add another"),
        (["--frames", "0"], "frames=0 must be"),
        (["--out", "a.mp4"], "images cannot be written in this format; use .png"),
        (["--seeds", "0", "-1"], "seeds=-1 must be"),
        (["--guidance_scale", "nan"], "guidance_scale"),
        (
            ["--sampler", "sde", "--steps", "2"],
            "an SDE draws noise at each step, other noise for each image on the way",
        ),
    ],
)
def test_mistakes(options, message, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["morph", folder, *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(folder, tmp_path, capsys):
    for _ in range(2):
        main(["morph", folder, "--steps", "1", "--frames", "1"])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["morph-2.png", "morph.png"]
    with pytest.raises(SystemExit):
        main(["morph", folder, "--out", "morph.png"])
    assert "or add --overwrite" in capsys.readouterr().err
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit):
        main(["morph", folder, "--overwrite", "--out", "folder.png"])
    assert "out='folder.png' is a folder; choose another name" in capsys.readouterr().err
