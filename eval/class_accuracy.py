"""How often a classifier fitted to real images sees the requested class in generated ones.

    python eval/class_accuracy.py runs/digits-atconv/pipeline --reference digits --grid samples.png

For small labelled data: the classifier is a support vector machine on raw pixels. Its accuracy on real images that it
was not fitted to comes first: it bounds what the other number can mean.

B images of H × W pixels and C channels; images are uint8 (H, W, C).
"""

import shlex
import sys

import numpy as np
import torch
from jsonargparse import ArgumentParser
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from tqdm import tqdm

from sit_atconv import SiTPipeline
from sit_atconv.data import ImageDataset, open_dataset
from sit_atconv.evaluation.records import describe_pipeline
from sit_atconv.evaluation.sampling import (
    SamplingOptions,
    balanced_labels,
    flatten_pixels,
    generate,
    image_shape,
    load_pipeline,
)
from sit_atconv.utils.checks import check_count, check_pixel_dimensions
from sit_atconv.utils.environment import package_versions, pick_device
from sit_atconv.utils.files import check_new_file, write_report
from sit_atconv.utils.image_grid import save_grid

HELD_OUT = 0.25
MIN_PER_CLASS = round(1 / HELD_OUT)  # so that every class has a held-out image
GRID_COLUMNS = 10


def fit_classifier(dataset: ImageDataset) -> tuple[SVC, float]:
    """Fit a classifier of raw pixels to all images.

    Returns:
        The classifier, and the accuracy on a fixed quarter of the images of one that was fitted to the others.
    """
    images = np.stack([dataset.image(i) for i in tqdm(range(len(dataset)), desc="reading", leave=False)])
    features = flatten_pixels(images)
    splits = train_test_split(features, dataset.labels, test_size=HELD_OUT, random_state=0, stratify=dataset.labels)
    fit_features, held_out_features, fit_labels, held_out_labels = splits
    held_out_accuracy = SVC(gamma="scale").fit(fit_features, fit_labels).score(held_out_features, held_out_labels)
    return SVC(gamma="scale").fit(features, dataset.labels), float(held_out_accuracy)


def check_dataset(pipeline: SiTPipeline, dataset: ImageDataset) -> None:
    """Raise ValueError where images or classes of the two differ, or where a pixel classifier cannot cope."""
    shape = (dataset.image_size, dataset.image_size, dataset.channels)
    check_pixel_dimensions(shape)
    if shape != image_shape(pipeline):
        shapes = ["×".join(map(str, value)) for value in (shape, image_shape(pipeline))]
        raise ValueError(f"images of {dataset.name} are {shapes[0]}, the pipeline's {shapes[1]}; they must be alike")
    num_classes = pipeline.transformer.config.num_classes
    if len(dataset.classes) != num_classes or num_classes < 2:
        raise ValueError(
            f"{dataset.name} has {len(dataset.classes)} classes, the pipeline {num_classes}; both must have the same, "
            "2 or more"
        )
    for name, label in pipeline.labels.items():
        if name in dataset.classes and dataset.classes.index(name) != label:
            raise ValueError(
                f"class {name!r} is {dataset.classes.index(name)} in {dataset.name}, but {label} in the pipeline; "
                "give the data that it was trained on"
            )
    counts = np.bincount(dataset.labels, minlength=num_classes)
    if counts.min() < MIN_PER_CLASS:
        name = dataset.classes[int(counts.argmin())]
        raise ValueError(
            f"class {name!r} of {dataset.name} has {counts.min()} images; {MIN_PER_CLASS} are needed, to hold one out"
        )


