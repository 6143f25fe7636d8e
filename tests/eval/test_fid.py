"""eval/fid.py: the distance against closed forms, SciPy and clean-fid; its samples; what is reported and refused."""

import json
import shutil
import urllib.error
from pathlib import Path

import cleanfid.fid
import fid
import numpy as np
import pytest
import timm
import torch
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image
from safetensors.torch import save_file

from sit_atconv import InterpolantODEScheduler, InterpolantSDEScheduler, SiTPipeline
from sit_atconv.data import DigitsDataset
from sit_atconv.evaluation import inception, scores, sources
from sit_atconv.evaluation.features import build_extractor
from sit_atconv.evaluation.frechet import frechet_distance
from sit_atconv.evaluation.image_sets import FolderImages
from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.sampling import SamplingOptions, balanced_labels, generate, load_pipeline
from sit_atconv.models.timm_encoders import load_timm_model
from sit_atconv.utils.hashing import file_sha256
from sit_atconv.utils.randomness import image_generator

CPU = torch.device("cpu")
TINY_TIMM = "test_efficientnet"  # timm's own, for tests: 0.4 M parameters, 160×160


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return features.mean(axis=0), np.cov(features, rowvar=False)


def compute_fid(samples: str, reference: str, device: str = "cpu", **options) -> dict:
    return scores.evaluate(samples, reference, MetricOptions(**options), device=device)


def save_images(folder, images) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{i:04}.png")
    return str(folder)


def digit_images(start: int = 0, stop: int | None = None) -> np.ndarray:
    digits = DigitsDataset()
    return np.stack([digits.image(i) for i in range(start, stop or len(digits))])


def shuffled(images: np.ndarray) -> np.ndarray:
    """Each image with its own permutation of its pixels."""
    rng = np.random.default_rng(0)
    return rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


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


