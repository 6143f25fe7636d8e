"""`sit-atconv sample`: what it draws, where it writes, and what a picture says of itself."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.cli import drawing, main
from sit_atconv.cli.drawing import Drawn, in_batches, thinned
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.utils.image_grid import grid_picture, save_picture
from sit_atconv.utils.picture_text import read_settings

TILE = 64 + 8  # of an 8-pixel image, enlarged eightfold, with its padding


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline whose images depend on class, noise and guidance."""
    folder = tmp_path_factory.mktemp("sample") / "pipeline"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SiTTransformer2DModel.from_preset(
            "SiT-ATConv-Nano/2", sample_size=8, in_channels=1, num_classes=3, num_layers=1
        )
        for parameter in transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    names = {0: "cat, Felis catus", 1: "dog", 2: "snowy owl"}
    SiTPipeline(transformer, InterpolantODEScheduler(), id2label=names).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sample(folder: str, *options: str) -> None:
    main(["sample", folder, "--steps", "2", "--images_per_class", "2", *options])


def pixels(file: str) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture.convert("L"), dtype=int)


def test_a_row_for_each_class_with_its_name(folder, capsys):
    sample(folder, "--classes", "2", "cat", "--seed", "4")
    assert "4 images of snowy owl, cat, seed 4, in samples.png" in capsys.readouterr().out
    grid = pixels("samples.png")
    margin = grid.shape[1] - (2 * TILE + 8)
    assert grid.shape[0] == 2 * TILE + 8 and margin > 20
    for top in (8, 8 + TILE):  # something is written beside each row
        assert grid[top : top + 64, : margin - 4].max() > 100


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_warned_of(dtype, folder, recwarn, monkeypatch):
    complaints = []
    monkeypatch.setattr(logging.Logger, "warning", lambda logger, *arguments: complaints.append(arguments))
    sample(folder, "--seed", "4", "--dtype", dtype)
    assert complaints == [] and [str(warning.message) for warning in recwarn] == []


def test_names_are_written_in_other_alphabets_too():
    """Not as the box that stands for a letter that a font lacks: each of these words differs from the others."""
    black = torch.zeros(1, 3, 64, 64)
    words = ["ä", "ß", "Ж", "λ", "ł", "\ufffe"]  # the last one is no letter, and in no font
    drawn = {word: np.asarray(grid_picture(black, 1, names=[word])).tobytes() for word in words}
    assert len(set(drawn.values())) == len(words)


def test_names_are_left_out_where_there_are_none():
    images = torch.rand(4, 3, 8, 8)
    assert grid_picture(images, 2, 64, ["", ""]).size == grid_picture(images, 2, 64).size == (2 * TILE + 8,) * 2


def test_pictures_are_a_function_of_seed_and_position(folder):
    sample(folder, "--seed", "1", "--out", "a.png")
    sample(folder, "--seed", "1", "--out", "b.png", "--batch_size", "4")
    sample(folder, "--seed", "2", "--out", "c.png")
    assert np.abs(pixels("a.png") - pixels("b.png")).max() <= 1  # whatever the batch
    assert np.abs(pixels("a.png") - pixels("c.png")).max() > 20


def test_the_seed_is_random_and_printed(folder, capsys):
    seeds = []
    for _ in range(2):
        sample(folder, "--classes", "0")
        seeds.append(re.search(r"seed (\d+)", capsys.readouterr().out)[1])
    assert seeds[0] != seeds[1]
    sample(folder, "--classes", "0", "--seed", seeds[0])
    assert (pixels("samples.png") == pixels("samples-3.png")).all()


def test_pictures_say_how_they_were_made(folder, capsys):
    options = ["--classes", "dog", "--seed", "7", "--guidance_scale", "1.5", "--guidance_interval", "0.2", "0.9"]
    sample(folder, *options, "--solver", "heun", "--dtype", "bfloat16", "--height", "16")
    settings = read_settings("samples.png")
    expected = {
        "pipeline": folder,
        "classes": {"dog": 1},
        "seed": 7,
        "guidance_scale": 1.5,
        "guidance_interval": [0.2, 0.9],
        "solver": "heun",
        "num_inference_steps": 2,
        "dtype": "bfloat16",
        "height": 16,
        "width": None,
    }
    assert {name: settings[name] for name in expected} == expected
    capsys.readouterr()
    main(["info", "samples.png"])
    facts = capsys.readouterr().out
    for name, value in (("classes", "dog"), ("solver", "heun"), ("seed", "7"), ("guidance interval", r"\[0.2, 0.9\]")):
        assert re.search(rf"^{name} +{value}$", facts, flags=re.MULTILINE)


