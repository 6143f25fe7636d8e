import pytest
from PIL import Image

from sit_atconv import InterpolantODEScheduler, SiTPipeline, SiTTransformer2DModel
from sit_atconv.cli import main


@pytest.fixture
def folder(tmp_path):
    transformer = SiTTransformer2DModel.from_preset(
        "SiT-ATConv-Nano/2", sample_size=8, in_channels=1, num_classes=3, num_layers=1
    )
    pipeline = SiTPipeline(transformer, InterpolantODEScheduler(), id2label={0: "cat", 1: "dog", 2: "owl"})
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_sample_draws_one_class_a_row(folder, tmp_path, capsys):
    out = tmp_path / "grid.png"
    options = ["--classes", "2", "cat", "--images_per_class", "3", "--num_inference_steps", "2", "--out", str(out)]
    main(["sample", str(folder), *options])
    assert "6 images of classes 2, 0" in capsys.readouterr().out
    with Image.open(out) as grid:  # two rows of three 32-pixel pictures, 4 pixels around each
        assert grid.size == (3 * 36 + 4, 2 * 36 + 4)


def test_sample_is_a_function_of_the_seed(folder, tmp_path):
    pictures = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / f"{name}.png"
        main(["sample", str(folder), "--num_inference_steps", "2", "--seed", seed, "--out", str(out)])
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--classes", "3"], "class_labels: 3 must lie in 0…2"),
        (["--classes", "-1"], "class_labels: -1 must lie in 0…2"),
        (["--classes", "cow"], "unknown name 'cow'"),
        (["--images_per_class", "0"], "images_per_class=0"),
        (["--num_inference_steps", "0"], "num_inference_steps=0"),
        (["--device", "quantum"], "device='quantum'"),
    ],
)
def test_mistakes_end_with_one_line(folder, tmp_path, capsys, options, expected):
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(folder), "--out", str(tmp_path / "grid.png"), *options])
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "grid.png").exists()


def test_existing_picture_is_kept(folder, tmp_path, capsys):
    (tmp_path / "grid.png").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        main(["sample", str(folder), "--out", str(tmp_path / "grid.png")])
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "grid.png").read_bytes() == b"mine"
