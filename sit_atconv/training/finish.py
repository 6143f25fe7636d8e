"""The end of a run: its pipeline folder, and what to do with it next."""

import shlex
import shutil
from pathlib import Path

from ..data import ImageDataset
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.checks import MAX_PIXEL_DIMENSIONS
from ..utils.files import STAGING, sync


def save_pipeline(pipeline: SiTPipeline, folder: Path) -> None:
    """Save a pipeline so that a kill or a power cut leaves the whole old folder, the whole new one, or none."""
    staging, old = (folder.with_name(f"{STAGING}{name}{folder.name}") for name in ("", "old-"))
    shutil.rmtree(staging, ignore_errors=True)
    pipeline.save_pretrained(staging)
    for path in (*staging.rglob("*"), staging):
        sync(path)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    staging.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def print_next_steps(dataset: ImageDataset, pipeline: Path) -> None:
    """Print the commands that sample and evaluate the trained pipeline."""
    folder, data = shlex.quote(str(pipeline)), shlex.quote(dataset.reference)
    small = dataset.channels * dataset.image_size**2 <= MAX_PIXEL_DIMENSIONS
    size = "" if dataset.source == "digits" else f" --image_size {dataset.image_size}"
    extractor = " --extractor pixels" if small else ""
    print(f"\nThe trained pipeline (EMA weights) is in {folder}. Sample it and evaluate it with:")
    print(f"  sit-atconv sample {folder} --classes 0 --out samples.png")
    print(f"  python eval/fid.py {folder} --reference {data}{size}{extractor}")
    if small and dataset.classes:
        print(f"  python eval/class_accuracy.py {folder} --reference {data}{size}")
