"""The end of a run: its pipeline folder, and what to do with it next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..data import ImageDataset
from ..pipelines.pipeline_sit import SiTPipeline
from ..sharing.card import add_samples, write_lineage, write_training_config
from ..sharing.hub import publish
from ..utils.checks import MAX_PIXEL_DIMENSIONS
from ..utils.files import STAGING, remove, sync
from ..utils.imagenet import name_synsets
from ..utils.text import shell_word


def save_pipeline(
    pipeline: SiTPipeline,
    folder: Path,
    training_config: dict[str, Any] | None = None,
    samples: Path | None = None,
    lineage: dict[str, Any] | None = None,
) -> None:
    """Save a pipeline so that a kill or a power cut leaves the whole old folder, the whole new one, or none.

    Args:
        pipeline: the pipeline.
        folder: the folder to write or to replace.
        training_config: every option of the training, for the model card.
        samples: a grid of samples for the model card; left out if there is no such file.
        lineage: what the model was made of, for the model card.

    Raises:
        OSError: if it cannot be written, for example because the disk is full. What was there is left untouched.
    """

    def write(staged: Path) -> None:
        if training_config is not None:
            write_training_config(staged, training_config)
        if lineage:
            write_lineage(staged, lineage)
        if samples is not None and samples.is_file():
            add_samples(staged, samples)
        pipeline.save_pretrained(staged)

    replace_folder(folder, write)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder so that a kill or a power cut leaves the whole old folder, the whole new one, or none.

    Args:
        folder: the folder to write or to replace.
        write: writes the files into an empty folder of the same name.

    Raises:
        OSError: if it cannot be written, for example because the disk is full. What was there is left untouched.
    """
    staging, old = (folder.with_name(f"{STAGING}{name}{folder.name}") for name in ("", "old-"))
    staged = staging / folder.name  # a model card shows the name of the folder
    remove(staging)
    try:
        staged.mkdir(parents=True)
        write(staged)
        for path in (*staged.rglob("*"), staged):
            sync(path)
    except SafetensorError as error:  # how safetensors reports I/O errors
        remove(staging)
        raise OSError(f"{folder} cannot be written: {error}") from error
    except BaseException:
        remove(staging)
        raise
    if folder.exists():
        remove(old)
        folder.rename(old)
    staged.rename(folder)
    sync(folder.parent)
    for leftover in (staging, old):
        remove(leftover)


def upload(folder: Path, repo_id: str) -> str:
    """Upload a finished pipeline folder to the Hugging Face Hub; return the address of the upload.

    Raises:
        ValueError: if the upload fails, with the command that repeats it.
    """
    try:
        return publish(folder, repo_id)
    except ValueError as error:
        raise ValueError(
            f"{error}. The folder is complete; upload it with: sit-atconv push {folder} {repo_id}"
        ) from error


def print_next_steps(dataset: ImageDataset, pipeline: Path, max_broken_images: int = 0) -> None:
    """Print the commands that sample and evaluate the trained pipeline.

    Args:
        dataset: the data of the training.
        pipeline: the pipeline's folder.
        max_broken_images: how many images an evaluation has to leave out at most, because they cannot be read.
    """
    folder, data = shell_word(str(pipeline)), shell_word(dataset.reference)
    small = dataset.channels * dataset.image_size**2 <= MAX_PIXEL_DIMENSIONS
    size = "" if dataset.source == "digits" else f" --image_size {dataset.image_size}"
    extractor = " --extractor pixels" if small else ""
    name = name_synsets(dataset.classes)[0].split(",")[0].strip() if dataset.classes else ""
    classes = f" --classes {shell_word(name)}" if name else ""
    broken = f" --max_broken_images {max_broken_images}" if max_broken_images else ""
    print(f"\nThe trained pipeline (EMA weights) is in {folder}. Sample it and evaluate it with:")
    print(f"  sit-atconv sample {folder}{classes} --out samples.png")
    print(f"  sit-atconv evaluate {folder} --reference {data}{size}{extractor}{broken}")
    if small and dataset.classes:
        print(f"  python eval/class_accuracy.py {folder} --reference {data}{size}{broken}")
