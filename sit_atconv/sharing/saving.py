"""A pipeline takes its place in a folder as a whole or not at all, and only if it can be loaded again.

This module travels with the code in pipeline folders, as `portable.py` does.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..models.loading import check_model_can_be_loaded_again
from ..models.weight_files import (
    publication_rank,
    record_hashes,
    superseded_weights,
    verify_weights,
    verifying,
)
from ..utils.folder_update import updating_folder
from .portable import PACKAGE, superseded_sources


def check_components(pipeline) -> None:
    """Raise ValueError unless every component of a pipeline can be saved, and loaded again."""
    for name, component in pipeline.components.items():
        component = getattr(component, "_orig_mod", component)  # the model inside of torch.compile's wrapper
        if isinstance(component, ModelMixin):
            try:
                check_model_can_be_loaded_again(component)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            check_class_is_known(name, component)
        elif isinstance(component, SchedulerMixin):
            check_class_is_known(name, component)
        elif component is not None:
            raise ValueError(
                f"{name} is a {type(component).__name__}, which a pipeline folder cannot hold; set pipeline.{name} to "
                "the model of diffusers inside of it"
            )


def check_class_is_known(name: str, component) -> None:
    """Raise ValueError unless the class of a component will be found when the folder is loaded.

    Those are the classes of this package, of diffusers, and of the code in a folder that the pipeline was loaded from.
    """
    component_class = type(component)
    module, class_name = component_class.__module__, component_class.__name__
    if module.split(".")[0] in (PACKAGE, "diffusers_modules"):
        return
    if getattr(diffusers, class_name, None) is not component_class:
        raise ValueError(
            f"{name} is of the class {module}.{class_name}; SiTPipeline.from_pretrained runs no code of a folder, so "
            f"it could not be loaded again. Set pipeline.{name} to an object of a class of sit-atconv or diffusers"
        )


@contextmanager
def updating_pipeline_folder(pipeline, folder: str | Path, variant: str | None) -> Iterator[Path]:
    """Yield an empty folder to save a pipeline to; at the end its files take their places in `folder`.

    Other variants and other files in `folder` stay.

    Raises:
        ValueError: if the pipeline could not be loaded again; `folder` is not touched.
    """
    check_components(pipeline)
    target = Path(folder)

    def superseded_files(staging: Path) -> list[Path]:
        models = [file.parent.name for file in staging.glob("*/config.json")]
        weights = [file for name in models for file in superseded_weights(staging / name, target / name, variant)]
        return weights + superseded_sources(staging, target)

    with updating_folder(target, superseded_files, publication_rank) as staging:
        yield staging
        for file in staging.glob("*/config.json"):
            record_hashes(file.parent, target / file.parent.name, superseded_files(staging))


def locate_folder(name_or_path: str | Path, download: Callable[..., str], options: dict) -> Path:
    """Return the folder of a pipeline, which is downloaded if it is none of this machine but may be a name on the Hub.

    Args:
        name_or_path: the folder or the name.
        download: called with the name and `options`; returns the folder.
        options: those of `from_pretrained`.

    Raises:
        ValueError: if it is neither, or cannot be downloaded.
    """
    folder, text = Path(name_or_path), os.fspath(name_or_path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{text!r} is a file, not a pipeline folder; a checkpoint becomes one by sit-atconv convert")
    if not 1 <= len(folder.parts) <= 2 or text.startswith((".", "~", "/", "\\")):
        raise ValueError(f"{text!r} is neither a folder nor a name on the Hub such as 'user/model'; check the path")
    try:
        return Path(download(text, **options))
    except OSError as error:  # as all errors of the Hub and of the connection are
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{text!r} is no folder here, and was not received from the Hub: {reason}; check the path or the name"
        ) from error


@contextmanager
def verifying_components(folder: Path, wanted: bool, options: dict) -> Iterator[None]:
    """Compare the models of a pipeline folder with their hashes while they are loaded in this context.

    Args:
        folder: the pipeline folder.
        wanted: whether to compare at all.
        options: those of `from_pretrained`, which may replace components.

    Raises:
        ValueError: if weights are not as they were saved.
    """
    if wanted and "vae" not in options:  # the transformer compares itself, since it can also be loaded alone
        verify_weights(folder / "vae", options.get("variant"))
    with verifying(wanted):
        yield
