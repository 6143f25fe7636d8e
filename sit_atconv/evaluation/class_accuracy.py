"""How often a classifier that was fitted to real images sees the requested class in generated ones.

For small labelled data: the classifier is a support vector machine on raw pixels. Its accuracy on held-out real images
is an upper bound of what the accuracy on samples can mean.

B images of H × W pixels and C channels; images are uint8 (H, W, C).
"""

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from tqdm import tqdm

from ..data import BrokenImageError, ImageDataset
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.checks import check_count, check_pixel_dimensions
from ..utils.environment import package_versions
from ..utils.files import check_new_file
from ..utils.image_grid import save_grid
from .image_sets import leave_out, notes_on_broken
from .records import describe_pipeline
from .sampling import check_same_images, flatten_pixels, generate
from .sampling_dtype import cast_pipeline, network_dtype, resolve_dtype
from .sampling_options import SamplingOptions, balanced_labels

HELD_OUT = 0.25
MIN_PER_CLASS = round(1 / HELD_OUT)  # so that every class has a held-out image
GRID_COLUMNS = 10


def class_accuracy(
    pipeline: SiTPipeline,
    dataset: ImageDataset,
    samples_per_class: int = 100,
    seed: int = 0,
    guidance_scale: float = 1.0,
    num_inference_steps: int | None = None,
    batch_size: int = 100,
    dtype: str = "auto",
    grid: str | None = None,
    max_broken_images: int = 0,
) -> dict:
    """Judge class-conditional samples with a classifier that was fitted to real images.

    Args:
        pipeline: the pipeline to be sampled.
        dataset: the real images; their classes are those of the pipeline.
        samples_per_class: number of samples of each class.
        seed: seed of the noise; image i depends on (seed, i) only, and the classes take turns.
        guidance_scale: scale of classifier-free guidance; 1 disables guidance.
        num_inference_steps: number of solver steps. If None, the default of the pipeline.
        batch_size: number of images per forward pass.
        dtype: data type of the pipeline's networks, to which they are cast in place, see `SamplingOptions`. With auto,
            a pipeline that is not in float32 is left as it is.
        grid: a new PNG file for a picture of the first samples, one class per row. If None, no picture is written.
        max_broken_images: number of real images that may be left out because they cannot be read.

    Returns:
        The report: "class_accuracy", the share of samples that are seen as the class they were drawn for; the same
        "per_class"; "real_accuracy" on real images to which the classifier was not fitted; and what they depend on.

    Raises:
        ValueError: naming what cannot be used, before any long work; or an image that cannot be read.
    """
    check_count("samples_per_class", samples_per_class)
    check_count("max_broken_images", max_broken_images, least=0)
    check_new_file("grid", grid)
    options = SamplingOptions(
        seed=seed,
        batch_size=batch_size,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        dtype=dtype,  # type: ignore[arg-type]  # check refuses what is none
    )
    options.check()
    options = options.resolve(pipeline)
    check_dataset(pipeline, dataset)
    options = resolve_dtype([pipeline], options)
    if dtype != "auto" or options.dtype != network_dtype(pipeline):  # else a VAE in another is left alone as well
        cast_pipeline(pipeline, options.dtype)
    classifier, real_accuracy, broken = fit_classifier(dataset, max_broken_images)

    num_classes = len(dataset.classes)
    labels = balanced_labels(range(samples_per_class * num_classes), num_classes)
    images = draw_all(pipeline, labels, options)  # (B, H, W, C), the classes take turns
    by_class = images.reshape(samples_per_class, num_classes, *images.shape[1:]).swapaxes(0, 1)
    if grid is not None:
        save_class_grid(by_class, grid)
    correct = (classifier.predict(flatten_pixels(images)) == labels).reshape(samples_per_class, num_classes)
    return {
        "class_accuracy": float(correct.mean()),
        "per_class": dict(zip(dataset.classes, correct.mean(axis=0).tolist(), strict=True)),
        "real_accuracy": real_accuracy,
        "classifier": f"{classifier} on raw pixels",
        "reference": dataset.name,
        "num_reference": len(dataset) - len(broken),
        "notes": notes_on_broken(dataset.name, broken),
        "samples_per_class": samples_per_class,
        "seed": seed,
        "guidance_scale": guidance_scale,
        "num_inference_steps": options.num_inference_steps,
        "dtype": options.dtype,
        **describe_pipeline(pipeline),
        "versions": package_versions(),
    }


