"""Class labels as people give them: ids or names, one or many."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

IDS = re.compile(r"-?[0-9]{1,18}")  # words that are taken for ids


def ids_by_name(id2label: Mapping[str, str]) -> dict[str, int]:
    """The class id of every name by which a class can be called.

    A class may have several names, separated by commas, as in ImageNet: "goldfish, Carassius auratus". The whole text
    is also a name, and takes precedence over a part of another. A name shared by several classes is ambiguous and left
    out.
    """
    ids: dict[str, int] = {}
    parts = [(name, int(i)) for i, names in id2label.items() for name in names.split(",")]
    whole = [(names, int(i)) for i, names in id2label.items()]
    for pairs in (parts, whole):
        owners: dict[str, set[int]] = {}
        for name, i in pairs:
            owners.setdefault(name.strip(), set()).add(i)
        ids |= {name: min(owner) for name, owner in owners.items() if name and len(owner) == 1}
    return ids


def class_name(id2label: Mapping[str, str] | None, label: int) -> str:
    """The first name of a class; its id, as text, if it has none."""
    return (id2label or {}).get(str(label), "").split(",")[0].strip() or str(label)


def distinct_names(id2label: Mapping[str, str] | None, labels: Sequence[int]) -> list[str]:
    """The first names of classes; where several of these classes share one, as ImageNet's two cranes, with the id."""
    names = {label: class_name(id2label, label) for label in labels}
    shared = Counter(names.values())
    return [f"{names[label]} ({label})" if shared[names[label]] > 1 else names[label] for label in labels]


def labels_from_words(words: Sequence[str], names: Mapping[str, int]) -> list[int | str]:
    """Return the labels that the words of a command line stand for: names as they are, other numbers as ids.

    Args:
        words: the words.
        names: the class id of every known name; it takes precedence over a number that is written the same way.
    """
    return [int(word) if IDS.fullmatch(word) and word not in names else word for word in words]


def parse_labels(labels: Any, names: Mapping[str, int], num_classes: int) -> list[int]:
    """Turn class ids or names into ids.

    Args:
        labels: one label, or a list, tuple, range, tensor or array of them.
        names: the class id of every known name.
        num_classes: number of classes.

    Raises:
        ValueError: if a name is unknown, an id is outside 0…num_classes − 1, or a label is neither.
    """
    if isinstance(labels, (torch.Tensor, np.ndarray)):
        labels = labels.tolist()
    many: Sequence = labels if isinstance(labels, (list, tuple, range)) else [labels]
    ids = []
    for label in many:
        if isinstance(label, str):
            if label not in names:
                known = ", ".join(list(names)[:20]) or "none: this model has ids only"
                raise ValueError(f"class_labels: unknown name {label!r}; known names: {known}")
            label = names[label]
        if isinstance(label, bool) or not isinstance(label, Integral):
            raise ValueError(f"class_labels: {label!r} is neither a whole number nor a name")
        if not 0 <= int(label) < num_classes:
            raise ValueError(f"class_labels: {label} must be between 0 and {num_classes - 1}")
        ids.append(int(label))
    if not ids:
        raise ValueError("class_labels is empty; name at least one class")
    return ids


def class_mixtures(labels: Any, num_classes: int) -> torch.Tensor | None:
    """Return labels as mixtures of classes (B, num_classes), float32, if they are a matrix of floating point.

    Raises:
        ValueError: if they have another width, are empty, or not finite.
    """
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "f":
        labels = torch.from_numpy(np.ascontiguousarray(labels))
    if not isinstance(labels, torch.Tensor) or not labels.is_floating_point() or labels.ndim != 2:
        return None
    if labels.shape[1] != num_classes or not len(labels):
        raise ValueError(
            f"class_labels: floating-point numbers are weights of the classes, (images, {num_classes}), and not of the "
            f"shape {tuple(labels.shape)}; give whole numbers for class ids"
        )
    if not labels.isfinite().all():
        raise ValueError("class_labels: the weights of the classes hold NaN or infinity; give finite numbers")
    return labels.float()
