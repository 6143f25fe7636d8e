"""The pipelines of a demo: one or two folders that can be compared, and their names."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..models.codecs import vae_scale_factor
from ..pipelines.pipeline_sit import SiTPipeline
from ..sharing.folder import check_pipeline_folder, read_json, reading_folder, weights_variant
from ..sharing.saving import locate_folder
from .names import page_names


def load_pipelines(names: Sequence[str], device: torch.device) -> dict[str, SiTPipeline]:
    """Load pipelines by the names under which a page shows them.

    Args:
        names: pipeline folders, or names of pipelines on the Hub.
        device: where they compute.

    Raises:
        ValueError: if one cannot be loaded, or they cannot draw from the same noise and for the same classes; this is
            known before any weights are read.
    """
    folders = []
    for name in names:
        with reading_folder(name):
            folders.append(locate_folder(name, SiTPipeline.download, {}))
        check_pipeline_folder(folders[-1])
    check_alike(names, folders)
    pipelines = {}
    for title, folder in zip(page_names(names), folders, strict=True):
        with reading_folder(folder):
            pipeline = SiTPipeline.from_pretrained(folder, variant=weights_variant(folder))
        pipeline.set_progress_bar_config(disable=True)
        pipelines[title] = pipeline.to(device)
    return pipelines


def check_alike(names: Sequence[str], folders: Sequence[Path]) -> None:
    """Raise ValueError unless the pipelines have the same classes, and latents and images of the same size."""
    first, *others = map(describe_inputs, folders)
    for name, other in zip(names[1:], others, strict=True):
        for field, value in other.items():
            if value != first[field]:
                raise ValueError(
                    f"{name} has {field} {value}, but {names[0]} has {first[field]}; two pipelines can be shown side "
                    "by side if they draw the same classes at the same size"
                )


def describe_inputs(folder: Path) -> dict:
    """What two pipelines must share, from the JSON files of a pipeline folder."""
    model, vae = read_json(folder / "transformer" / "config.json"), read_json(folder / "vae" / "config.json")
    factor = vae_scale_factor(vae or None)
    return {
        "image size": model["sample_size"] * factor,
        "pixels per latent": factor,
        "channels": model["in_channels"],
        "number of classes": model["num_classes"],
        "class names": read_json(folder / "model_index.json").get("id2label"),
    }
