"""eval/classify.py: scores of a known model, in ImageNet's layouts, and mistakes that are named."""

import json

import classify
import numpy as np
import pytest
import timm
from PIL import Image
from timm.models import save_for_hf

import sit_atconv  # noqa: F401  registers AttNet

NAMES = ["n01", "n02", "n03"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder of timm, and the model in it replaced by one whose answers are known: the colour of the picture."""
    network = timm.create_model("attnet_xxs", num_classes=3, depths=[1, 1, 1, 1], dims=[4, 6, 8, 8])
    data_config = dict(input_size=(3, 16, 16), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0)
    model_config = {"label_names": NAMES}
    save_for_hf(network, str(tmp_path / "model"), model_config, safe_serialization=True, data_config=data_config)
    monkeypatch.setattr(type(network), "forward", lambda self, x: 10 * x.mean((2, 3)))
    return tmp_path / "model"


def picture(label: int) -> Image.Image:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., label] = 255
    return Image.fromarray(pixels)


@pytest.fixture
def folders(tmp_path):
    """Synset folders of 4 pictures each; one of n03 is green, and so taken for n02."""
    for label, name in enumerate(NAMES):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(4):
            shown = 1 if (label, i) == (2, 0) else label
            picture(shown).save(tmp_path / "val" / name / f"ILSVRC2012_val_{4 * label + i + 1:08d}.png")
    return tmp_path / "val"


def report(tmp_path, *arguments) -> dict:
    classify.main([*map(str, arguments), "--output", str(tmp_path / "report.json"), "--device", "cpu"])
    return json.loads((tmp_path / "report.json").read_text())


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        classify.main([*map(str, arguments), "--device", "cpu"])
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_report_of_synset_folders(model, folders, tmp_path, capsys):
    result = report(tmp_path, model, "--data", folders, "--confusion", tmp_path / "confusion.png", "--batch_size", 5)
    assert result["top1"] == pytest.approx(11 / 12) and result["top5"] == 1 and result["images"] == 12
    assert result["per_class"] == {"n01": 1, "n02": 1, "n03": 0.75}
    assert result["confusions"] == [{"shown": "n03", "predicted": "n02", "images": 1}]
    confidence = 1 / (1 + 2 * np.exp(-10))
    assert result["ece"] == pytest.approx(confidence - 11 / 12, abs=1e-5)
    [bin] = result["calibration"]
    assert bin["images"] == 12 and bin["accuracy"] == pytest.approx(11 / 12)
    assert result["images_per_second"] > 0 and result["image_size"] == 16 and "eval/classify.py" in result["command"]
    with Image.open(tmp_path / "confusion.png") as drawn:
        assert drawn.width > 300
    out = capsys.readouterr().out
    assert out.startswith("top-1 0.9167, top-5 1.0000") and "lowest per class: n03 0.750" in out


def test_a_flat_folder_with_a_list_of_classes(model, folders, tmp_path):
    """The classes are ids, or names in any order; the broken picture is left out."""
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = {"ids": [], "names": []}
    for label, name in enumerate(NAMES):
        for file in sorted((folders / name).iterdir()):
            (flat / file.name).write_bytes(file.read_bytes())
            lines["ids"].append(f"{file.name} {label}")
            lines["names"].append(f"{file.name} {name}")
    (flat / "ILSVRC2012_val_00000001.png").write_bytes(b"broken")
    for kind, text in lines.items():
        (tmp_path / f"{kind}.txt").write_text("\n".join(reversed(text)))
        result = report(tmp_path, model, "--data", flat, "--ground_truth", tmp_path / f"{kind}.txt")
        assert result["images"] == 11 and result["top1"] == pytest.approx(10 / 11)
        assert len(result["unreadable"]) == 1 and "00000001" in result["unreadable"][0]
        (tmp_path / "report.json").unlink()


def test_reassessed_labels(model, folders, tmp_path):
    """Image 9 is shown as green: right if its reassessed labels have n02. Images without labels do not count."""
    real = [[0]] * 4 + [[1]] * 4 + [[2, 1], [2], [], [0]]
    (tmp_path / "real.json").write_text(json.dumps(real))
    result = report(tmp_path, model, "--data", folders, "--real_labels", tmp_path / "real.json")
    assert result["real"] == {"top1": pytest.approx(10 / 11), "images": 11}


def test_mistakes_are_named(model, folders, tmp_path, capsys):
    assert "did you mean attnet_t2" in refusal(capsys, "attnet_t22", "--data", folders)
    assert "timm has no weights for attnet_t2" in refusal(capsys, "attnet_t2", "--data", folders)
    assert "holds no config.json" in refusal(capsys, folders, "--data", folders)
    assert "has no classes; put the images of each class" in refusal(capsys, model, "--data", folders / "n01")
    assert "has 10 classes, such as 0, 1, 2; the model has 3, such as n01" in refusal(capsys, model, "--data", "digits")
    (tmp_path / "list.txt").write_text("a.png 1\nb.png\n")
    text = refusal(capsys, model, "--data", folders / "n01", "--ground_truth", tmp_path / "list.txt")
    assert "line 2: 'b.png' is not 'FILE CLASS'" in text
    (tmp_path / "list.txt").write_text("a.png 1\n")
    text = refusal(capsys, model, "--data", folders / "n01", "--ground_truth", tmp_path / "list.txt")
    assert "has no line for 4 images, such as ILSVRC2012_val_00000001.png" in text
    (tmp_path / "real.json").write_text("[1, 2]")
    text = refusal(capsys, model, "--data", folders, "--real_labels", tmp_path / "real.json")
    assert "is not a list of lists of class ids" in text
    assert "crop_pct=2.0 must be above 0" in refusal(capsys, model, "--data", folders, "--crop_pct", 2)
    (tmp_path / "taken.json").write_text("mine")
    text = refusal(capsys, model, "--data", folders, "--output", tmp_path / "taken.json")
    assert "exists" in text and (tmp_path / "taken.json").read_text() == "mine"
    (model / "model.safetensors").unlink()
    assert f"model={str(model)!r} cannot be loaded: " in refusal(capsys, model, "--data", folders)
