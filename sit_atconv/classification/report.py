"""The report of a classifier: accuracy, per class, confusions, calibration, throughput.

K classes of the model.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn
from tqdm import tqdm

from ..data import ImageDataset, hold_out, open_dataset
from ..models import attnet_variants  # noqa: F401  registers AttNet with timm
from ..models.timm_encoders import check_timm_model, fetch_timm_model
from ..utils.bounded_text import load_json, read_json_object
from ..utils.checks import check_count
from ..utils.environment import package_versions
from ..utils.files import check_new_file, staged
from ..utils.text import counted, one_line
from .augmentation import evaluation_transform
from .evaluate import Evaluation
from .models import number_of_parameters
from .scores import CALIBRATION_BINS, Scores

CONFIG_FILE = "config.json"  # timm's name
NAMED_CLASSES = 40  # most classes whose names a picture of confusions can show


def classify(
    model: nn.Module,
    dataset: ImageDataset,
    class_ids: list[int],
    batch_size: int = 64,
    image_size: int | None = None,
    crop_pct: float | None = None,
    real_labels: str | None = None,
    confusion: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on labelled images.

    Args:
        model: the model, in eval mode.
        dataset: the images.
        class_ids: the class id of the model for each class of the data set.
        batch_size: number of images per forward pass.
        image_size: side of the images that the model sees; defaults to that of the model.
        crop_pct: images are resized to image_size / crop_pct and the centre is cut out; defaults to that of the model.
        real_labels: a JSON file with the reassessed labels of ImageNet's validation images (ReaL, arXiv 2006.07159). If
            None, they are not scored.
        confusion: a new PNG file for a picture of the confusion matrix. If None, no picture is drawn.

    Returns:
        The report: "top1", "top5", "loss", "ece" (expected calibration error), the same "per_class", "calibration" by
        confidence, "confusions", "images_per_second", and what they depend on.

    Raises:
        ValueError: naming what cannot be used.
    """
    check_count("batch_size", batch_size)
    check_new_file("confusion", confusion)
    if image_size is not None:
        check_count("image_size", image_size)
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct={crop_pct} must be above 0 and at most 1")
    config = resolve_model_data_config(model)
    size = config["input_size"][1] if image_size is None else image_size
    crop = config["crop_pct"] if crop_pct is None else crop_pct
    real = None if real_labels is None else read_real_labels(real_labels)
    channels = config["input_size"][0]
    mean, std = (tuple(config[key]) * (3 if len(config[key]) == 1 else 1) for key in ("mean", "std"))
    transform = evaluation_transform(size, crop, mean, std, config["interpolation"])
    dataset.labels = np.asarray(class_ids, np.int64)[dataset.labels]
    evaluation, scores = Evaluation(dataset, transform, channels, batch_size), Scores(int(model.num_classes))  # type: ignore[arg-type]  # all models of timm have it
    device = next(model.parameters()).device
    bar = functools.partial(tqdm, desc="evaluation", unit="batch", leave=False, disable=None)
    evaluation.run(model, scores, device=device, progress=bar)
    if not scores.images:
        raise ValueError(f"none of the {len(dataset)} images can be read: {evaluation.unreadable[0]}")
    names = dict(zip(class_ids, dataset.classes, strict=True))
    if confusion is not None:
        draw_confusions(scores.confusion.numpy(), names, confusion)
    recall = scores.per_class()
    report = {
        **scores.summary(),
        "images": scores.images,
        "unreadable": evaluation.unreadable,
        "per_class": {name: recall[label] for label, name in names.items()},
        "calibration": calibration(scores),
        "confusions": most_confused(scores.confusion, names),
        "images_per_second": scores.images / evaluation.seconds,
        "batch_size": batch_size,
        "image_size": size,
        "crop_pct": crop,
        "parameters": number_of_parameters(model),
        "versions": package_versions(),
    }
    if real is not None:
        report["real"] = real_accuracy(real, dataset, evaluation.predictions)
    return report