def check_dataset(pipeline: SiTPipeline, dataset: ImageDataset) -> None:
    """Check that pipeline and data set have the same images and classes, and enough of them for a classifier.

    Raises:
        ValueError: naming the difference, or the class with too few images.
    """
    check_pixel_dimensions((dataset.image_size, dataset.image_size, dataset.channels))
    check_same_images(pipeline, dataset)
    num_classes = pipeline.transformer.config.num_classes
    if num_classes < 2:
        raise ValueError(f"{dataset.name} has {num_classes} class; a classifier needs 2 or more")
    counts = np.bincount(dataset.labels, minlength=num_classes)
    if counts.min() < MIN_PER_CLASS:
        name = dataset.classes[int(counts.argmin())]
        raise ValueError(
            f"class {name!r} of {dataset.name} has {counts.min()} images; {MIN_PER_CLASS} are needed, to hold one out"
        )


def fit_classifier(dataset: ImageDataset, max_broken_images: int = 0) -> tuple[SVC, float, list[str]]:
    """Fit a classifier of raw pixels to all images.

    Returns:
        The classifier; the accuracy, on a fixed quarter of the images, of another one that was fitted to the rest; and
        the images that cannot be read.

    Raises:
        BrokenImageError: if these are more than `max_broken_images`.
    """
    images: list[np.ndarray] = []
    labels: list[int] = []
    broken: list[str] = []
    for index in tqdm(range(len(dataset)), desc="reading", leave=False):
        try:
            images.append(dataset.image(index))
            labels.append(dataset.labels[index])
        except BrokenImageError as error:
            leave_out(error, broken, max_broken_images)
    features = flatten_pixels(np.stack(images))
    splits = train_test_split(features, labels, test_size=HELD_OUT, random_state=0, stratify=labels)
    fit_features, held_out_features, fit_labels, held_out_labels = splits
    held_out_accuracy = SVC(gamma="scale").fit(fit_features, fit_labels).score(held_out_features, held_out_labels)
    return SVC(gamma="scale").fit(features, labels), float(held_out_accuracy), broken


def draw_all(pipeline: SiTPipeline, labels: list[int], options: SamplingOptions) -> np.ndarray:
    """Sample one image per label, with a progress bar: (B, H, W, C) uint8."""
    batches = []
    with tqdm(total=len(labels), desc="samples", unit="image", dynamic_ncols=True) as progress:
        for batch in generate(pipeline, labels, options):
            batches.append(batch)
            progress.update(len(batch))
    return np.concatenate(batches)


def save_class_grid(by_class: np.ndarray, file: str) -> None:
    """Write the first samples of each class, one class per row, as a PNG file.

    Args:
        by_class: (classes, samples, H, W, C) uint8.
        file: the PNG file.
    """
    rows = by_class[:, :GRID_COLUMNS]
    pixels = torch.from_numpy(rows.reshape(-1, *rows.shape[2:]) / 255).permute(0, 3, 1, 2)  # (B, C, H, W)
    save_grid(pixels, file, columns=rows.shape[1])


def class_summary(report: dict) -> str:
    """The report, with the name of the "samples", in three lines."""
    per_class = ", ".join(f"{name} {share:.3f}" for name, share in report["per_class"].items())
    return (
        f"class accuracy {report['class_accuracy']:.3f}: {report['samples_per_class']} samples per class of "
        f"{report['samples']} against {report['reference']} ({report['num_reference']})\n"
        f"  per class: {per_class}\n"
        f"  of the classifier on held-out real images: {report['real_accuracy']:.3f}"
        + "".join(f"\n  {note}" for note in report["notes"])
    )
