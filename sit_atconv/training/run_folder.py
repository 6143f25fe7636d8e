"""The run folder: whether a run may start or continue in it, and how its configuration and pipeline are written."""

import dataclasses
import json
import os
import platform
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from ..data import ImageDataset
from ..pipelines.pipeline_sit import SiTPipeline
from ..utils.environment import device_name, git_commit, package_versions
from ..utils.files import STAGING, sync, write_atomically
from ..utils.hashing import tensors_sha256
from .checkpoints import STATE, checkpoint_steps
from .config import TrainConfig

# What may differ when a run is continued. Everything else would make it another run. Data and VAE may lie elsewhere:
# what is in them is compared with the checkpoint's.
CHANGEABLE_ON_RESUME = {
    "data",
    "vae",
    "resume",
    "dry_run",
    "output_dir",
    "max_steps",
    "num_workers",
    "max_broken_images",
    "gradient_checkpointing",
    "gradient_accumulation_steps",
    "compile",
    "max_skipped_steps",
    "log_with",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_every",
    "sample_guidance_scale",
    "sample_steps",
    "push_to_hub",
}


def prepare_run_folder(config: TrainConfig) -> bool:
    """Make sure that the output folder is free, or holds the run to continue; return whether it is continued.

    Raises:
        ValueError: where the folder holds something else, there is nothing to resume, or the configs differ.
    """
    folder = Path(config.output_dir)
    checkpoints = checkpoint_steps(folder / "checkpoints")
    if config.resume == "latest" and not checkpoints:
        raise ValueError(f"resume=latest: {folder}/checkpoints holds no checkpoint; leave --resume out to start a run")
    starts_over = config.resume == "auto" and not checkpoints and not _changes(config, folder)
    if config.resume is None or not checkpoints:
        if not starts_over and folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise ValueError(
                f"output_dir={str(folder)!r} holds another run; choose another --output_dir, or continue that run with "
                "--resume latest"
            )
        return False
    if changed := _changes(config, folder):
        raise ValueError(f"resume={config.resume}: this is another run than the one in {folder}: {'; '.join(changed)}")
    return True


def _changes(config: TrainConfig, folder: Path) -> list[str]:
    """What sets this run apart from the one in `folder`."""
    try:
        # an option that is younger than the run had its default in it
        saved = dataclasses.asdict(TrainConfig()) | yaml.safe_load((folder / "config.yaml").read_text())
    except FileNotFoundError:
        return [f"{folder} holds no config.yaml"]
    return [
        f"{name}: {saved[name]!r} -> {value!r}"
        for name, value in dataclasses.asdict(config).items()
        if name not in CHANGEABLE_ON_RESUME and saved[name] != value
    ]


def save_config(config: TrainConfig) -> None:
    """Write the resolved configuration to config.yaml in the run folder."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    write_atomically(folder / "config.yaml", text)


def describe_data(dataset: ImageDataset, vae: torch.nn.Module | None) -> dict[str, Any]:
    """What tells one data set and its VAE from others, wherever they lie, as JSON holds it.

    It may look at every file: do it once.
    """
    return {
        "images": len(dataset),
        "classes": len(dataset.classes),
        "image_size": dataset.image_size,
        "channels": dataset.channels,
        "fingerprint": dataset.fingerprint(),
        "vae_sha256": None if vae is None else tensors_sha256(vae.state_dict()),
    }


def check_continues(config: TrainConfig, data: dict[str, Any], checkpoint: Path) -> None:
    """Make sure that a verified checkpoint is of this data, as `describe_data` has it, and within `max_steps`.

    Raises:
        ValueError: naming what differs.
    """
    state = json.loads((checkpoint / STATE).read_text())
    saved = state["data"]
    if changed := [f"{key}: {saved.get(key)!r} -> {value!r}" for key, value in data.items() if saved.get(key) != value]:
        raise ValueError(
            f"data={config.data!r}, vae={config.vae!r}: not what {checkpoint} was trained on: {'; '.join(changed)}"
        )
    if state["step"] > config.max_steps:  # at max_steps all that is left is to write the pipeline
        raise ValueError(
            f"resume={config.resume}: the run in {config.output_dir} has done {state['step']} steps; raise --max_steps"
        )


def save_pipeline(pipeline: SiTPipeline, folder: Path) -> None:
    """Save a pipeline such that a kill or a power cut leaves the former folder, or none, but no half of one."""
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


def record_start(file: Path, step: int, processes: int, device: torch.device, mixed_precision: str) -> None:
    """Append to starts.jsonl how the run was started or continued: command, versions, machine."""
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "from_step": step,
        "command": shlex.join(sys.argv),
        "processes": processes,
        "device": device_name(device),
        "mixed_precision": mixed_precision,
        "host": platform.node(),
        "pid": os.getpid(),
        "folder": os.getcwd(),
        "versions": package_versions(),
        "commit": git_commit(),
    }
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(start) + "\n")