@pytest.fixture(scope="module")
def tiny_timm(tmp_path_factory):
    """A randomly initialised timm model with 7 classes, and the file of its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(TINY_TIMM, pretrained=False, num_classes=7).eval()
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), file)
    return model, str(file)


@pytest.fixture(scope="module")
def script_file(tmp_path_factory) -> str:
    """A TorchScript file with the interface of clean-fid's Inception network, and other layers."""

    class Inception(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 2048, kernel_size=64, stride=64), torch.nn.Tanh(), torch.nn.AdaptiveAvgPool2d(1)
            )

        def forward(self, x):
            return self.layers(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        file = tmp_path_factory.mktemp("inception") / inception.INCEPTION_FILE
        torch.jit.script(Inception()).save(file)
    return str(file)


@pytest.mark.parametrize("scheduler", [InterpolantODEScheduler, InterpolantSDEScheduler])
def test_generated_image_depends_on_seed_and_index_alone(digit_pipeline, scheduler):
    pipeline = digit_pipeline(scheduler())
    labels = balanced_labels(11, 10)

    def draw(batch_size: int, seed: int = 0, count: int = 11) -> np.ndarray:
        options = SamplingOptions(seed=seed, batch_size=batch_size, guidance_scale=1.5, num_inference_steps=4)
        return np.concatenate(list(generate(pipeline, labels[:count], options))).astype(int)

    one_by_one = draw(1)
    assert one_by_one.shape == (11, 8, 8, 1)
    assert 0 < one_by_one.mean() < 255
    for other in (draw(4), draw(11)):
        assert abs(other - one_by_one).max() <= 1  # float32 sums in another order may round to the next grey level
    assert abs(draw(4, count=6) - one_by_one[:6]).max() <= 1
    assert abs(draw(11, seed=1) - one_by_one).mean() > 5
    assert abs(one_by_one[0] - one_by_one[10]).mean() > 5  # the same class, other noise


def test_generated_images_are_what_a_png_holds(digit_pipeline, tmp_path):
    pipeline = digit_pipeline()
    (images,) = generate(pipeline, [3, 4], SamplingOptions(seed=5, batch_size=2, num_inference_steps=3))
    generators = [image_generator(5, i) for i in range(2)]
    for i, picture in enumerate(pipeline([3, 4], num_inference_steps=3, generator=generators).images):
        picture.save(tmp_path / "image.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "image.png")), images[i, ..., 0])


def test_image_that_is_not_finite_is_refused(digit_pipeline):
    pipeline = digit_pipeline()
    with torch.no_grad():
        pipeline.transformer.class_embed.weight[7] = float("nan")
    with pytest.raises(ValueError, match=r"image 2 .* class 7.* is not finite"):
        list(generate(pipeline, [1, 2, 7, 3], SamplingOptions(batch_size=4, num_inference_steps=2)))


def test_digits_against_themselves_and_shuffled(tmp_path):
    images = digit_images()
    same = compute_fid(save_images(tmp_path / "same", images), "digits", extractor="pixels")
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["num_samples"] == same["num_reference"] == 1797
    assert not same["biased"]
    halves = [save_images(tmp_path / name, part) for name, part in (("a", images[:900]), ("b", images[900:]))]
    split = compute_fid(*halves, extractor="pixels")["fid"]
    other = compute_fid(save_images(tmp_path / "c", shuffled(images)), "digits", extractor="pixels")["fid"]
    assert 0.01 < split < 0.5
    assert other > 10 * split
    features = images.reshape(1797, 64) / 255
    features = [pixels.reshape(1797, 64) / 255 for pixels in (shuffled(images), images)]
    expected = frechet_distance(*moments(features[0]), *moments(features[1]))
    assert other == pytest.approx(expected, rel=1e-5)


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


def test_timm_extractor_embeds_as_the_model_does(tiny_timm):
    model, file = tiny_timm
    extractor = build_extractor(f"timm:{TINY_TIMM}", file, CPU)
    config = timm.data.resolve_model_data_config(model)
    size = config["input_size"][1]
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)  # no resize is left to do
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    x = ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        actual = extractor.embed(torch.stack([extractor.prepare(image) for image in images]))["features"]
    assert expected.std() > 1e-6
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_timm_extractor_from_the_command_line(tiny_timm, tmp_path, capsys):
    _, file = tiny_timm
    images = digit_images(0, 24)
    plain, inverted = save_images(tmp_path / "plain", images), save_images(tmp_path / "inverted", 255 - images)
    output = tmp_path / "fid.json"
    copied = save_images(tmp_path / "copied", images)
    arguments = ["--reference", plain, "--extractor", f"timm:{TINY_TIMM}", "--weights", file, "--device", "cpu"]
    fid.main([copied, *arguments])
    fid.main([inverted, *arguments, "--output", str(output)])
    report = json.loads(output.read_text(encoding="utf-8"))
    same = float(capsys.readouterr().out.split("FID ")[1].split(" ")[0])
    assert report["fid"] > 1000 * same
    assert report["biased"]
    assert "bicubic" in report["resize"] and "160×160" in report["resize"]
    assert report["weights"]["source"] == file


def test_weights_hash_depends_on_the_tensors_alone(tiny_timm, tmp_path):
    model, file = tiny_timm
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed["conv_stem.weight"][0, 0, 0, 0] += 1e-3
    save_file(changed, tmp_path / "changed.safetensors")
    files = [file, tmp_path / "weights.pth", tmp_path / "changed.safetensors"]
    one, same, other = (build_extractor(f"timm:{TINY_TIMM}", str(f), CPU).weights["sha256"] for f in files)
    assert one == same != other


def test_timm_weights_must_fit_without_remainder(tiny_timm, tmp_path):
    model, _ = tiny_timm
    state = model.state_dict()
    extra = {**state, "nothing.weight": torch.zeros(2)}
    missing = {name: tensor for name, tensor in state.items() if name != "conv_stem.weight"}
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    for name, tensors in {"extra": extra, "missing": missing, "headless": headless}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"do not fit test_efficientnet: Unexpected key.*nothing\.weight"):
        load_timm_model(TINY_TIMM, str(tmp_path / "extra.safetensors"))
    with pytest.raises(ValueError, match=r"do not fit test_efficientnet: Missing key.*conv_stem\.weight"):
        load_timm_model(TINY_TIMM, str(tmp_path / "missing.safetensors"))
    assert torch.equal(
        load_timm_model(TINY_TIMM, str(tmp_path / "headless.safetensors")).conv_stem.weight,
        state["conv_stem.weight"],
    )


def test_timm_weights_run_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"conv_stem.weight": Payload()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="cannot be read as safetensors or as a state dict"):
        load_timm_model(TINY_TIMM, str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "training.pth")
    with pytest.raises(ValueError, match="is no state dict"):
        load_timm_model(TINY_TIMM, str(tmp_path / "training.pth"))