def load_classifier(name: str, device: torch.device | str) -> tuple[nn.Module, list[str]]:
    """Load a classifier in eval mode, and the names of its classes, if the folder says them.

    Args:
        name: a folder that timm's save_for_hf or sit-atconv convert wrote; a run folder of train/train_attnet.py, whose
            model folder is meant; or a name of timm, whose weights are fetched.
        device: where to put it.

    Raises:
        ValueError: if there is no such model, or it cannot be loaded.
    """
    folder = Path(name)
    if (folder / "model" / CONFIG_FILE).is_file():
        folder = folder / "model"
    if not folder.is_dir():
        architecture = name.removeprefix("timm:")
        check_timm_model("model", name, architecture)
        model, names = fetch_timm_model(architecture), list[str]()
    else:
        if not (folder / CONFIG_FILE).is_file():
            finished = "; the run has not finished" if (folder / "config.yaml").is_file() else ""
            raise ValueError(f"model={name!r} holds no {CONFIG_FILE} as timm writes it{finished}")
        names = read_json_object(folder / CONFIG_FILE).get("label_names") or []
        try:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        except (RuntimeError, OSError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"model={name!r} cannot be loaded: {one_line(str(error))}") from error
    if model.num_classes < 2:
        raise ValueError(f"model={name!r} has {model.num_classes} classes; give one that was trained to classify")
    return model.eval().to(device), list(names)


def open_labelled(data: str, ground_truth: str | None, held_out: float | None) -> ImageDataset:
    """Open images with their classes.

    Args:
        data: the source. A flat folder of images needs `ground_truth`.
        ground_truth: a text file with a line "FILE CLASS" for each image of a folder without class folders; CLASS is an
            id or a name, such as a synset.
        held_out: evaluate the images that a training with this `held_out` has held out. If None, all.

    Raises:
        ValueError: if the images have no classes.
    """
    size = None if data == "digits" else 1  # pictures are read whole
    if ground_truth is not None:
        dataset = open_dataset(data, size)
        apply_ground_truth(dataset, ground_truth)
    else:
        dataset = open_dataset(data, size)
    dataset.check_pixels("a classifier looks at images, but")
    if not dataset.classes:
        raise ValueError(
            f"data={data!r} has no classes; put the images of each class into a folder of their own, or name the file "
            "of their classes with --ground_truth"
        )
    return dataset if held_out is None else hold_out(dataset, held_out)[1]


def apply_ground_truth(dataset: ImageDataset, file: str) -> None:
    """Give the images of a flat folder the classes that a text file lists.

    Raises:
        ValueError: naming the line or the image that has no class.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"ground_truth={file!r} cannot be read: {error}") from error
    classes: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != 2:
            raise ValueError(f"ground_truth={file!r}, line {number}: {one_line(line)[:60]!r} is not 'FILE CLASS'")
        classes[Path(words[0]).name] = words[1]
    names = [Path(dataset.origin(index)).name for index in range(len(dataset))]
    if missing := [name for name in names if name not in classes]:
        raise ValueError(f"ground_truth={file!r} has no line for {len(missing)} images, such as {missing[0]}")
    found = [classes[name] for name in names]
    if all(label.isdigit() for label in found):
        dataset.classes = [str(label) for label in range(max(map(int, found)) + 1)]
        dataset.labels = np.array(found, np.int64)
    else:
        dataset.classes = sorted(set(found))
        dataset.labels = np.array([dataset.classes.index(label) for label in found], np.int64)


def match_classes(dataset: ImageDataset, names: list[str], num_classes: int) -> list[int]:
    """Return the class id of the model for each class of the data.

    Args:
        dataset: the images.
        names: the names of the model's classes by id; empty if they are not known.
        num_classes: K.

    Raises:
        ValueError: if they do not fit.
    """
    if names and set(dataset.classes) <= set(names):
        return [names.index(name) for name in dataset.classes]
    ids = [int(name) for name in dataset.classes if name.isdigit()]
    if len(ids) == len(dataset.classes) and max(ids) < num_classes:
        return ids
    if len(dataset.classes) == num_classes:
        return list(range(num_classes))
    known = f", such as {', '.join(names[:3])}" if names else ""
    raise ValueError(
        f"data={dataset.source!r} has {len(dataset.classes)} classes, such as {', '.join(dataset.classes[:3])}; the "
        f"model has {num_classes}{known}. Give data of the classes that it was trained on"
    )


def calibration(scores: Scores) -> list[dict[str, float]]:
    """Images, accuracy and mean confidence of each bin of confidence that has images."""
    rows = []
    for i, (count, correct, confidence) in enumerate(scores.bins.T.tolist()):
        if count:
            rows.append(
                dict(
                    above=i / CALIBRATION_BINS,
                    images=int(count),
                    accuracy=correct / count,
                    confidence=confidence / count,
                )
            )
    return rows


def most_confused(confusion: torch.Tensor, names: dict[int, str], count: int = 20) -> list[dict[str, Any]]:
    """The most frequent confusions: what was shown, what was predicted, and how often."""
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    values, places = wrong.topk(min(count, len(wrong)))
    classes = confusion.shape[0]
    return [
        {
            "shown": names.get(place // classes, str(place // classes)),
            "predicted": names.get(place % classes, str(place % classes)),
            "images": int(value),
        }
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value
    ]


def draw_confusions(confusion: np.ndarray, names: dict[int, str], file: str) -> None:
    """Draw the confusion matrix (K, K), [shown, predicted], each row divided by its sum, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, vmin=0, vmax=1, cmap="viridis"), label="share of the class")
    axes.set(xlabel="predicted", ylabel="shown")
    if len(shares) <= NAMED_CLASSES:
        labels = [names.get(i, str(i)) for i in range(len(shares))]
        axes.set_xticks(range(len(shares)), labels, rotation=90)
        axes.set_yticks(range(len(shares)), labels)
    with staged(Path(file)) as part:
        FigureCanvasAgg(figure).print_png(part)