def test_info_of_pictures_that_say_nothing_or_try_to_steer_the_terminal(tmp_path, capsys):
    Image.new("L", (4, 4)).save("plain.png")
    (tmp_path / "text.png").write_text("no picture")
    save_picture(Image.new("L", (4, 4)), "steering.png", {"a\x1b[2J\nb": "c\x1b[2J", "classes": {"d\x1b[2J": 1}})
    main(["info", "steering.png"])
    assert capsys.readouterr().out.split() == [r"a\x1b[2J\nb", r"c\x1b[2J", "classes", r"d\x1b[2J"]
    for file, message in (("plain.png", "does not say how it was made"), ("text.png", "no picture that can be read")):
        with pytest.raises(SystemExit):
            main(["info", file])
        assert message in capsys.readouterr().err


def test_samplers_and_their_solvers(folder, capsys):
    sample(folder, "--sampler", "sde", "--seed", "0")
    assert read_settings("samples.png")["scheduler"] == "InterpolantSDEScheduler"
    with pytest.raises(SystemExit):
        sample(folder, "--solver", "nun")
    assert "solver='nun'" in capsys.readouterr().err


def test_separate_files_are_named_after_class_and_seed(folder, capsys, tmp_path):
    sample(folder, "--separate", "--seed", "5", "--classes", "cat", "snowy owl")
    sample(folder, "--seed", "5", "--classes", "cat", "snowy owl", "--out", "grid.png")
    names = ["cat-seed5-0.png", "cat-seed5-1.png", "snowy-owl-seed5-0.png", "snowy-owl-seed5-1.png"]
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == names
    grid = pixels("grid.png")
    row = grid[8 + TILE + 4 :: 8][:8, grid.shape[1] - TILE + 4 :: 8][:, :8]  # the last image, a pixel of each
    assert np.abs(pixels("samples/snowy-owl-seed5-1.png") - row).max() <= 1
    assert read_settings("samples/snowy-owl-seed5-1.png")["number"] == 3
    sample(folder, "--separate", "--seed", "5", "--out", "mine")


def test_separate_files_are_kept_and_this_is_known_before_anything_is_drawn(folder, capsys, tmp_path, monkeypatch):
    kept = tmp_path / "mine" / "cat-seed5-1.png"
    kept.parent.mkdir()
    kept.write_text("my own")
    monkeypatch.setattr(drawing, "draw", lambda *_, **__: pytest.fail("images were drawn"))
    with pytest.raises(SystemExit):
        sample(folder, "--separate", "--seed", "5", "--classes", "cat", "--out", "mine")
    assert "cat-seed5-1.png' already exists" in capsys.readouterr().err
    assert kept.read_text() == "my own" and list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize(
    ("names", "shown", "parts"),
    [
        (["crane, Grus", "crane", "owl"], ["crane (0)", "crane (1)", "owl"], ["crane-0", "crane-1", "owl"]),
        (["a b", "A-b", "?!"], ["a b", "A-b", "?!"], ["a-b-0", "A-b-1", "unnamed-2"]),
    ],
)
def test_classes_that_are_alike_are_told_apart(folder, tmp_path, capsys, names, shown, parts):
    pipeline = SiTPipeline.from_pretrained(folder)
    SiTPipeline(pipeline.transformer, pipeline.scheduler, id2label=dict(enumerate(names))).save_pretrained("alike")
    sample("alike", "--separate", "--seed", "5")
    assert f"6 images of {', '.join(shown)}, seed 5" in capsys.readouterr().out
    files = {f"{part}-seed5-{i}.png" for part in parts for i in range(2)}
    assert {file.name for file in (tmp_path / "samples").iterdir()} == files
    assert read_settings(f"samples/{parts[0]}-seed5-0.png")["classes"] == dict(zip(shown, range(3), strict=True))


def test_a_class_that_is_named_twice_has_files_for_each_row(folder, tmp_path):
    sample(folder, "--separate", "--seed", "5", "--classes", "1", "1")
    assert {file.name for file in (tmp_path / "samples").iterdir()} == {f"dog-seed5-{i}.png" for i in range(4)}