def test_inception_features_equal_clean_fids(script_file, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, shape in enumerate([(40, 30, 3), (299, 299, 3), (400, 310, 3), (8, 8)]):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    extractor = build_extractor("inception", script_file, CPU)
    images = FolderImages(folder)
    prepared = torch.stack([extractor.prepare(images.image(i)) for i in range(len(images))])
    with torch.no_grad():
        actual = extractor.embed(prepared)["features"]
        grey = extractor.prepare(np.asarray(Image.open(folder / "3.png"))[..., None])
    assert torch.equal(grey, prepared[3])
    model = InceptionV3W(str(Path(script_file).parent), download=False)
    expected = cleanfid.fid.get_folder_features(
        str(folder), model=model, num_workers=0, device=CPU, mode="clean", verbose=False
    )
    assert expected.shape == (4, 2048)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert extractor.weights["sha256"] == file_sha256(Path(script_file))


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


def test_inception_is_fetched_once_into_the_cache(script_file, tmp_path, monkeypatch):
    fetched = []

    def download(url, file):
        fetched.append(url)
        Path(file).write_bytes(Path(script_file).read_bytes())

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        build_extractor("inception", None, CPU)
    assert fetched == [inception.inception_url]


def test_timm_without_a_network(pipeline_folder, monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise FileNotFoundError("cannot find the requested files in the local cache.")

    monkeypatch.setattr(timm, "create_model", fail)
    message = refusal(capsys, pipeline_folder, "--reference", "digits", "--extractor", "timm:tf_efficientnet_lite0")
    for part in ("huggingface.co/timm/tf_efficientnet_lite0", "--weights"):
        assert part in message


def test_bad_input_is_refused_in_one_message(pipeline_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "draw_images", None)  # nothing may be sampled
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
        (("missing", *digits), ("samples: 'missing' is no folder",)),
        ((pipeline_folder, "--reference", "missing"), ("reference: 'missing' is no folder",)),
        ((str(empty), *digits), ("holds no images",)),
        ((str(broken), *digits), ("cannot be loaded as a SiTPipeline",)),
        ((str(unreadable), *digits), ("a.png cannot be read as an image",)),
        ((pipeline_folder, *digits, "--output", str(existing)), (f"output={str(existing)!r} exists", "name another")),
        ((pipeline_folder, *digits, "--output", str(existing / "a.json")), ("cannot be written",)),
        ((pipeline_folder, "--reference", "digits", "--extractor", "vgg"), ("extractor='vgg'", "timm:NAME")),
        ((pipeline_folder, "--reference", "digits", "--extractor", "timm:"), ("extractor='timm:'",)),
        ((pipeline_folder, "--reference", "digits", "--extractor", "timm:resnet19"), ("did you mean", "resnet18")),
        ((pipeline_folder, "--reference", "digits", "--extractor", "timm:resnet18.x"), ("no tag 'x'", "a1_in1k")),
        ((pipeline_folder, "--reference", "digits", "--weights", "missing.pt"), ("weights='missing.pt' is no file",)),
        ((pipeline_folder, "--reference", "digits", "--weights", str(weights)), ("must be named inception-2015",)),
        ((pipeline_folder, "--reference", "digits", "--weights", str(script)), ("is not the TorchScript file",)),
        ((pipeline_folder, *digits, "--weights", str(weights)), ("raw pixels have no weights",)),
        ((mixed, *digits), ("0000.png is 8×8", "0001.png is 9×8", "--image_size")),
        ((large, "--reference", as_large, "--extractor", "pixels"), ("40×40×3 have 4800", "--extractor inception")),
        ((large, "--reference", f"{large}/../large", "--extractor", "pixels"), ("are the same", "real images")),
        (("digits", *digits), ("are the same",)),
        ((colour, *digits), ("samples are 8×8×3", "reference images 8×8×1")),
        ((single, *digits), ("samples=", "at least 2 images, not 1")),
        ((colour, *digits, "--num_samples", "3"), ("num_samples=3", "no pipeline folder")),
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


def test_image_size_crops_and_resizes_folders(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((20, 30), (30, 20), (16, 16))]
    (tmp_path / "a" / "deeper").mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "a" / ("deeper" if i else "") / f"{i}.png")
    found = FolderImages(tmp_path / "a", image_size=16, uniform=True)
    assert found.shape == (16, 16, 3)
    assert [file.name for file in found.files] == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(found.image(2), images[2])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    report = compute_fid(str(tmp_path / "a"), str(tmp_path / "b"), image_size=16, extractor="pixels")
    assert report["fid"] == pytest.approx(0, abs=1e-4)
    assert report["image_size"] == 16
