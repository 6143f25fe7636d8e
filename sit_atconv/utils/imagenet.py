"""Names of the classes of ImageNet-1k, in the order of its ids."""

from collections.abc import Sequence

from timm.data import ImageNetInfo


def imagenet_labels() -> dict[int, str]:
    """All names of each of the 1000 classes: {0: "tench, Tinca tinca", …}."""
    info = ImageNetInfo("imagenet-1k")
    return {i: info.index_to_description(i, detailed=False) for i in range(info.num_classes())}


def name_synsets(classes: Sequence[str]) -> list[str]:
    """Class names for people: the folders of ImageNet, such as n01440764, become names; all others stay."""
    info = ImageNetInfo("imagenet-1k")
    synsets = {info.index_to_label_name(i): i for i in range(info.num_classes())}
    if not set(classes) <= synsets.keys():
        return list(classes)
    return [info.index_to_description(synsets[name], detailed=False) for name in classes]
