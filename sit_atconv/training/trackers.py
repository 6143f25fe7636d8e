"""TensorBoard, W&B and trackio: which of them log a run, and what they are given."""

import importlib.util
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ..utils.files import write_atomically
from .config import TRACKERS, CommonConfig


def trackers(config: CommonConfig) -> list[str]:
    """The trackers that log a run besides metrics.jsonl."""
    if config.log_with is None:
        return ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    return [config.log_with] if config.log_with in TRACKERS else []


def scalars(values: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl as trackers take them; the loss by time becomes one number per part."""
    by_time = {f"loss_by_time/{i}": value for i, value in enumerate(values["loss_by_time"] or [])}
    return {key: value for key, value in (values | by_time).items() if isinstance(value, (int, float))}


def tracker_config(config: CommonConfig) -> dict[str, int | float | str | bool]:
    """The configuration as all trackers take it: whatever is not a number becomes text."""
    return {
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in asdict(config).items()
    }


def tracker_options(config: CommonConfig, start_step: int = 0) -> dict[str, dict[str, Any]]:
    """Options of the tracker that name the run to start or to continue.

    TensorBoard is told to forget the steps after `start_step`, which are repeated.

    The id of that run is in tracker_id.txt in the run folder; it is written if it is missing.
    """
    if "tensorboard" in trackers(config):
        return {"tensorboard": {"purge_step": start_step + 1}} if start_step else {}
    if config.log_with not in ("wandb", "trackio"):
        return {}
    file = config.run_folder / "tracker_id.txt"
    if not file.exists():
        write_atomically(file, uuid.uuid4().hex[:8])
    run = file.read_text(encoding="utf-8").strip()
    if config.log_with == "wandb":
        return {"wandb": {"dir": config.output_dir, "id": run, "resume": "allow"}}
    return {"trackio": {"name": run, "resume": "allow"}}


def log_picture(accelerator: Accelerator, name: str, file: Path, step: int) -> None:
    """Show a picture in the trackers that show pictures: TensorBoard and W&B."""
    for tracker in accelerator.trackers:
        if tracker.name in ("tensorboard", "wandb"):
            with Image.open(file, formats=["PNG"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))  # (H, W, C)
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: pixels[None]}, step=step, **options)
