"""What a sweep tries: averages of the weights, guidance scales and intervals."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from ..pipelines.pipeline_sit import SiTPipeline
from ..sharing.folder import check_pipeline_folder
from ..training.checkpoints import checkpoint_steps
from ..training.export import average_names, average_pipeline, read_average
from ..utils.hashing import tensors_sha256
from .sampling import load_pipeline

SAVED = "saved"  # the weights of a pipeline folder


class Setting(NamedTuple):
    """One way of drawing images."""

    average: str
    scale: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        guidance = "no guidance" if self.scale == 1 else f"scale {self.scale:g}, {interval_text(self.interval)}"
        return f"{self.average}, {guidance}"


def interval_text(interval: Sequence[float]) -> str:
    """An interval as a table shows it."""
    return f"{interval[0]:g}–{interval[1]:g}"


def grid(averages: Sequence[str], scales: Sequence[float], intervals: Sequence[Sequence[float]]) -> list[Setting]:
    """Every combination, each once; without guidance (scale 1) there is no interval."""
    settings = (
        Setting(average, float(scale), (0.0, 1.0) if scale == 1 else (float(interval[0]), float(interval[1])))
        for average, scale, interval in itertools.product(averages, scales, intervals)
    )
    return list(dict.fromkeys(settings))


@dataclass
class Average:
    """A pipeline with one average of the weights, which is built when it is needed.

    Args:
        name: its name in tables.
        build: builds the pipeline.
    """

    name: str
    build: Callable[[], SiTPipeline]
    sha256: str = field(default="", init=False)  # of the weights, once they were loaded

    def load(self, device: torch.device) -> SiTPipeline:
        """Build the pipeline on a device, without a progress bar."""
        pipeline = self.build().to(device)
        pipeline.set_progress_bar_config(disable=True)
        self.sha256 = tensors_sha256(pipeline.transformer.state_dict())
        return pipeline


def open_averages(folder: str, averages: Sequence[str] | None, stds: Sequence[float] | None) -> list[Average]:
    """The averages that a folder offers, without loading them.

    Args:
        folder: a pipeline folder, which holds one; or a run folder.
        averages: names of averages that the run tracks. If None, all of its newest checkpoint.
        stds: relative standard deviations of power-function averages, which are reconstructed from the run's snapshots.

    Raises:
        ValueError: if the folder is neither, or does not hold what is asked for.
    """
    run = Path(folder)
    if not (run / "config.yaml").is_file():
        if averages or stds:
            name, value = ("averages", averages) if averages else ("stds", stds)
            raise ValueError(f"{name}={value!r}: {folder!r} is no run folder, and holds one average; leave it out")
        check_pipeline_folder(folder)
        return [Average(SAVED, lambda: load_pipeline(folder, torch.device("cpu")))]
    checkpoints = dict(checkpoint_steps(run / "checkpoints"))
    if not checkpoints:
        raise ValueError(f"folder={folder!r} holds no checkpoints; give its pipeline, {str(run / 'pipeline')!r}")
    tracked = average_names(run, checkpoints[max(checkpoints)])
    for name in averages or ():
        if name not in tracked:
            raise ValueError(f"averages={list(averages or ())!r}: {folder!r} tracks {', '.join(tracked)}")

    def builder(average: str | None = None, std: float | None = None) -> Callable[[], SiTPipeline]:
        return lambda: average_pipeline(run, read_average(run, average, std))

    chosen = [Average(name, builder(name)) for name in (tracked if averages is None else averages)]
    return chosen + [Average(f"post-hoc {std:g}", builder(std=std)) for std in stds or ()]