def read_real_labels(file: str) -> list[list[int]]:
    """Read the labels of ReaL: a list of class ids for each of ImageNet's validation images.

    Raises:
        ValueError: if the file is not such a list.
    """
    try:
        labels = load_json(Path(file).read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"real_labels={file!r} cannot be read: {error}") from error
    if not isinstance(labels, list) or not all(
        isinstance(each, list) and all(type(label) is int for label in each) for each in labels
    ):
        raise ValueError(f"real_labels={file!r} is not a list of lists of class ids, as real.json is")
    return labels


def real_accuracy(real: list[list[int]], dataset: ImageDataset, predictions: dict[int, int]) -> dict[str, float]:
    """The share of images whose prediction is among their reassessed labels; images without such labels do not count.

    Raises:
        ValueError: if the name of an image does not tell its number in ImageNet's validation set.
    """
    correct = []
    for index, predicted in predictions.items():
        number = re.search(r"val_(\d{8})", dataset.origin(index))
        if number is None or not 1 <= int(number[1]) <= len(real):
            raise ValueError(
                f"real_labels: {dataset.origin(index)} is not named like ILSVRC2012_val_00000001.JPEG, so its labels "
                "are not known"
            )
        if labels := real[int(number[1]) - 1]:
            correct.append(predicted in labels)
    return {"top1": float(np.mean(correct)) if correct else float("nan"), "images": len(correct)}


def summary(report: dict[str, Any]) -> str:
    """The report in a few lines."""
    accuracy = {name: value for name, value in report["per_class"].items() if value is not None}
    worst = sorted(accuracy, key=lambda name: accuracy[name])[:5]
    lines = [
        f"top-1 {report['top1']:.4f}, top-5 {report['top5']:.4f}, loss {report['loss']:.4f}, calibration error "
        f"{report['ece']:.4f}: {counted(report['images'], 'image')} of {report['data']}",
        f"  lowest per class: {', '.join(f'{name} {accuracy[name]:.3f}' for name in worst)}",
        f"  {report['images_per_second']:.1f} images a second in the model, batches of {report['batch_size']} at "
        f"{report['image_size']}² pixels",
    ]
    if "real" in report:
        lines.append(
            f"  reassessed labels: top-1 {report['real']['top1']:.4f} of {counted(report['real']['images'], 'image')}"
        )
    if report["unreadable"]:
        lines.append(f"  left out, because they cannot be read: {counted(len(report['unreadable']), 'image')}")
    return "\n".join(lines)