def test_existing_pictures_are_kept_or_replaced_as_told(folder, tmp_path, capsys):
    (tmp_path / "grid.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        sample(folder, "--out", "grid.png")
    assert "exists" in capsys.readouterr().err and (tmp_path / "grid.png").read_bytes() == b"mine"
    sample(folder, "--out", "grid.png", "--overwrite")
    assert pixels("grid.png").size
    for _ in range(2):
        sample(folder, "--classes", "0")
    assert {file.name for file in tmp_path.iterdir()} == {"grid.png", "samples.png", "samples-2.png"}


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_the_way_from_noise_is_animated(folder, ending):
    sample(folder, "--seed", "1", "--steps", "5", "--animate", f"way.{ending}", "--batch_size", "4")
    with Image.open(f"way.{ending}") as animation:
        frames = []
        for i in range(animation.n_frames):
            animation.seek(i)
            frames.append(np.asarray(animation.convert("L"), dtype=int))
    assert len(frames) == 5
    end = pixels("samples.png")
    distances = [np.abs(frame - end).mean() for frame in frames]
    assert distances == sorted(distances, reverse=True) and distances[-1] < 4  # it ends at the picture


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--classes", "3"], "class_labels: 3 must be between 0 and 2"),
        (["--classes", "-1"], "class_labels: -1 must be between 0 and 2"),
        (["--classes", "cow"], "unknown name 'cow'"),
        (["--images_per_class", "0"], "images_per_class=0"),
        (["--steps", "0"], "num_inference_steps=0"),
        (["--device", "quantum"], "device='quantum'"),
        (["--seed", "-1"], "seed=-1"),
        (["--batch_size", "0"], "batch_size=0"),
        (["--device", "cpu", "--offload"], "offload: the device is the CPU already"),
        (["--height", "7"], "height=7 must be divisible by 2"),
        (["--animate", "a.mp4"], "animate='a.mp4' must end in .gif or .webp"),
        (["--out", "a.xyz"], "images cannot be written in this format; use .png"),
        (["--out", "a.mpg"], "out='a.mpg': images cannot be written in this format; use .png"),  # Pillow only reads it
        (["--out", "a.gif", "--animate", "./a.gif"], "animate='./a.gif' is also the file of --out; name two files"),
        (["--classes", "9" * 5000], "class_labels: unknown name '999"),
    ],
)
def test_mistakes_end_with_one_line(folder, tmp_path, capsys, options, expected):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", folder, *options])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_batches_shrink_where_memory_is_short(capsys):
    """At most three images fit: eight are drawn as 3, or fewer, at a time, each once and in order."""
    drawn = []

    def work(indices: range) -> Drawn:
        if len(indices) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        drawn.append(list(indices))
        return Drawn(torch.zeros(len(indices), 1, 1, 1))

    assert len(in_batches(work, 8, 8)) == len(drawn)
    assert [i for each in drawn for i in each] == list(range(8)) and max(map(len, drawn)) == 2
    assert "going on with 4" in capsys.readouterr().out

    def never(indices: range) -> Drawn:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(ValueError, match="one image needs more memory than there is"):
        in_batches(never, 8, 8)
    with pytest.raises(RuntimeError, match=r"^another"):
        in_batches(lambda indices: (_ for _ in ()).throw(RuntimeError("another")), 8, 8)


def test_batches_and_tiles_follow_the_free_memory(folder, monkeypatch, capsys):
    """An image of 8×8 pixels takes 16 tokens of 96 channels, each ten times, and twice under guidance."""
    image = 4 * 16 * 96 * 10
    monkeypatch.setattr(drawing, "free_memory", lambda device: 4 * image / drawing.MEMORY_SHARE + 9)
    sizes, draw_batch = [], SiTPipeline.__call__
    monkeypatch.setattr(
        SiTPipeline, "__call__", lambda pipe, labels, **o: sizes.append(len(labels)) or draw_batch(pipe, labels, **o)
    )
    sample(folder, "--seed", "1", "--guidance_scale", "2")
    assert sizes == [2, 2, 2] and "for 2 images at a time" in capsys.readouterr().out
    sample(folder, "--seed", "1", "--out", "four.png")
    assert sizes[3:] == [4, 2]

    vae = AutoencoderKL(block_out_channels=(8,) * 2, norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2)
    pipe = SiTPipeline(SiTPipeline.from_pretrained(folder).transformer, InterpolantODEScheduler(), vae)
    options = drawing.fit_to_memory(pipe, SamplingOptions(batch_size=1), 16, 16)
    assert options.batch_size == 1 and not vae.use_tiling
    drawing.fit_to_memory(pipe, SamplingOptions(batch_size=1), 1024, 1024)
    assert vae.use_tiling and (vae.tile_sample_min_size, vae.tile_latent_min_size) == (512, 256)
    assert "decoding 1024×1024 pixels at once would take 0.134 GB" in capsys.readouterr().out


def test_frames_are_spaced_evenly():
    assert thinned(range(100), 4) == [0, 25, 50, 75] and thinned(range(3), 4) == [0, 1, 2]
    assert drawing.MAX_FRAMES <= 60


def test_settings_are_text(folder):
    sample(folder, "--classes", "0")
    with Image.open("samples.png") as picture:
        assert json.loads(picture.text["sit-atconv"])["classes"] == {"cat": 0}
