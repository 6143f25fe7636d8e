"""eval/class_accuracy.py: the report that it writes, its picture, and what it refuses."""

import json

import class_accuracy
import numpy as np
import pytest
from PIL import Image

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.data import DigitsDataset
from sit_atconv.evaluation.class_accuracy import fit_classifier
from sit_atconv.evaluation.sampling import generate
from sit_atconv.evaluation.sampling_options import SamplingOptions


@pytest.fixture(scope="module")
def digits() -> DigitsDataset:
    return DigitsDataset()


@pytest.fixture(scope="module")
def digit_pipeline(tiny_transformer):
    """Function: a small untrained pipeline of 8×8 grey images, ten classes."""

    def build(names="0123456789", **overrides) -> SiTPipeline:
        transformer = tiny_transformer(**{"in_channels": 1, "num_classes": 10, **overrides})
        pipeline = SiTPipeline(transformer, InterpolantODEScheduler(), id2label=dict(enumerate(names)))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="module")
def pipeline_folder(digit_pipeline, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run") / "pipeline"
    digit_pipeline().save_pretrained(folder)
    return str(folder)


def test_command_line(pipeline_folder, digit_pipeline, digits, tmp_path, capsys):
    output, grid = tmp_path / "report.json", tmp_path / "grids" / "grid.png"
    arguments = [pipeline_folder, "--reference", "digits", "--samples_per_class", "12", "--num_inference_steps", "2"]
    arguments += ["--seed", "3", "--batch_size", "50", "--device", "cpu", "--grid", str(grid)]
    class_accuracy.main([*arguments, "--output", str(output)])
    printed = capsys.readouterr().out
    report = json.loads(output.read_text(encoding="utf-8"))
    assert printed.startswith(
        f"class accuracy {report['class_accuracy']:.3f}: 12 samples per class of {pipeline_folder}"
    )
    assert f"held-out real images: {report['real_accuracy']:.3f}" in printed
    assert list(report["per_class"]) == digits.classes
    facts = {"samples": pipeline_folder, "samples_per_class": 12, "seed": 3, "mixer": "atconv", "num_reference": 1797}
    assert {key: report[key] for key in facts} == facts

    options = SamplingOptions(seed=3, batch_size=50, num_inference_steps=2)
    images = np.concatenate(list(generate(digit_pipeline(), [i % 10 for i in range(120)], options)))
    classifier, _, _ = fit_classifier(digits)
    hits = classifier.predict(images.reshape(120, 64) / 255) == np.arange(120) % 10
    assert report["class_accuracy"] == pytest.approx(hits.mean())
    picture = np.asarray(Image.open(grid))[..., 0]  # 10 rows and columns of 32 pixels, between margins of 4
    assert picture.shape == (364, 364)
    for row, column in ((0, 0), (2, 1), (9, 9)):
        tile = picture[4 + 36 * row :, 4 + 36 * column :][:32:4, :32:4]
        np.testing.assert_array_equal(tile, images[row + 10 * column, ..., 0])


def save_classes(folder, counts, shape=(8, 8)) -> str:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def test_class_folders(tiny_transformer, tmp_path, capsys):
    folder = save_classes(tmp_path / "data", {"cat": 6, "dog": 6}, (10, 12, 3))
    pipeline = SiTPipeline(tiny_transformer(num_classes=2), InterpolantODEScheduler(), id2label={0: "cat", 1: "dog"})
    pipeline.save_pretrained(tmp_path / "pipeline")
    options = ["--samples_per_class=3", "--num_inference_steps=1", "--device=cpu"]
    class_accuracy.main([str(tmp_path / "pipeline"), "--reference", folder, *options])
    assert "3 samples per class" in capsys.readouterr().out


@pytest.mark.slow
def test_bad_input_is_refused_in_one_message(digit_pipeline, pipeline_folder, tiny_transformer, tmp_path, capsys):
    def save(name, pipeline) -> str:
        pipeline.set_progress_bar_config(disable=True)
        pipeline.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    existing = tmp_path / "existing.png"
    existing.touch()
    large = save("large", SiTPipeline(tiny_transformer(sample_size=40, num_classes=2), InterpolantODEScheduler()))
    pair = save("pair", SiTPipeline(tiny_transformer(num_classes=2), InterpolantODEScheduler()))
    few = save_classes(tmp_path / "few", {"a": 8, "b": 3})
    digits = (pipeline_folder, "--reference", "digits")
    cases = [
        ((str(tmp_path / "missing"), "--reference", "digits"), "missing' is not a pipeline folder"),
        ((pipeline_folder, "--reference", "missing"), "'missing' does not exist"),
        ((*digits, "--output", str(existing)), f"output={str(existing)!r} already exists; choose another name"),
        ((*digits, "--grid", str(existing)), f"grid={str(existing)!r} already exists; choose another name"),
        ((*digits, "--samples_per_class", "0"), "samples_per_class=0"),
        ((*digits, "--num_inference_steps", "0"), "num_inference_steps=0"),
        ((*digits, "--seed", "-1"), "seed=-1"),
        ((*digits, "--batch_size", "0"), "batch_size=0"),
        ((*digits, "--image_size", "16"), "images of digits are 16×16×1, the pipeline's 8×8×1"),
        ((*digits, "--steps", "3"), "--steps"),
        ((pair, "--reference", "digits"), "images of digits are 8×8×1, the pipeline's 8×8×3"),
        ((large, "--reference", few), "compared up to 4096"),
        ((pair, "--reference", few), "class 'b' of few has 3 images; 4 are needed"),
        ((pipeline_folder.replace("pipeline", "x"), "--reference", "digits"), "not a pipeline folder"),
        ((save("five", digit_pipeline("01234", num_classes=5)), "--reference", "digits"), "10 classes, the pipeline 5"),
        ((save("reversed", digit_pipeline("9876543210")), "--reference", "digits"), "class '9' is 9 in digits, but 0"),
    ]
    for arguments, part in cases:
        with pytest.raises(SystemExit) as stopped:
            class_accuracy.main(list(arguments))
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert part in " ".join(message.split()), f"{arguments}: {message}"


def test_a_broken_image_is_left_out_if_it_may_be(digit_pipeline, digits, tmp_path, capsys):
    photos, folder = tmp_path / "photos", tmp_path / "pipeline"
    digit_pipeline(names=[f"digit-{i}" for i in range(10)], in_channels=3).save_pretrained(folder)
    for index in range(200):
        file = photos / f"digit-{digits.labels[index]}" / f"{index:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.image(index)[..., 0]).save(file)
    file.write_bytes(file.read_bytes()[:60])  # its header is whole
    arguments = [str(folder), "--reference", str(photos), "--samples_per_class", "2", "--num_inference_steps", "1"]
    with pytest.raises(SystemExit):
        class_accuracy.main(arguments)
    message = capsys.readouterr().err
    assert f"{file} cannot be read" in message and "--max_broken_images" in message
    output = tmp_path / "report.json"
    class_accuracy.main([*arguments, "--max_broken_images", "1", "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["num_reference"] == 199 and 0.7 < report["real_accuracy"] <= 1
    assert str(file) in report["notes"][0] and "1 image left out as unreadable" in capsys.readouterr().out
