"""FID and KID of the same images as computed here and by clean-fid's own functions.

clean-fid gets folders of images and the same network; it reads, resizes and batches the images, and computes the
distances, by itself. N images, F features each; images are uint8 (H, W, C).
"""

import dataclasses
import tempfile
from pathlib import Path

import cleanfid.fid
import numpy as np
from cleanfid.resize import make_resizer
from PIL import Image

from ..utils.checks import check_count
from ..utils.environment import pick_device
from .clean_fid import check_clean_fid
from .extractor import Extractor, parse_extractor
from .features import build_extractor
from .image_sets import open_images
from .metric_options import MetricOptions
from .scores import evaluate

# Entries of the evaluation's report that a comparison takes over.
REPORTED = (
    "extractor",
    "weights_sha256",
    "num_features",
    "num_samples",
    "num_reference",
    "versions",
    "device",
    "notes",
)


def check_parity(
    samples: str, reference: str, options: MetricOptions, num_images: int | None = None, device: str = "auto"
) -> dict:
    """Compare FID and KID of two sets of images with clean-fid's.

    Args:
        samples: images: a folder, a .npz batch, or a data set such as digits.
        reference: other images, in the same forms.
        options: the extractor, and the size to which images are cropped and resized.
        num_images: compare the first `num_images` of both sets. If None, all images are compared.
        device: device of the extractor, such as cpu or cuda; "auto" is the accelerator if there is one.

    Returns:
        "fid" and "kid", each with "ours", "clean-fid" and "relative_difference"; and what they depend on.

    Raises:
        ValueError: naming the option that cannot be used, or the SciPy that clean-fid cannot use.
    """
    if num_images is not None:
        check_count("num_images", num_images)
    options.check()
    kind, _, size = parse_extractor(options.extractor)
    if kind in ("pixels", "inception-adm") or (kind == "torchscript" and size is None):
        raise ValueError(f"extractor={options.extractor!r} does not resize as clean-fid does; use another")
    check_clean_fid()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [
            image_folder(field, source, Path(temporary) / field, options.image_size, num_images)
            for field, source in (("samples", samples), ("reference", reference))
        ]
        as_they_are = dataclasses.replace(options, image_size=None)  # the folders are of that size already
        return compare_with_clean_fid(folders[0], folders[1], as_they_are, device)


def image_folder(field: str, source: str, target: Path, image_size: int | None, num_images: int | None) -> Path:
    """Write the first images of a source to a folder; a folder of which all images are taken as they are is returned.

    Raises:
        ValueError: if the source cannot be read, or has fewer images.
    """
    images = open_images(field, source, image_size)
    if num_images is not None and num_images > len(images):
        raise ValueError(f"num_images={num_images} exceeds the {len(images)} of {field}={source!r}")
    if num_images is None and image_size is None and Path(source).is_dir():
        return Path(source)
    target.mkdir()
    for i in range(num_images or len(images)):
        image = images.image(i)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(target / f"{i:06d}.png")
    return target


def clean_features(folder: Path, extractor: Extractor, size: tuple[int, int], device: str) -> np.ndarray:
    """The features (N, F) that clean-fid computes for a folder with this network, in float64."""
    return cleanfid.fid.get_folder_features(
        str(folder),
        model=lambda batch: extractor.embed(batch)["features"],
        num_workers=0,
        device=pick_device(device),
        mode="clean",
        custom_fn_resize=make_resizer("PIL", False, "bicubic", size[::-1]),
        verbose=False,
    ).astype(np.float64)


def compare_with_clean_fid(samples: Path, reference: Path, options: MetricOptions, device: str) -> dict:
    """FID and KID of two folders: "ours", "clean-fid", and their relative difference."""
    ours = evaluate(str(samples), str(reference), options, device=device)
    extractor = build_extractor(options.extractor, options.weights, pick_device(device))
    _, height, width = extractor.prepare(np.zeros((8, 8, 3), np.uint8)).shape
    a, b = (clean_features(folder, extractor, (height, width), device) for folder in (samples, reference))
    np.random.seed(options.metric_seed)  # clean-fid draws its subsets from NumPy's global generator
    theirs = {
        "fid": cleanfid.fid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)),
        "kid": cleanfid.fid.kernel_distance(a, b, options.kid_subsets, options.kid_subset_size),
    }
    rows = {
        name: {
            "ours": ours[name],
            "clean-fid": float(value),
            "relative_difference": abs(ours[name] - float(value)) / abs(float(value)),
        }
        for name, value in theirs.items()
    }
    return rows | {key: ours[key] for key in REPORTED}
