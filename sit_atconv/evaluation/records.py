"""Records beside samples and in reports: how the images were made, so that results can be compared and repeated.

A folder of samples holds two records: samples.json says how the images were made, costs.jsonl what each batch cost.
A .npz batch of samples, NAME.npz, has its record beside it in NAME.json.
"""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..flow.choices import SAMPLING_DTYPES
from ..pipelines.pipeline_sit import SiTPipeline
from ..schedulers.scheduling_interpolant_ode import InterpolantODEScheduler
from ..schedulers.scheduling_interpolant_sde import InterpolantSDEScheduler
from ..schedulers.scheduling_mean_flow import MeanFlowScheduler
from ..utils.bounded_text import read_json_object
from ..utils.hashing import file_sha256
from .output_files import SAMPLES_RECORD
from .sampling_options import SamplingOptions

# Entries that may differ when a folder is continued; with any other difference, the images would differ as well.
MAY_CHANGE = {
    "pipeline",
    "num_samples",
    "complete",
    "command",
    "git_commit",
    "seconds_per_image",
    "network_calls_per_image",
    "num_processes",
}

# What older records do not say, since it was always so.
BEFORE = {"dtype": "float32"}

OWN_SCHEDULERS = {
    scheduler.__name__: scheduler for scheduler in (InterpolantODEScheduler, InterpolantSDEScheduler, MeanFlowScheduler)
}

# The packages whose versions may change pixels or PNG files.
IMAGE_DETERMINING_PACKAGES = ("torch", "diffusers", "sit_atconv", "torchdiffeq", "Pillow")


def in_full(record: Mapping) -> dict:
    """A record with what older ones do not say: entries of `BEFORE`, and defaults of a scheduler's newer options."""
    full = {**BEFORE, **record}
    match full.get("scheduler"):
        case {"class": str(name), "config": dict(config)} if name in OWN_SCHEDULERS:
            options = inspect.signature(OWN_SCHEDULERS[name]).parameters.values()
            defaults = {option.name: option.default for option in options}
            full["scheduler"] = {"class": name, "config": {**defaults, **config}}
    return full


def image_determining(record: dict) -> dict:
    """The part of a record of samples that determines the images."""
    record = {key: value for key, value in record.items() if key not in MAY_CHANGE}
    versions = record.get("versions", {})
    return record | {"versions": {name: versions.get(name) for name in IMAGE_DETERMINING_PACKAGES}}


def read_record(samples: str | Path) -> dict | None:
    """Read what eval/sample.py recorded about a folder of images or a .npz batch.

    Returns:
        The record, or None if eval/sample.py did not make these images.

    Raises:
        ValueError: if the record is damaged.
    """
    samples = Path(samples)
    file = samples / SAMPLES_RECORD if samples.is_dir() else samples.with_suffix(".json")
    if not file.is_file() or (samples.suffix != ".npz" and not samples.is_dir()):
        return None
    record = in_full(read_json_object(file))
    return record if {"complete", "pipeline", "num_samples"} <= record.keys() else None


def describe_pipeline(pipeline: SiTPipeline) -> dict:
    """What a record says about the pipeline itself: its mixer and its scheduler."""
    config = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    return {
        "mixer": pipeline.transformer.config.mixer,
        "scheduler": {"class": type(pipeline.scheduler).__name__, "config": config},
    }


def recorded_dtype(options: SamplingOptions, file: Path) -> SamplingOptions:
    """Return the options with the data type of a record in place of "auto", if there is one.

    What one machine began is so continued on another, in whatever that would choose.

    Args:
        options: how images are drawn.
        file: the JSON file of the record; who continues it checks the rest, and names what is wrong with the file.
    """
    try:
        found = in_full(read_json_object(file))["dtype"] if options.dtype == "auto" and file.is_file() else None
    except ValueError:
        return options
    return replace(options, dtype=found) if found in SAMPLING_DTYPES else options


def earlier_results(file: Path, record: Mapping) -> dict:
    """Read the results that a file holds; {} if there is no file yet.

    Args:
        file: a JSON file in an output folder.
        record: what new results depend on, which the file's must depend on as well.

    Raises:
        ValueError: naming what differs.
    """
    if not file.exists():
        return {}
    before = in_full(read_json_object(file))
    for name, value in record.items():
        if before.get(name) != value:
            remedy = (
                f"give --dtype {before[name]}, or name another folder" if name == "dtype" else "name another folder"
            )
            raise ValueError(
                f"output={str(file.parent)!r} holds results with {name}={before.get(name)!r}, not {value!r}; {remedy}"
            )
    return before


def folder_sha256(folder: str | Path) -> str:
    """The SHA-256 of the names and contents of a pipeline folder's configs and weights (*.json and *.safetensors).

    Hidden files do not count, nor do the model card and sample pictures, which people edit.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder)
        if file.suffix in (".json", ".safetensors") and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
