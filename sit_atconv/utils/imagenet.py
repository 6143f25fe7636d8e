"""Names of the classes of ImageNet-1k, in the order of its ids."""

import functools
import re
from collections.abc import Sequence
from typing import Any

SYNSET = re.compile("n[0-9]{8}")


@functools.cache  # reading it takes 0.1 s
def _imagenet() -> Any:
    from timm.data import ImageNetInfo  # only where classes may be ImageNet's

    return ImageNetInfo("imagenet-1k")


def imagenet_labels() -> dict[int, str]:
    """Return all names of each of the 1000 classes: {0: "tench, Tinca tinca", …}."""
    info = _imagenet()
    return {i: info.index_to_description(i, detailed=False) for i in range(info.num_classes())}


def name_synsets(classes: Sequence[str]) -> list[str]:
    """Replace ImageNet's folder names, such as n01440764, by class names; other names are returned as they are."""
    if not classes or not all(SYNSET.fullmatch(name) for name in classes):
        return list(classes)
    info = _imagenet()
    synsets = {info.index_to_label_name(i): i for i in range(info.num_classes())}
    if not set(classes) <= synsets.keys():
        return list(classes)
    return [info.index_to_description(synsets[name], detailed=False) for name in classes]