def class_accuracy(
    pipeline: SiTPipeline,
    dataset: ImageDataset,
    samples_per_class: int = 100,
    seed: int = 0,
    guidance_scale: float = 1.0,
    num_inference_steps: int | None = None,
    batch_size: int = 100,
    grid: str | None = None,
) -> dict:
    """Judge class-conditional samples with a classifier fitted to real images.

    Args:
        pipeline: to be sampled.
        dataset: the real images, with the pipeline's classes.
        samples_per_class: images to draw of each class.
        seed: of the pipeline's noise; image i depends on (seed, i) alone, classes take turns.
        guidance_scale: of classifier-free guidance; 1 is none.
        num_inference_steps: solver steps; the pipeline's default where None.
        batch_size: images per forward pass.
        grid: a new PNG file for a picture of the first samples, one class a row.

    Returns:
        The report: "class_accuracy", the share of samples that are seen as the class they were drawn for; the same
        "per_class"; "real_accuracy" on real images that the classifier was not fitted to; and what they depend on.

    Raises:
        ValueError: naming what cannot be used, before any long work; or an image that cannot be read.
    """
    check_count("samples_per_class", samples_per_class)
    check_new_file("grid", grid)
    sampling = SamplingOptions(
        seed=seed, batch_size=batch_size, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps
    ).resolve(pipeline)
    check_dataset(pipeline, dataset)
    classifier, real_accuracy = fit_classifier(dataset)

    num_classes = len(dataset.classes)
    labels = balanced_labels(samples_per_class * num_classes, num_classes)
    images = []
    with tqdm(total=len(labels), desc="samples", unit="image", dynamic_ncols=True) as progress:
        for batch in generate(pipeline, labels, sampling):
            images.append(batch)
            progress.update(len(batch))
    images = np.concatenate(images)  # (B, H, W, C), classes taking turns
    if grid is not None:
        rows = images.reshape(samples_per_class, num_classes, *images.shape[1:]).swapaxes(0, 1)[:, :GRID_COLUMNS]
        pixels = torch.from_numpy(rows.reshape(-1, *images.shape[1:]) / 255).permute(0, 3, 1, 2)  # (B, C, H, W)
        save_grid(pixels, grid, columns=rows.shape[1])

    correct = (classifier.predict(flatten_pixels(images)) == labels).reshape(samples_per_class, num_classes)
    return {
        "class_accuracy": float(correct.mean()),
        "per_class": dict(zip(dataset.classes, correct.mean(axis=0).tolist(), strict=True)),
        "real_accuracy": real_accuracy,
        "classifier": f"{classifier} on raw pixels",
        "reference": dataset.name,
        "num_reference": len(dataset),
        "samples_per_class": samples_per_class,
        "seed": seed,
        "guidance_scale": guidance_scale,
        "num_inference_steps": sampling.num_inference_steps,
        **describe_pipeline(pipeline),
        "versions": package_versions(),
    }


def summary(report: dict) -> str:
    """The report in three lines."""
    per_class = ", ".join(f"{name} {share:.3f}" for name, share in report["per_class"].items())
    return (
        f"class accuracy {report['class_accuracy']:.3f}: {report['samples_per_class']} samples per class of "
        f"{report['samples']} against {report['reference']} ({report['num_reference']})\n"
        f"  per class: {per_class}\n"
        f"  of the classifier on held-out real images: {report['real_accuracy']:.3f}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line; a mistake in it ends with one line and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(prog="class_accuracy.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("samples", type=str, help="a pipeline folder")
    parser.add_argument(
        "--reference", type=str, default="digits", help="real images: digits, or a folder with one folder per class"
    )
    parser.add_argument(
        "--image_size", type=int | None, help="side of the images of a folder; the pipeline's where none is given"
    )
    parser.add_function_arguments(class_accuracy, skip={"pipeline", "dataset"})
    parser.add_argument(
        "--device", type=str, default="auto", help="such as cpu or cuda; auto takes the GPU where there is one"
    )
    parser.add_argument("--output", type=str | None, help="a new JSON file for the report")
    options = parser.parse_args(arguments).as_dict()
    samples, reference, image_size, device, output = (
        options.pop(name) for name in ("samples", "reference", "image_size", "device", "output")
    )
    try:
        check_new_file("output", output)
        pipeline = load_pipeline(samples, pick_device(device))
        if image_size is None and reference != "digits":
            image_size = image_shape(pipeline)[0]
        report = class_accuracy(pipeline, open_dataset(reference, image_size), **options)
    except ValueError as error:
        parser.error(str(error))
    report = {"samples": samples, **report, "command": shlex.join(["python", "eval/class_accuracy.py", *arguments])}
    print(summary(report))
    if output is not None:
        write_report(output, report)


if __name__ == "__main__":
    main()
