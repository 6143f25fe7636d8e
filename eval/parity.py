"""FID and KID of two sets of images, as computed here and by clean-fid's own functions.

    python eval/parity.py SAMPLES --reference PHOTOS
    python eval/parity.py test.parquet --reference train.parquet --image_size 32 --num_images 600 \
        --extractor efficientnet-lite0@64

clean-fid gets folders of images and the same network; it reads, resizes and batches them, and computes the distances,
by itself. Data sets and .npz batches are written out as PNG files for it, in a temporary folder.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import cleanfid.fid
import numpy as np
from cleanfid.resize import make_resizer
from jsonargparse import ArgumentParser
from PIL import Image

from sit_atconv.evaluation.extractor import Extractor, parse_extractor
from sit_atconv.evaluation.features import build_extractor
from sit_atconv.evaluation.image_sets import open_images
from sit_atconv.evaluation.metric_options import MetricOptions
from sit_atconv.evaluation.scores import evaluate
from sit_atconv.utils.checks import check_count
from sit_atconv.utils.environment import pick_device
from sit_atconv.utils.files import check_new_file, write_report


def image_folder(field: str, source: str, target: Path, options: MetricOptions, num_images: int | None) -> Path:
    """A folder with the first images of a source; the source itself where all are taken as they are.

    Raises:
        ValueError: for a source that cannot be read, or of fewer images.
    """
    images = open_images(field, source, options.image_size)
    if num_images is not None and num_images > len(images):
        raise ValueError(f"num_images={num_images} exceeds the {len(images)} of {field}={source!r}")
    if num_images is None and options.image_size is None and Path(source).is_dir():
        return Path(source)
    target.mkdir()
    for i in range(num_images or len(images)):
        image = images.image(i)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(target / f"{i:06d}.png")
    return target


def clean_features(folder: Path, extractor: Extractor, size: tuple[int, int], device: str) -> np.ndarray:
    """The features (N, F) that clean-fid gets from a folder with this network, in float64."""
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
    """FID and KID of two folders, "ours" and "clean-fid", and their relative difference."""
    ours = evaluate(str(samples), str(reference), options, device=device)
    extractor = build_extractor(options.extractor, options.weights, pick_device(device))
    size = extractor.prepare(np.zeros((8, 8, 3), np.uint8)).shape[1:]
    a, b = (clean_features(folder, extractor, tuple(size), device) for folder in (samples, reference))
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
    keys = (
        "extractor",
        "weights_sha256",
        "num_features",
        "num_samples",
        "num_reference",
        "versions",
        "device",
        "notes",
    )
    return rows | {key: ours[key] for key in keys}


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    parser = ArgumentParser(prog="parity.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("samples", type=str, help="images: a folder, a .npz batch, or a data set such as digits")
    parser.add_argument("--reference", type=str, required=True, help="other images, likewise")
    parser.add_argument("--extractor", type=str, default="inception", help="as in eval/fid.py; one that resizes")
    parser.add_argument("--weights", type=str | None, help="a file with the extractor's weights")
    parser.add_argument("--image_size", type=int | None, help="side of the centre square; needed for parquet files")
    parser.add_argument("--num_images", type=int | None, help="take the first so many of both; all where not given")
    parser.add_argument("--device", type=str, default="auto", help="such as cpu or cuda")
    parser.add_argument("--output", type=str | None, help="a new JSON file for the result")
    given = parser.parse_args(arguments)
    options = MetricOptions("fid,kid", given.extractor, given.weights, image_size=given.image_size)
    try:
        check_new_file("output", given.output)
        options.check()
        if given.num_images is not None:
            check_count("num_images", given.num_images)
        kind, _, size = parse_extractor(given.extractor)
        if kind in ("pixels", "inception-adm") or (kind == "torchscript" and size is None):
            raise ValueError(f"extractor={given.extractor!r} does not resize as clean-fid does; use another")
        with tempfile.TemporaryDirectory() as temporary:
            samples, reference = (
                image_folder(field, getattr(given, field), Path(temporary) / field, options, given.num_images)
                for field in ("samples", "reference")
            )
            as_they_are = dataclasses.replace(options, image_size=None)  # the folders are of that size already
            result = compare_with_clean_fid(samples, reference, as_they_are, given.device)
    except ValueError as error:
        parser.error(str(error))
    for name in ("fid", "kid"):
        row = result[name]
        print(
            f"{name.upper()} {row['ours']:.9g}, clean-fid's {row['clean-fid']:.9g}, relative difference "
            f"{row['relative_difference']:.1e}"
        )
    if given.output is not None:
        write_report(given.output, {"samples": given.samples, "reference": given.reference, **result})


if __name__ == "__main__":
    main(sys.argv[1:])
